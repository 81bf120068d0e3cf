use std::fs;
use std::path::Path;

use super::{Shell, assert_transcript, copy_dir};

/// `fleet/` with two users, two tasks, a `.tl`, leftovers of training and a broken adapter.
fn fleet() -> Shell {
    let shell = Shell::new();
    for (from, to) in [
        ("lora", "fleet/ann/sum"),
        ("vera", "fleet/ann/qa"),
        ("style", "fleet/bob/sum"),
        ("vera", "fleet/bob/qa"),
    ] {
        copy_dir(&shell.path(from), &shell.path(to));
    }
    let at = |name: &str| shell.path("fleet").join(name);
    fs::copy(shell.path("style.tl"), at("bob/style.tl")).unwrap();
    fs::write(at("ann/sum/optimizer.pt"), [0; 5000]).unwrap();
    fs::write(at("ann/sum/model.safetensors"), [0; 70_000]).unwrap();
    fs::write(at("README.md"), "ours").unwrap();
    copy_dir(&shell.path("lora"), &at("eve/cut"));
    fs::write(at("eve/cut/adapter_model.safetensors"), [1; 20]).unwrap();
    shell
}

/// Breaks where a number, its name or its unit changes, or a broken file ends the audit.
#[test]
fn a_fleet() {
    let mut shell = fleet();
    shell.run("audit fleet --template {user}/{task}");
    shell.run("audit fleet/ann --hash --measure --requests 1000000 --price-requests 0.005");
    shell.run("audit fleet --strict --csv rows.csv --owners owners.csv");
    fs::write(shell.path("owners.csv"), "path,user,task\nann/sum,Ann,s\n").unwrap();
    let run = shell.quiet("audit fleet --strict --csv rows.csv --owners owners.csv");
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stderr.contains("TL0804"), "{}", run.stderr);
    let rows = fs::read_to_string(shell.path("rows.csv")).unwrap();
    assert_eq!(rows.lines().count(), 7);
    assert!(rows.contains("fleet/ann/sum,peft,lora,Ann,s,"), "{rows}");
    assert!(rows.contains("TL0101") || rows.contains("TL0102"), "{rows}");
    assert_transcript!(shell);
}

/// Breaks where a base at hand is not told for what it is: plain, quantised, quantised in a way that is not read, or
/// known by its config only; or where another base is taken for it.
#[test]
fn bases_at_hand_say_what_they_are() {
    let mut shell = Shell::new();
    let quant = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant");
    for (from, base) in [
        ("gptq-4bit", "bases/small-gptq"),
        ("bnb-nf4", "cache/models--org--small/snapshots/1"),
    ] {
        copy_dir(&quant.join(from), &shell.path(base));
    }
    for (base, config) in [
        (
            "bases/odd",
            r#"{"quantization_config": {"quant_method": "hqq"}}"#,
        ),
        (
            "bases/weightless",
            r#"{"quantization_config": {"quant_method": "awq", "bits": 4}}"#,
        ),
    ] {
        fs::create_dir_all(shell.path(base)).unwrap();
        fs::write(shell.path(base).join("config.json"), config).unwrap();
    }
    copy_dir(&shell.path("base"), &shell.path("bases/plain"));
    let norm = shell.path("bases/odd/model.safetensors");
    fs::copy(quant.join("gptq-4bit/model.safetensors"), norm).unwrap();
    let here = shell.path("bases/plain").display().to_string();
    for (adapter, base) in [
        ("a", "any/small-GPTQ"),
        ("b", "org/small"),
        ("c", "odd"),
        ("d", "weightless"),
        ("e", here.as_str()),
        ("f", "org/Plain"),
        ("g", "org/small-awq"),
    ] {
        let to = shell.path("fleet").join(adapter);
        copy_dir(&shell.path("lora"), &to);
        let config = fs::read_to_string(to.join("adapter_config.json")).unwrap();
        let config = config.replace("\"llama-tiny\"", &format!("{base:?}"));
        fs::write(to.join("adapter_config.json"), config).unwrap();
    }
    let line = "audit fleet --base bases/small-gptq --base cache/models--org--small/snapshots/1 \
        --base bases/odd --base bases/weightless --base bases/plain";
    let run = shell.quiet(&format!("{line} --json"));
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let stored: Vec<_> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["base_stored"].as_str())
        .collect();
    assert_eq!(
        stored,
        [
            Some("GPTQ 4 bit"),
            Some("bitsandbytes nf4"),
            Some("quantised by HQQ, which is not read"),
            Some("awq, by its config"),
            Some("plain"),
            Some("plain"),
            None,
        ]
    );
    let run = shell.quiet(line);
    let over = run
        .stdout
        .lines()
        .find(|l| l.starts_with("trained over"))
        .unwrap();
    assert!(
        over.contains("1 GPTQ 4 bit") && over.contains("2 plain"),
        "{over}"
    );
    assert!(
        over.contains("1 AWQ, by the names of their bases"),
        "{over}"
    );
    shell.run("audit fleet --base bases/absent");
    shell.run("audit fleet --base fleet/a");
    assert_transcript!(shell);
}

/// Breaks where what is wrong with the options or the folder has another code.
#[test]
fn what_an_audit_refuses() {
    let mut shell = fleet();
    fs::create_dir(shell.path("empty")).unwrap();
    fs::write(shell.path("owners.csv"), "path,user\na,b\n").unwrap();
    fs::write(shell.path("rows.csv"), "").unwrap();
    shell.run("audit empty");
    shell.run("audit absent");
    shell.run("audit fleet --template {user}{task}");
    shell.run("audit fleet --owners owners.csv");
    shell.run("audit lora --csv rows.csv");
    assert_transcript!(shell);
}

/// Breaks where the numbers of a JSON report are not those of its rows.
#[test]
fn json_adds_up() {
    let shell = fleet();
    let run = shell.quiet("audit fleet --template {user}/{task} --json");
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let bytes: u64 = rows.iter().map(|r| r["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["schema"], "tlkit-audit/1");
    assert_eq!(report["total"]["bytes"], bytes);
    assert_eq!(report["bytes"], bytes + 4);
    assert_eq!(report["total"]["broken"], 1);
    for scenario in report["scenarios"].as_array().unwrap() {
        let number = |key: &str| scenario[key].as_i64().unwrap();
        assert_eq!(number("saving"), number("bytes_now") - number("bytes"));
        let kind = scenario["quality"]["kind"].as_str().unwrap();
        match scenario["name"].as_str().unwrap() {
            "thin" | "zstd" => assert_eq!(kind, "exact"),
            "fp16" | "bf16" => assert!(scenario["quality"]["bound"].as_f64().unwrap() > 0.0),
            _ => assert_eq!(
                (kind, scenario["quality"]["error"].is_null()),
                ("retrain", true)
            ),
        }
    }
}

/// Breaks where a fit that an audit tells is not what the conversion writes, its error is left out,
/// or a LoRA that has none is passed over.
#[test]
fn fits_are_what_a_conversion_gives() {
    let mut shell = Shell::new();
    copy_dir(&shell.path("lora"), &shell.path("fleet/ann/sum"));
    copy_dir(&shell.path("style"), &shell.path("fleet/bob/sum"));
    copy_dir(&shell.path("vera"), &shell.path("fleet/bob/qa"));
    one_layer(&shell.path("lora"), &shell.path("fleet/eve/sum"));
    shell.run("audit fleet --fit");
    let run = shell.quiet("audit fleet --fit=3 --json");
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["unfitted"].as_array().unwrap().len(), 0, "only 3");
    for (row, path, found) in [(0, "ann/sum", 2), (2, "bob/sum", 1)] {
        let row = &report["rows"][row];
        let scenarios = row["what_if"].as_array().unwrap();
        let fits: Vec<_> = scenarios.iter().filter(|s| s["name"] == "fit").collect();
        assert_eq!(fits.len(), found, "{scenarios:?}");
        for (at, fit) in fits.iter().enumerate() {
            let flags = match (found, fit["joint"] == true) {
                (1, _) => String::new(),
                (_, false) => format!("--fit --rank {}", row["rank"]),
                (_, true) => format!("--fit --joint --rank {}", row["rank"]),
            };
            let out = format!("{}{at}.tl", path.replace('/', "-"));
            let line = format!("convert peft-to-tied fleet/{path} -o {out} {flags} --json");
            let converted: serde_json::Value =
                serde_json::from_str(&shell.quiet(&line).stdout).unwrap();
            let file = fs::metadata(shell.path(&out)).unwrap().len();
            assert_eq!(fit["bytes"], file, "{line}");
            let error = match found {
                1 => &converted["max_relative_error"],
                _ => &converted["error"],
            };
            assert_eq!(&fit["quality"]["error"], error, "{line}");
        }
    }
    assert_transcript!(shell);
}

/// Breaks where what an audit tells of coded, int8 or truncated forms is not what the commands write, a store or a
/// `.tl` is passed over, or what is coded already is coded again.
#[test]
fn coded_forms_are_what_the_commands_write() {
    let shell = Shell::new();
    one_layer(&shell.path("lora"), &shell.path("fleet/ann/sum"));
    fs::copy(shell.path("style.tl"), shell.path("fleet/ann/style.tl")).unwrap();
    shell.quiet("pack fleet/ann/sum -o fleet/ann/zcoded.tl --error 0.05");
    shell.quiet("store init fleet/store");
    shell.quiet("store put fleet/store bob/sum fleet/ann/sum");
    let json = |line: &str| -> serde_json::Value {
        serde_json::from_str(&shell.quiet(line).stdout).unwrap()
    };
    let unmeasured = json("audit fleet --json");
    assert_eq!(unmeasured["unmeasured"], 3);
    let report = json("audit fleet --fit --csv rows.csv --json");
    assert_eq!(report["unmeasured"], 0);
    // One layer cannot be tied to others.
    assert_eq!(report["unfitted"].as_array().unwrap().len(), 1);
    let first: Vec<_> = (0..4)
        .map(|n| report["scenarios"][n]["name"].as_str().unwrap())
        .collect();
    assert_eq!(first, ["coded-1", "coded-5", "coded-10", "thin"]);
    let row = |path: &str| {
        let mut rows = report["rows"].as_array().unwrap().iter();
        rows.find(|r| r["path"] == path).unwrap()
    };
    let form = |row: &serde_json::Value, name: &str| {
        let mut forms = row["what_if"].as_array().unwrap().iter();
        forms.find(|s| s["name"] == name).cloned()
    };
    for (name, line) in [
        ("coded-1", "pack fleet/ann/sum -o a.tl --error 0.01"),
        ("coded-5", "pack fleet/ann/sum -o b.tl --error 0.05"),
        ("coded-10", "pack fleet/ann/sum -o c.tl --error 0.1"),
        (
            "truncated-10",
            "convert peft-to-tied fleet/ann/sum -o d.tl --fit --untied --tolerance 0.1 --dtype f16",
        ),
    ] {
        let told = form(row("fleet/ann/sum"), name).unwrap();
        let written = json(&format!("{line} --json"));
        assert_eq!(told["quality"]["error"], written["error"], "{name}");
        let file = line
            .split_whitespace()
            .find(|w| w.ends_with(".tl"))
            .unwrap();
        assert_eq!(
            told["bytes"],
            fs::metadata(shell.path(file)).unwrap().len(),
            "{name}"
        );
        let stored = form(row("fleet/store#bob/sum@1"), name).unwrap();
        assert_eq!(
            (&stored["bytes"], &stored["quality"]),
            (&told["bytes"], &told["quality"])
        );
    }
    shell.quiet("convert peft-to-tied fleet/ann/sum -o lora.tl");
    shell.quiet("pack lora.tl -o int8.tl --dtype int8");
    let int8 = form(row("fleet/ann/sum"), "int8").unwrap();
    assert_eq!(
        int8["bytes"],
        fs::metadata(shell.path("int8.tl")).unwrap().len()
    );
    let style = row("fleet/ann/style.tl");
    assert!(
        form(style, "coded-5").is_some() && form(style, "truncated-5").is_none(),
        "{style}"
    );
    let again = row("fleet/ann/zcoded.tl");
    assert_eq!(
        (&again["dtype"], &again["waste"]["dtype"]),
        (&"coded".into(), &0.into())
    );
    assert!(form(again, "coded-5").is_none(), "{again}");
    let rows = fs::read_to_string(shell.path("rows.csv")).unwrap();
    assert!(
        rows.lines()
            .next()
            .unwrap()
            .ends_with(",coded_10_bytes,coded_10_error"),
        "{rows}"
    );
    for scenario in report["scenarios"].as_array().unwrap() {
        let bound = scenario["bound_bytes"].as_u64();
        let coded = scenario["name"].as_str().unwrap().starts_with("coded");
        assert_eq!(
            bound.is_some_and(|b| b < scenario["bytes"].as_u64().unwrap()),
            coded
        );
    }
}

/// A copy of a LoRA with the tensors of layer 0 alone.
fn one_layer(from: &Path, to: &Path) {
    copy_dir(from, to);
    let file = to.join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = all.iter().filter(|(name, _)| name.contains(".layers.0."));
    fs::write(&file, safetensors::serialize(kept, None).unwrap()).unwrap();
}

/// Breaks where a plan's numbers are not those of the paper's formulas.
#[test]
fn a_plan_without_files() {
    let mut shell = Shell::new();
    shell.run("plan --users 10000 --tasks 5 --model llama-2-7b");
    shell.run(
        "plan --users 3 --model base --rank 4 --dtype f32 --requests 2000 --price-requests 0.4",
    );
    shell.run("plan --users 3 --model gpt-9");
    let plan = shell.quiet("plan --users 3 --model base --rank 4 --like lora --json");
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let packed = shell.quiet("pack lora -o b.tl --error 0.05 --json");
    let packed: serde_json::Value = serde_json::from_str(&packed.stdout).unwrap();
    let coded = &plan["coded"][1];
    for key in ["error", "bits", "bound"] {
        assert_eq!(coded[key], packed[key], "{key}");
    }
    let bytes =
        packed["bits"].as_f64().unwrap() * plan["forms"][0]["parameters"].as_f64().unwrap() / 8.0;
    assert_eq!(coded["adapter_bytes"], bytes.ceil() as u64);
    assert_transcript!(shell);
}
