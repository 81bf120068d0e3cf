use std::fs;

use tlkit::tensor::Tensor;

use super::{Shell, assert_transcript};

/// Breaks where equal adapters differ, different ones are equal, or the exit code does not say it.
#[test]
fn adapters_equal_and_different() {
    let mut shell = Shell::new();
    shell.ok("convert tied-to-peft style.tl -o export");
    let one = shell.run("verify adapters style.tl export");
    let two = shell.run("verify adapters style.tl lora");
    let three = shell.run("verify adapters style.tl lora --tolerance 100");
    assert_eq!((one.code, two.code, three.code), (0, 1, 1));
    assert_transcript!(shell);
}

/// Breaks where a value that is not finite drops out of the largest error: one NaN, one infinity,
/// one module that is 50 times as large and has a NaN, and a NaN in every module, which are all
/// unlike besides.
#[test]
fn adapters_that_are_not_finite_are_never_equal() {
    let mut shell = Shell::new();
    let scaled = |t: &Tensor, by: f32, add: f32, first: Option<f32>| {
        let mut values: Vec<f32> = t.to_f32().unwrap().iter().map(|x| by * x + add).collect();
        values[0] = first.unwrap_or(values[0]);
        Tensor::narrowed(t.dtype(), t.shape().to_vec(), &values).unwrap()
    };
    type Change<'a> = &'a dyn Fn(usize, &Tensor) -> Tensor;
    let cases: [(&str, Change<'_>); 4] = [
        ("nan", &|n, t| {
            scaled(t, 1.0, 0.0, (n == 0).then_some(f32::NAN))
        }),
        ("inf", &|n, t| {
            scaled(t, 1.0, 0.0, (n == 0).then_some(f32::INFINITY))
        }),
        ("times50", &|n, t| match n {
            0 => scaled(t, 50.0, 0.0, Some(f32::NAN)),
            _ => t.clone(),
        }),
        ("all", &|_, t| scaled(t, 3.0, 1.0, Some(f32::NAN))),
    ];
    for (name, change) in cases {
        shell.adapter("lora", name, "LORA", "LORA");
        let file = format!("{name}/adapter_model.safetensors");
        let tensors = shell.tensors(&file).into_iter().enumerate();
        let changed: Vec<_> = tensors.map(|(n, (key, t))| (key, change(n, &t))).collect();
        shell.write(&file, &changed);
        for pair in [
            format!("lora {name}"),
            format!("{name} lora"),
            format!("{name} {name}"),
        ] {
            let run = shell.quiet(&format!("verify adapters {pair} --tolerance inf"));
            assert_eq!(run.code, 1, "{pair}: {}", run.stdout);
            let last = run.stdout.trim_end().lines().last().unwrap();
            assert!(
                last.starts_with("different: ") && last.contains("not finite"),
                "{last}"
            );
            let run = shell.quiet(&format!("verify adapters {pair} --json"));
            let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            assert_eq!((run.code, &report["equal"]), (1, &false.into()), "{pair}");
            assert!(report["not_finite"].as_u64() > Some(0), "{report}");
            assert!(
                report["worst"].as_str().unwrap().contains("layers."),
                "{report}"
            );
        }
    }
    shell.run("verify adapters lora nan");
    assert_transcript!(shell);
}

/// Breaks where a merged model is accepted that is not, or the report does not say what differs.
#[test]
fn merged_models_equal_and_different() {
    let mut shell = Shell::new();
    shell.ok("merge base style.tl -o merged");
    shell.ok("merge base style.tl -o safe --rounding peft-safe");
    for (line, code) in [
        ("--adapter style.tl --merged merged", 0),
        ("--adapter style --merged safe", 0),
        ("--adapter style.tl=0.5 --merged merged", 1),
        ("--adapter style.tl --merged base", 1),
    ] {
        let run = shell.run(&format!("verify merged --base base {line}"));
        assert_eq!(run.code, code, "{line}");
    }
    let shard = "merged/model-00002-of-00002.safetensors";
    let mut tensors = shell.tensors(shard);
    let (_, norm) = tensors
        .iter_mut()
        .find(|(n, _)| n == "model.norm.weight")
        .unwrap();
    *norm = tlkit::tensor::Tensor::narrowed(norm.dtype(), vec![64], &[7.0; 64]).unwrap();
    shell.write(shard, &tensors);
    let run = shell.run("verify merged --base base --adapter style.tl --merged merged");
    assert_eq!(run.code, 1);
    assert_transcript!(shell);
}

/// Breaks where a flipped bit goes unseen.
#[test]
fn a_file_whole_and_damaged() {
    let mut shell = Shell::new();
    shell.run("verify file style.tl");
    let mut bytes = fs::read(shell.path("style.tl")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(shell.path("style.tl"), bytes).unwrap();
    shell.run("verify file style.tl");
    assert_transcript!(shell);
}
