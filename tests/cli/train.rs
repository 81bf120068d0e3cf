use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Shell;

/// The fixture's model, with its task beside it.
pub(super) fn shell() -> Shell {
    let shell = Shell::new();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/task");
    super::copy_dir(fixtures.as_ref(), &shell.path("task"));
    shell
}

const TRAIN: &str = "train --model base --data task/train.jsonl --valid task/valid.jsonl \
    --global-batch 8 --batch-size 4 --rank 4 --lr 0.02";

/// Breaks where a preset trains something else than it says, does not learn, starts elsewhere than
/// at the base model, or writes what the other commands do not take.
#[test]
fn every_method_trains_and_its_adapter_merges() {
    let shell = shell();
    let mut start = None;
    for method in ["lora", "vera", "tl1", "tl2", "tl3", "tl4", "tl5", "tl6"] {
        let run = shell.quiet(&format!(
            "{TRAIN} --method {method} --max-steps 12 --eval-every 6 -o {method}.tl --json"
        ));
        assert_eq!(
            (run.code, run.stderr.as_str()),
            (0, ""),
            "{method}: {}",
            run.stdout
        );
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        let [before, after] =
            ["initial_valid_loss", "valid_loss"].map(|k| report[k].as_f64().unwrap());
        assert_eq!(*start.get_or_insert(before), before, "{method}");
        assert!(after < before - 0.01, "{method}: {before} → {after}");
        let inspected = shell.quiet(&format!("inspect {method}.tl --json"));
        let inspected: serde_json::Value = serde_json::from_str(&inspected.stdout).unwrap();
        assert!(
            inspected.to_string().contains(&format!("\"{method}\"")),
            "{inspected}"
        );
        shell.ok(&format!(
            "merge base {method}.tl -o merged-{method} --check-base"
        ));
        let metrics = fs::read_to_string(shell.path(&format!("{method}.tl.run/metrics.jsonl")));
        assert_eq!(metrics.unwrap().lines().count(), 12 + 3, "{method}");
        assert!(shell.path(&format!("{method}.tl.run/curve.svg")).exists());
    }
    // Frozen random factors are a seed each: what is stored is what was trained.
    let size = |name: &str| fs::metadata(shell.path(name)).unwrap().len();
    assert!(size("vera.tl") < size("tl6.tl") && size("tl6.tl") < size("lora.tl"));
}

/// Breaks where an adapter tells where it was made: model, data and output at other paths, under
/// other names, and every way to convert and fit what was trained, have to give the same roots.
#[test]
fn a_root_does_not_depend_on_the_folder() {
    let roots = |place: &str| {
        let shell = shell();
        let at = |name: &str| format!("{place}/{name}-of-{place}");
        let folder = shell.path(place);
        fs::create_dir(&folder).unwrap();
        for (from, to) in [
            ("base", at("model")),
            ("task/train.jsonl", at("data")),
            ("task/valid.jsonl", at("check")),
        ] {
            fs::rename(shell.path(from), shell.path(&to)).unwrap();
        }
        let (model, data, valid, one, two) =
            (at("model"), at("data"), at("check"), at("one"), at("two"));
        let train = |output: &str, more: &str| {
            format!(
                "train --model {model} --data {data} --valid {valid} --global-batch 8 --batch-size 4 \
                 --rank 4 --lr 0.02 --max-steps 2 -o {output}.tl {more}"
            )
        };
        let fit = |how: &str, output: &str| {
            format!("convert peft-to-tied {one}-peft {how} -o {output}.tl")
        };
        let lines = [
            train(&one, &format!("--method lora --peft {one}-peft")),
            train(&two, "--method tl6 --seed 1"),
            format!(
                "convert peft-to-tied {one}-peft --base {model} -o {}.tl",
                at("lossless")
            ),
            fit("--fit --rank 2", &at("fit")),
            fit("--fit --rank 2 --core", &at("core")),
            fit("--fit --untied --rank 2", &at("untied")),
            fit(
                &format!("--fit --rank 2 --calibrate {data} --model {model}"),
                &at("calibrated"),
            ),
        ];
        for line in &lines {
            shell.ok(line);
        }
        let names = [
            "one",
            "two",
            "lossless",
            "fit",
            "core",
            "untied",
            "calibrated",
        ];
        names.map(|name| {
            let run = shell.quiet(&format!("verify file {}.tl --json", at(name)));
            let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            let bytes = fs::read(shell.path(&format!("{}.tl", at(name)))).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.contains(&format!("-of-{place}")), "{name}");
            (name, report["root"].as_str().unwrap().to_owned())
        })
    };
    assert_eq!(roots("here"), roots("elsewhere"));
}

/// Breaks where PEFT directories of trained LoRA and VeRA adapters are not the same adapter.
#[test]
fn lora_and_vera_are_written_for_peft_as_well() {
    let shell = shell();
    for method in ["lora", "vera"] {
        shell.ok(&format!(
            "{TRAIN} --method {method} --max-steps 2 -o {method}-x.tl --peft {method}-peft"
        ));
        shell.ok(&format!("merge base {method}-x.tl -o a-{method}"));
        shell.ok(&format!("merge base {method}-peft -o b-{method}"));
        for part in [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ] {
            let [a, b] = ["a", "b"].map(|d| fs::read(shell.path(&format!("{d}-{method}/{part}"))));
            assert_eq!(a.unwrap(), b.unwrap(), "{method} {part}");
        }
    }
}

/// Breaks where a command does not know the core that training writes, or takes it for something
/// else than the PEFT directory beside it says.
#[test]
fn a_core_goes_through_every_command() {
    let shell = shell();
    let run = shell.quiet(&format!(
        "{TRAIN} --train A,B,C,v --max-steps 12 --eval-every 6 -o core.tl --peft core-peft --json"
    ));
    assert_eq!(run.code, 0, "{}", run.stdout);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let [before, after] = ["initial_valid_loss", "valid_loss"].map(|k| report[k].as_f64().unwrap());
    assert!(after < before - 0.01, "{before} → {after}");
    assert!(
        shell
            .quiet("inspect core.tl")
            .stdout
            .contains("C [4, 4, 4] F32")
    );
    shell.ok("verify file core.tl");
    shell.ok("verify adapters core.tl core-peft --tolerance 1e-6");
    shell.ok("merge base core.tl -o one --check-base");
    shell.ok("merge base core-peft -o two");
    for part in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ] {
        let [a, b] = ["one", "two"].map(|d| fs::read(shell.path(&format!("{d}/{part}"))).unwrap());
        assert!(a == b, "{part}");
    }
    shell.ok("verify merged --base base --adapter core.tl --merged one");
    shell.ok("pack core.tl -o packed.tl --zstd");
    shell.ok("store init fleet");
    shell.ok("store put fleet alice/style packed.tl");
    shell.ok("store get fleet alice/style -o back.tl --thin");
    assert!(fs::read(shell.path("back.tl")).unwrap() == fs::read(shell.path("core.tl")).unwrap());
    let run = shell.quiet("train --model base --data task/train.jsonl --train C,u -o no.tl");
    assert_eq!(run.code, 2, "{}", run.stderr);
}

/// Breaks where a killed run does not end with the bytes of an uninterrupted one.
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    for template in ["", "--train A,B,C,v"] {
        killed_and_resumed(template);
    }
}

fn killed_and_resumed(template: &str) {
    let line =
        format!("{TRAIN} {template} --max-steps 40 --eval-every 10 --checkpoint-every 1 -o out.tl");
    let whole = shell();
    whole.ok(&line);
    let killed = shell();
    let mut child = killed
        .command(&line)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let metrics = killed.path("out.tl.run/metrics.jsonl");
    let lines = || fs::read_to_string(&metrics).map_or(0, |t| t.lines().count());
    while lines() < 5 && began.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !killed.path("out.tl").exists(),
        "the run was over before it could be killed"
    );
    killed.ok(&format!("{line} --resume out.tl.run"));
    assert_eq!(
        fs::read(whole.path("out.tl")).unwrap(),
        fs::read(killed.path("out.tl")).unwrap()
    );
}

/// Breaks where a config file means something else than the flags it stands for, or where what is
/// in the way, or misspelt, is found only after hours of training.
#[test]
fn a_config_file_says_all_that_flags_can_and_mistakes_cost_nothing() {
    let shell = shell();
    let config = "model = \"base\"\ndata = \"task/train.jsonl\"\nmethod = \"tl5\"\nmax-steps = 2\n\
        global-batch = 4\noutput = \"c.tl\"\nlayers = \"1-2\"\ntargets = [\"q\", \"o\"]\n";
    fs::write(shell.path("run.toml"), config).unwrap();
    shell.ok("train --config run.toml");
    let by_file = fs::read(shell.path("c.tl")).unwrap();
    shell.ok(
        "train --model base --data task/train.jsonl --method tl5 --max-steps 2 --global-batch 4 \
        -o c.tl --layers 1-2 --targets q,o --force --run-dir other",
    );
    assert_eq!(by_file, fs::read(shell.path("c.tl")).unwrap());

    fs::write(
        shell.path("bad.jsonl"),
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"promt\":1}\n",
    )
    .unwrap();
    for (line, code, says) in [
        ("train --config run.toml", 3, "TL0003"),
        ("train --model base --data bad.jsonl -o d.tl", 4, "line 2"),
        (
            "train --model base --data task/train.jsonl -o d.tl --targets q,z",
            2,
            "`z`",
        ),
        (
            "train --model base --data task/train.jsonl -o d.tl --layers 9",
            2,
            "layers",
        ),
        (
            "train --model base --data task/train.jsonl -o d.tl --lr nan",
            2,
            "lr",
        ),
        (
            "train --model base --data task/train.jsonl -o d.tl --device cuda",
            5,
            "TL0611",
        ),
        ("train --data task/train.jsonl -o d.tl", 2, "model"),
        (
            "train --model base --data missing.jsonl -o d.tl",
            3,
            "missing.jsonl",
        ),
    ] {
        let run = shell.quiet(line);
        assert_eq!(run.code, code, "{line}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{line}: {}", run.stderr);
        assert!(
            !shell.path("d.tl").exists() && !shell.path("d.tl.run").exists(),
            "{line}"
        );
    }
}
