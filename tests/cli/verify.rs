use std::fs;

use tlkit::tensor::Tensor;

use super::{Run, Shell, assert_transcript};

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

/// The bytes of a safetensors file with another `__metadata__`, the tensors as they are.
fn with_metadata(file: &[u8], metadata: serde_json::Value) -> Vec<u8> {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..8 + len]).unwrap();
    header["__metadata__"] = metadata;
    let mut text = header.to_string();
    text.push_str(&" ".repeat((8 - text.len() % 8) % 8));
    let length = (text.len() as u64).to_le_bytes();
    [&length, text.as_bytes(), &file[8 + len..]].concat()
}

/// Breaks where a folder is called base plus adapters although something in it is not what merge
/// writes there: settings, tokenizer, template, code, other weights, metadata, index, links.
#[test]
fn a_merged_folder_is_compared_whole() {
    let shell = Shell::new();
    shell.ok("merge base style.tl -o merged");
    let verify = |more: &str| {
        let line = format!("verify merged --base base --adapter style.tl --merged x {more}");
        (shell.quiet(&line), shell.quiet(&format!("{line} --json")))
    };
    let edit = |name: &str, from: &str, to: &str| {
        let path = shell.path(&format!("x/{name}"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let shard = "model-00001-of-00002.safetensors";
    let path = |name: &str| shell.path(&format!("x/{name}"));
    let metadata = |value: serde_json::Value| {
        let bytes = fs::read(path(shard)).unwrap();
        fs::write(path(shard), with_metadata(&bytes, value)).unwrap();
    };
    let index = "model.safetensors.index.json";
    let new_index = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::from_slice(&fs::read(path(index)).unwrap()).unwrap();
        change(&mut value);
        fs::write(path(index), value.to_string()).unwrap();
    };
    // What was done, the file that has to be named, and whether that is a difference.
    type Case<'a> = (&'a str, bool, Box<dyn Fn() + 'a>);
    let cases: Vec<Case<'_>> = vec![
        (
            "config.json",
            true,
            Box::new(|| edit("config.json", "\"silu\"", "\"gelu\"")),
        ),
        (
            "config.json",
            true,
            Box::new(|| edit("config.json", "10000.0", "500000.0")),
        ),
        (
            "tokenizer.json",
            true,
            Box::new(|| edit("tokenizer.json", "\"vocab\"", "\"vocab2\"")),
        ),
        (
            "tokenizer_config.json",
            true,
            Box::new(|| edit("tokenizer_config.json", "{", "{\"chat_template\": \"x\",")),
        ),
        (
            "tokenizer.json",
            true,
            Box::new(|| fs::remove_file(path("tokenizer.json")).unwrap()),
        ),
        (
            "modeling_x.py",
            true,
            Box::new(|| fs::write(path("modeling_x.py"), "import os").unwrap()),
        ),
        (
            "pytorch_model.bin",
            true,
            Box::new(|| fs::write(path("pytorch_model.bin"), "x").unwrap()),
        ),
        (
            "other.safetensors",
            true,
            Box::new(|| {
                fs::copy(path(shard), path("other.safetensors")).unwrap();
            }),
        ),
        (
            "deep/a.py",
            true,
            Box::new(|| {
                fs::create_dir(path("deep")).unwrap();
                fs::write(path("deep/a.py"), "x").unwrap();
            }),
        ),
        (
            shard,
            true,
            Box::new(|| metadata(serde_json::json!({"format": "tf", "evil": "1"}))),
        ),
        (
            shard,
            true,
            Box::new(|| metadata(serde_json::json!({"format": "pt", "note": "1"}))),
        ),
        (
            index,
            true,
            Box::new(|| new_index(&|i| i["metadata"]["total_size"] = 1.into())),
        ),
        (
            index,
            true,
            Box::new(|| new_index(&|i| i["extra"] = 1.into())),
        ),
        (
            "tokenizer.json",
            true,
            Box::new(|| {
                fs::remove_file(path("tokenizer.json")).unwrap();
                std::os::unix::fs::symlink(
                    shell.path("base/tokenizer.json"),
                    path("tokenizer.json"),
                )
                .unwrap();
            }),
        ),
        (
            "config.json",
            false,
            Box::new(|| {
                let value: serde_json::Value =
                    serde_json::from_slice(&fs::read(path("config.json")).unwrap()).unwrap();
                fs::write(
                    path("config.json"),
                    serde_json::to_string_pretty(&value).unwrap() + "\n\n",
                )
                .unwrap();
            }),
        ),
        (
            "tokenizer.json",
            false,
            Box::new(|| {
                fs::rename(path("tokenizer.json"), path("t.json")).unwrap();
                std::os::unix::fs::symlink("t.json", path("tokenizer.json")).unwrap();
            }),
        ),
    ];
    for (n, (file, differs, change)) in cases.into_iter().enumerate() {
        let _ = fs::remove_dir_all(shell.path("x"));
        super::copy_dir(&shell.path("merged"), &shell.path("x"));
        change();
        let (text, json) = verify("");
        // The link within the folder leaves its target as a file of its own, which is one too many.
        let code = i32::from(differs || n == 15);
        assert_eq!(
            (text.code, json.code),
            (code, code),
            "{n} {file}: {}",
            text.stdout
        );
        let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(report["equal"], (code == 0), "{n} {file}");
        let list = if differs { "differing" } else { "layout" };
        let named = report["files"][list].as_array().unwrap();
        assert!(
            named.iter().any(|f| f["file"] == file),
            "{n} {file}: {report}"
        );
        assert!(text.stdout.contains(file), "{n} {file}");
        let last = text.stdout.trim_end().lines().last().unwrap().to_owned();
        match code {
            0 => assert_eq!(
                last,
                format!("x is base plus adapters, within 0 ulp; laid out otherwise: {file}")
            ),
            _ => assert!(last.starts_with("x is not base plus adapters"), "{last}"),
        }
        let (text, _) = verify("--weights-only");
        assert_eq!(text.code, 0, "{n} {file}: {}", text.stdout);
        let last = text.stdout.trim_end().lines().last().unwrap();
        assert!(
            last.starts_with("what was compared of x is") && last.contains("not looked at"),
            "{last}"
        );
    }
}

/// Breaks where the same model in one file instead of shards is called different, or a folder that
/// was compared with a file is called proved.
#[test]
fn another_layout_and_what_is_not_looked_at_are_said() {
    let mut shell = Shell::new();
    shell.ok("merge base style.tl -o merged");
    let all: Vec<_> = ["1", "2"]
        .iter()
        .flat_map(|n| shell.tensors(&format!("merged/model-0000{n}-of-00002.safetensors")))
        .collect();
    super::copy_dir(&shell.path("merged"), &shell.path("one"));
    for name in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ] {
        fs::remove_file(shell.path(&format!("one/{name}"))).unwrap();
    }
    shell.write("one/model.safetensors", &all);
    fs::create_dir(shell.path("one/.cache")).unwrap();
    for line in [
        "--merged one",
        "--merged one/model.safetensors",
        "--merged one --weights-only",
    ] {
        let run = shell.run(&format!(
            "verify merged --base base --adapter style.tl {line}"
        ));
        assert_eq!(run.code, 0, "{line}: {}", run.stdout);
    }
    assert_transcript!(shell);
}

/// Breaks where a path comes out as it is: it could colour, hide or forge the verdict.
#[test]
fn a_verdict_has_no_escapes_of_its_path() {
    let shell = Shell::new();
    let name = "m\u{1b}[31mX\nx is base plus adapters, within 0 ulp";
    let run = |words: &[&str]| {
        let mut command = shell.command("");
        command.args(words);
        Run::of(command.output().unwrap())
    };
    assert_eq!(run(&["merge", "base", "style.tl", "-o", name]).code, 0);
    let run = run(&[
        "verify",
        "merged",
        "--base",
        "base",
        "--adapter",
        "style.tl=2",
        "--merged",
        name,
    ]);
    assert_eq!(run.code, 1);
    assert!(!run.stdout.contains('\x1b'), "{}", run.stdout);
    let last = run.stdout.trim_end().lines().last().unwrap();
    assert!(last.contains("is not base plus adapters"), "{last}");
}

/// Breaks where one command takes a file whose stored tensor is not what its seed makes, and
/// another refuses it.
#[test]
fn a_recipe_that_lies_is_refused_by_every_command() {
    let mut shell = Shell::new();
    let lie = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/v1/malformed/seed-lie.tl"
    );
    fs::write(shell.path("lie.tl"), fs::read(lie).unwrap()).unwrap();
    shell.ok("store init store");
    for line in [
        "verify file lie.tl",
        "verify adapters lie.tl lie.tl",
        "pack lie.tl -o packed.tl",
        "pack lie.tl -o packed.tl --thin",
        "convert tied-to-peft lie.tl -o export",
        "store put store a/b lie.tl",
        "merge base lie.tl -o merged",
    ] {
        let run = shell.quiet(line);
        assert_eq!(run.code, 4, "{line}: {}", run.stderr);
        assert!(run.stderr.contains("TL0215"), "{line}: {}", run.stderr);
    }
    for name in ["packed.tl", "export", "merged"] {
        assert!(!shell.path(name).exists(), "{name}");
    }
    let run = shell.run("inspect lie.tl");
    assert_eq!(run.code, 0);
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
