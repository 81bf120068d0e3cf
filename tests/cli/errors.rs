use std::fs;

use super::{Shell, assert_transcript};
use tlkit::tensor::Tensor;

/// Makes the broken inputs: each is one of the fixtures with one thing wrong.
fn broken_inputs() -> Shell {
    let shell = Shell::new();
    let tensor = |shape: &[usize], value: f32| {
        Tensor::from_f32(shape.to_vec(), &vec![value; shape.iter().product()]).unwrap()
    };
    shell.write(
        "gpt2.safetensors",
        &[("h.0.attn.c_attn.weight".into(), tensor(&[4, 12], 0.0))],
    );

    shell.adapter("lora", "nan", "\"r\"", "\"r\"");
    let weights = "adapter_model.safetensors";
    let mut tensors = shell.tensors(&format!("nan/{weights}"));
    tensors[0].1 = tensor(tensors[0].1.shape(), f32::NAN);
    shell.write(&format!("nan/{weights}"), &tensors);

    let mut base = shell.tensors("base/model-00001-of-00002.safetensors");
    base.extend(shell.tensors("base/model-00002-of-00002.safetensors"));
    let query = |(n, _): &&mut (String, Tensor)| n == "model.layers.2.self_attn.q_proj.weight";
    base.iter_mut().find(query).unwrap().1 = tensor(&[64, 32], 0.0);
    shell.write("narrow.safetensors", &base);

    let init = "\"init_lora_weights\": true";
    shell.adapter("lora", "pissa", init, "\"init_lora_weights\": \"pissa\"");
    shell.adapter("lora", "alpha0", "\"lora_alpha\": 8", "\"lora_alpha\": 0");
    shell.adapter("lora", "dora", init, "\"use_dora\": true");
    let mut tensors = shell.tensors(&format!("dora/{weights}"));
    let magnitudes: Vec<_> = tensors
        .iter()
        .filter_map(|(n, t)| {
            let module = n.strip_suffix(".lora_B.weight")?;
            let name = format!("{module}.lora_magnitude_vector");
            Some((name, tensor(&[t.shape()[0]], 1.0)))
        })
        .collect();
    tensors.extend(magnitudes);
    shell.write(&format!("dora/{weights}"), &tensors);

    fs::create_dir(shell.path("mlx")).unwrap();
    let config = r#"{"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 10.0}}"#;
    fs::write(shell.path("mlx/adapter_config.json"), config).unwrap();
    let name = "model.layers.0.self_attn.q_proj.lora_a".to_owned();
    shell.write("mlx/adapters.safetensors", &[(name, tensor(&[64, 8], 0.0))]);

    let tl = fs::read(shell.path("style.tl")).unwrap();
    fs::write(shell.path("cut.tl"), &tl[..tl.len() - 100]).unwrap();
    let mut flipped = tl;
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(shell.path("flipped.tl"), flipped).unwrap();
    shell
}

/// Each failing command, with its code and exit code.
const FAILURES: [(&str, &str, i32); 27] = [
    ("inspect absent.tl", "TL0002", 3),
    ("merge absent lora -o out", "TL0002", 3),
    ("merge base absent.tl -o out", "TL0002", 3),
    ("merge base absent=0.5 -o out", "TL0002", 3),
    ("convert peft-to-tied absent -o out.tl", "TL0002", 3),
    ("convert peft-to-tied lora -o style.tl", "TL0003", 3),
    ("merge base style.tl -o lora", "TL0003", 3),
    ("convert tied-to-peft style.tl -o lora", "TL0003", 3),
    (
        "convert peft-to-tied lora -o no/such/folder.tl",
        "TL0002",
        3,
    ),
    (
        "merge gpt2.safetensors lora -o out.safetensors",
        "TL0501",
        6,
    ),
    ("merge base nan -o out", "TL0504", 6),
    ("convert peft-to-tied nan -o out.tl", "TL0219", 4),
    (
        "merge narrow.safetensors lora -o out.safetensors",
        "TL0502",
        6,
    ),
    ("convert peft-to-tied pissa -o out.tl", "TL0405", 5),
    ("merge base pissa -o out", "TL0405", 5),
    ("convert peft-to-tied dora -o out.tl", "TL0401", 5),
    ("convert peft-to-tied alpha0 -o out.tl", "TL0313", 4),
    ("merge base mlx -o out", "TL0302", 4),
    ("merge base base -o out", "TL0303", 4),
    (
        "verify file base/model-00001-of-00002.safetensors",
        "TL0201",
        4,
    ),
    (
        "merge base lora/adapter_model.safetensors -o out",
        "TL0201",
        4,
    ),
    ("verify file cut.tl", "TL0101", 4),
    ("merge base flipped.tl -o out", "TL0213", 4),
    ("merge base style.tl=half -o out", "TL0006", 2),
    ("merge base style.tl=inf -o out", "TL0006", 2),
    ("merge base style.tl=0 -o out", "TL0508", 6),
    ("unmerge base --undo style.tl", "TL0509", 6),
];

/// Breaks where a failure is not one line with its code, writes something, or hides its cause.
#[test]
fn every_failure_is_one_line_and_writes_nothing() {
    let mut shell = broken_inputs();
    let before = shell.files();
    for (line, code, exit) in FAILURES {
        let run = shell.run(line);
        let mut lines = run.stderr.lines().filter(|l| !l.starts_with("note: "));
        let first = lines.next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("error[{code}]: ")),
            "{line}: {}",
            run.stderr
        );
        assert_eq!((run.code, run.stdout.as_str()), (exit, ""), "{line}");
        assert!(
            lines.all(|l| l.starts_with("hint: ")),
            "{line}: {}",
            run.stderr
        );
        assert!(shell.files() == before, "{line} wrote something");
    }
    assert_transcript!(shell);
}

/// Breaks where a script that reads `--json` gets no JSON, or two documents, when a command fails.
#[test]
fn every_failure_is_one_json_document() {
    let shell = broken_inputs();
    for (line, code, exit) in FAILURES {
        let run = shell.quiet(&format!("--json {line}"));
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(json["error"]["code"], code, "{line}");
        assert!(!json["error"]["message"].as_str().unwrap().is_empty());
        assert_eq!(run.code, exit, "{line}");
    }
}
