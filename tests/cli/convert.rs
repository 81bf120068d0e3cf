use super::{Shell, assert_transcript};

/// Breaks where a kind of adapter is not found for what it is, or the report says it otherwise.
#[test]
fn peft_to_tied_says_what_it_found() {
    let mut shell = Shell::new();
    shell.run("convert peft-to-tied lora -o lora.tl");
    shell.run("convert peft→tied style -o recovered.tl --base base");
    shell.run("convert peft->tied vera -o vera.tl --zstd");
    assert_transcript!(shell);
}

/// Breaks where a fit is reported otherwise, or its result is not what `verify` finds.
#[test]
fn peft_to_tied_fits_what_is_not_tied() {
    let mut shell = Shell::new();
    shell.run("convert peft-to-tied lora -o r2.tl --fit --rank 2");
    shell.run("convert peft-to-tied lora -o joint.tl --fit --rank 3 --joint");
    shell.run("convert peft-to-tied lora -o close.tl --fit --tolerance 0.3");
    shell.run("verify adapters lora close.tl --tolerance 1");
    shell.run("convert peft-to-tied lora -o none.tl --fit");
    shell.run("convert peft-to-tied lora -o none.tl --rank 2");
    shell.run("convert peft-to-tied lora -o none.tl --fit --tolerance 7");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where a fit with cores, one that is stored in eight bits or a quick one is told otherwise, or the other
/// commands do not take it.
#[test]
fn peft_to_tied_with_cores_and_in_int8() {
    let mut shell = Shell::new();
    shell.run("convert peft-to-tied lora -o core.tl --fit --rank 2 --core");
    shell.run("convert peft-to-tied lora -o int8.tl --fit --rank 3 --joint --dtype int8");
    shell.run("convert peft-to-tied lora -o both.tl --fit --tolerance 0.5 --core --dtype bf16");
    shell.run("convert peft-to-tied lora -o quick.tl --fit --max-bytes 6kB --quick");
    for name in ["core", "int8", "both", "quick"] {
        shell.ok(&format!("verify file {name}.tl"));
        shell.ok(&format!("merge base {name}.tl -o merged-{name}"));
        shell.ok(&format!("convert tied-to-peft {name}.tl -o peft-{name}"));
        shell.ok(&format!(
            "verify merged --base base --adapter peft-{name} --merged merged-{name}"
        ));
    }
    shell.run("convert peft-to-tied lora -o none.tl --fit --max-bytes 6kB --core");
    shell.run("convert peft-to-tied lora -o none.tl --fit --rank 2 --dtype int4");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where a file passes its budget of bytes, or a curve is told or drawn otherwise, writes an
/// adapter, or replaces a picture unasked.
#[test]
fn peft_to_tied_within_bytes_and_along_a_curve() {
    let mut shell = Shell::new();
    shell.run("convert peft-to-tied lora -o small.tl --fit --max-bytes 6kB");
    assert!(std::fs::metadata(shell.path("small.tl")).unwrap().len() <= 6000);
    shell.run("convert peft-to-tied lora -o none.tl --fit --max-bytes 2000");
    shell.run("convert peft-to-tied lora -o none.tl --fit --max-bytes much");
    let before = shell.files().len();
    shell.run("convert peft-to-tied lora --fit --curve");
    assert_eq!(shell.files().len(), before);
    shell.run("convert peft-to-tied lora --fit --joint --curve=curve.svg");
    let svg = std::fs::read_to_string(shell.path("curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("LoRA, largest terms"));
    shell.run("convert peft-to-tied lora --fit --curve=curve.svg");
    shell.run("convert peft-to-tied lora -o none.tl --fit --curve");
    shell.run("convert peft-to-tied lora");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where a LoRA that stays untied is told otherwise, passes its bytes, or the other commands do not
/// take it.
#[test]
fn peft_to_tied_shrinks_what_should_not_be_tied() {
    let mut shell = Shell::new();
    shell.run("convert peft-to-tied lora -o small.tl --fit --untied --max-bytes 10kB --base base");
    assert!(std::fs::metadata(shell.path("small.tl")).unwrap().len() <= 10_000);
    shell.run("convert peft-to-tied lora -o close.tl --fit --untied --tolerance 0.3 --dtype bf16");
    shell.run("verify adapters lora close.tl --tolerance 0.9");
    for name in ["small", "close"] {
        shell.ok(&format!("verify file {name}.tl"));
        shell.ok(&format!("merge base {name}.tl -o merged-{name}"));
        shell.ok(&format!("convert tied-to-peft {name}.tl -o peft-{name}"));
        shell.ok(&format!(
            "verify merged --base base --adapter peft-{name} --merged merged-{name}"
        ));
    }
    shell.ok("merge base small.tl -o checked --check-base");
    shell.run("convert peft-to-tied lora -o none.tl --fit --untied --max-bytes 1kB");
    shell.run("convert peft-to-tied lora -o none.tl --fit --untied --rank 2 --joint");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where adapters do not share one pair of blobs, a file over them does not open or is not what
/// the report says, one that is not served is changed, or another folder is replaced.
#[test]
fn peft_to_tied_shares_a_and_b_between_adapters() {
    let mut shell = Shell::new();
    shell.adapter("lora", "half", "\"lora_alpha\": 8", "\"lora_alpha\": 4");
    shell.adapter("lora", "double", "\"lora_alpha\": 8", "\"lora_alpha\": 16");
    shell.run("convert peft-to-tied lora half vera -o all --fit --share --rank 12");
    shell.run("verify file all/half.tl --blobs all/blobs");
    shell.run("verify adapters half all/half.tl --blobs all/blobs --tolerance 0.5");
    shell.run("verify adapters vera all/vera.tl");
    shell.run("convert peft-to-tied double -o double.tl --onto all/half.tl --blobs all/blobs");
    shell.run("verify adapters double double.tl --blobs all/blobs --tolerance 0.5");
    shell.run("convert peft-to-tied double -o fat.tl --onto double.tl");
    for line in [
        "lora half -o some.tl",
        "lora half -o some.tl --fit --rank 4",
        "lora -o one --fit --share --rank 4",
        "lora half -o some --fit --share --rank 2 --apart 0.1",
        "lora half -o some --fit --share --tolerance 0.1",
        "lora vera -o some --fit --share --rank 12",
        "lora half lora -o some --fit --share --rank 2",
        "lora half -o all --fit --share --rank 2",
        "lora half -o base --fit --share --rank 2 --force",
        "vera -o vera.tl --onto style.tl",
    ] {
        shell.run(&format!("convert peft-to-tied {line}"));
    }
    assert!(shell.path("base/config.json").exists());
    assert!(!shell.path("some").exists() && !shell.path("some.tl").exists());
    shell.run("convert peft-to-tied lora half -o all --fit --share --rank 12 --force");
    assert!(!shell.path("all/vera.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where a coded fit is off by more than is told, a shared A is coded twice, a fleet's error is not that of all
/// together, or a request that says two things is taken.
#[test]
fn peft_to_tied_codes_what_it_writes() {
    let shell = Shell::new();
    shell.adapter("lora", "half", "\"lora_alpha\": 8", "\"lora_alpha\": 4");
    let json = |line: &str| -> serde_json::Value {
        let run = shell.quiet(&format!("convert peft-to-tied {line} --json"));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let number = |of: &serde_json::Value| of.as_f64().unwrap();
    let one = json("lora -o one.tl --fit --untied --coded --error 0.1");
    assert!((0.09..=0.1).contains(&number(&one["error"])), "{one}");
    let packed = shell
        .quiet("pack lora -o packed.tl --error 0.1 --json")
        .stdout;
    let packed: serde_json::Value = serde_json::from_str(&packed).unwrap();
    assert_eq!(one["root"], packed["root"]);
    let fit = json("lora -o fit.tl --fit --rank 4 --core --coded --error 0.1");
    let plain = json("lora -o plain.tl --fit --rank 4 --core");
    let (before, added) = (number(&plain["error"]), number(&fit["coded"]["error"]));
    let together = (before.powi(2) + (1.0 - before.powi(2)) * added.powi(2)).sqrt();
    assert!(
        (number(&fit["error"]) / together - 1.0).abs() < 0.02,
        "{fit}"
    );
    assert!(number(&fit["file_bytes"]) < 0.5 * number(&plain["file_bytes"]));
    let fleet = json("lora half -o fleet --fit --untied --coded --error 0.1");
    let errors = [0, 1].map(|i| number(&fleet["adapters"][i]["error"]));
    // Of half the size, it gets fewer bits.
    assert!(errors[0] < 0.1 && errors[1] > 0.11, "{fleet}");
    let all = ((4.0 * errors[0].powi(2) + errors[1].powi(2)) / 5.0).sqrt();
    assert!(
        (all / number(&fleet["error"]) - 1.0).abs() < 1e-3,
        "{fleet}"
    );
    shell.ok("verify adapters half fleet/half.tl --tolerance 0.2");
    let shared = json("lora half -o shared --fit --share --rank 12 --coded --error 0.05");
    assert_eq!(shared["blob_bytes"], shared["coded"]["shared_bytes"]);
    assert_eq!(shared["bytes"], shared["coded"]["file_bytes"]);
    shell.ok("verify file shared/half.tl --blobs shared/blobs");
    shell.ok("verify adapters half shared/half.tl --blobs shared/blobs --tolerance 0.6");
    for line in [
        "lora -o x.tl --fit --untied --coded --rank 2 --error 0.1",
        "lora -o x.tl --fit --coded --error 0.1",
        "lora -o x.tl --fit --rank 2 --coded",
        "lora -o x.tl --fit --rank 2 --max-bytes 8kB",
        "lora -o x.tl --fit --rank 2 --error 0.1",
    ] {
        assert_eq!(
            shell.quiet(&format!("convert peft-to-tied {line}")).code,
            2,
            "{line}"
        );
    }
}

/// Breaks where the comparison on held-out texts is told otherwise, or a request that cannot be met
/// is taken.
#[test]
fn peft_to_tied_fits_to_texts() {
    let mut shell = super::train::shell();
    const FIT: &str = "convert peft-to-tied lora --fit --rank 3";
    shell.run(&format!(
        "{FIT} -o texts.tl --calibrate task/train.jsonl --model base --limit 60"
    ));
    std::fs::write(shell.path("few.jsonl"), "{\"text\":\"say\"}\n").unwrap();
    for line in [
        "--calibrate task/train.jsonl",
        "--distill",
        "--calibrate few.jsonl --model base",
        "--calibrate task/train.jsonl --model lora",
        "--calibrate task/train.jsonl --model base --distill --distill-lr=-1",
        "--calibrate task/train.jsonl --model base --device gpu",
    ] {
        shell.run(&format!("{FIT} -o none.tl {line}"));
    }
    shell.run(&format!(
        "{FIT} -o texts.tl --calibrate task/train.jsonl --model base"
    ));
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where a coded file is not what the comparison on texts says, texts change what is not coded to them, or flags that
/// mean nothing together are taken.
#[test]
fn coded_adapters_are_compared_on_texts() {
    let shell = super::train::shell();
    let json = |line: &str| -> serde_json::Value {
        let run = shell.quiet(&format!(
            "{line} --model base --limit 20 --seq-len 24 --json"
        ));
        assert_eq!(
            (run.code, run.stderr.as_str()),
            (0, ""),
            "{line}: {}",
            run.stdout
        );
        serde_json::from_str(&run.stdout).unwrap()
    };
    let number = |v: &serde_json::Value| v.as_f64().unwrap();
    const TEXTS: &str = "--calibrate task/train.jsonl --valid task/valid.jsonl";
    let packed = json(&format!("pack lora -o packed.tl --error 0.2 {TEXTS}"));
    let texts = &packed["calibration"];
    assert_eq!(
        (&texts["fitted_on"], &texts["held_out"]),
        (&20.into(), &20.into())
    );
    assert_eq!(texts["kept"], "calibrated");
    let outputs = number(&packed["output_error"]);
    assert!(outputs <= 0.2 && outputs > 0.17, "{packed}");
    assert_eq!(texts["calibrated"]["output_error"], packed["output_error"]);
    assert_eq!(texts["calibrated"]["error"], packed["error"]);
    assert!(
        number(&texts["plain"]["output_error"]) > outputs,
        "{packed}"
    );
    assert!(
        number(&packed["error"]) > number(&texts["plain"]["error"]),
        "{packed}"
    );
    assert!(
        number(&texts["calibrated"]["kl"]) < number(&texts["base"]["kl"]),
        "{packed}"
    );
    let same = json(&format!(
        "convert peft-to-tied lora -o coded.tl --fit --untied --coded --error 0.2 {TEXTS}"
    ));
    assert_eq!(same["output_error"], packed["output_error"]);
    shell.ok("verify adapters packed.tl coded.tl --tolerance 0");

    const VALID: &str = "--valid task/valid.jsonl";
    let compared = json(&format!("pack lora -o compared.tl --error 0.1 {VALID}"));
    shell.ok("pack lora -o alone.tl --error 0.1");
    let read = |name: &str| std::fs::read(shell.path(name)).unwrap();
    assert!(read("compared.tl") == read("alone.tl"));
    assert_eq!(compared["calibration"]["kept"], "plain");
    assert_eq!(compared["calibration"]["plain"]["error"], compared["error"]);
    assert!(compared["calibration"].get("calibrated").is_none());
    let fit = json(&format!(
        "convert peft-to-tied lora -o fit.tl --fit --rank 3 --quick --coded --error 0.1 {VALID}"
    ));
    assert_eq!(fit["calibration"]["plain"]["error"], fit["error"]);
    let run = shell.quiet("pack lora -o compared.tl --force --error 0.1 --model base --limit 4 --valid task/valid.jsonl");
    assert!(
        run.stdout.contains("coded to the updates (written)"),
        "{}",
        run.stdout
    );
    for line in [
        "pack lora -o x.tl --error 0.1 --valid task/valid.jsonl",
        "pack lora -o x.tl --error 0.1 --model base",
        "pack coded.tl -o x.tl --model base --valid task/valid.jsonl",
        "pack coded.tl -o x.tl --model base --calibrate task/train.jsonl",
        "pack style.tl -o x.tl --error 0.1 --model base --limit 10 --calibrate task/train.jsonl",
        "convert peft-to-tied lora -o x.tl --fit --rank 2 --model base --valid task/valid.jsonl",
        "convert peft-to-tied lora -o x.tl --fit --untied --rank 2 --model base --calibrate task/train.jsonl",
        "convert peft-to-tied lora vera -o x --fit --untied --coded --error 0.1 --model base --valid task/valid.jsonl",
    ] {
        let run = shell.quiet(line);
        assert_eq!(run.code, 2, "{line}: {}{}", run.stdout, run.stderr);
    }
    assert!(!shell.path("x.tl").exists() && !shell.path("x").exists());
}

/// Breaks where what is written is not the adapter that the comparison names, a distilled adapter
/// is farther from the LoRA than the fit it began with, or texts that were given to compare on are
/// not those compared on.
#[test]
fn the_nearest_of_three_adapters_is_written() {
    let shell = super::train::shell();
    let run = shell.quiet(
        "convert peft-to-tied lora -o d.tl --fit --rank 3 --joint --model base --limit 40 \
         --calibrate task/train.jsonl --valid task/valid.jsonl --distill=10 --distill-lr 0.002 --json",
    );
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{}", run.stdout);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let texts = &report["calibration"];
    assert_eq!(
        (&texts["fitted_on"], &texts["held_out"]),
        (&40.into(), &40.into())
    );
    let kl = |stage: &str| texts[stage]["kl"].as_f64().unwrap();
    assert_eq!(texts["kept"], "distilled");
    assert!(
        kl("distilled") < kl("calibrated").min(kl("plain")),
        "{texts}"
    );
    assert_eq!(report["error"], texts["distilled"]["error"]);
    let verify = shell.quiet("verify adapters lora d.tl --tolerance 1 --json");
    let verify: serde_json::Value = serde_json::from_str(&verify.stdout).unwrap();
    let (mut off, mut norm) = (0.0, 0.0);
    for target in verify["targets"].as_array().unwrap() {
        let n = target["norm"].as_f64().unwrap();
        off += (n * target["relative"].as_f64().unwrap()).powi(2);
        norm += n * n;
    }
    let error = report["error"].as_f64().unwrap();
    assert!(
        (error - (off / norm).sqrt()).abs() < 1e-6,
        "{error} {verify}"
    );
}

/// Breaks where an export changes its form, or `--as vera` writes what VeRA cannot say.
#[test]
fn tied_to_peft_in_each_form() {
    let mut shell = Shell::new();
    shell.ok("convert peft-to-tied vera -o vera.tl");
    shell.run("convert tied-to-peft style.tl -o faithful");
    shell.run("convert tied-to-peft style.tl -o portable --portable --dtype bf16");
    shell.run("convert tied→peft vera.tl -o vera-again --as vera --base base");
    shell.run("convert tied-to-peft style.tl -o refused --as vera");
    assert!(!shell.path("refused").exists());
    assert_transcript!(shell);
}

/// Breaks where a storage type is not told as another adapter, or what is written is not what the
/// other commands take for it.
#[test]
fn pack_in_every_type() {
    let mut shell = Shell::new();
    for dtype in ["f32", "bf16", "f16", "int8"] {
        shell.run(&format!("pack style.tl -o {dtype}.tl --dtype {dtype}"));
        shell.ok(&format!("verify file {dtype}.tl"));
        shell.ok(&format!("convert tied-to-peft {dtype}.tl -o peft-{dtype}"));
        shell.ok(&format!("merge base {dtype}.tl -o a-{dtype}"));
        shell.ok(&format!("merge base peft-{dtype} -o b-{dtype}"));
        shell.ok(&format!(
            "verify merged --base base --adapter {dtype}.tl --merged b-{dtype}"
        ));
    }
    shell.run("verify adapters style.tl int8.tl --tolerance 0.01");
    shell.run("inspect int8.tl --tensors");
    shell.run("pack style.tl -o no.tl --dtype int4");
    assert_transcript!(shell);
}

/// Breaks where a coded adapter is not what the other commands take for it, or a target is not kept.
#[test]
fn pack_codes_to_an_error_or_a_size() {
    let shell = Shell::new();
    let packed = |line: &str| -> serde_json::Value {
        let run = shell.quiet(&format!("pack {line} --json"));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let number = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    let coded = packed("lora -o coded.tl --error 0.05");
    assert!(number(&coded, "error") <= 0.05 && number(&coded, "gap") > 0.0);
    shell.ok("verify adapters lora coded.tl --tolerance 0.1");
    shell.ok("verify file coded.tl");
    shell.ok("convert tied-to-peft coded.tl -o peft-coded");
    shell.ok("merge base coded.tl -o a-coded");
    shell.ok("merge base peft-coded -o b-coded");
    shell.ok("verify merged --base base --adapter coded.tl --merged b-coded");
    // What is coded is coded again, or stored in floats.
    let small = packed("coded.tl -o small.tl --max-bytes 2500");
    assert!(number(&small, "bytes_after") <= 2500.0);
    let bits = packed("lora -o bits.tl --bits 12 --zstd");
    assert!(number(&bits, "bits") <= 12.0);
    shell.ok("pack coded.tl -o floats.tl --dtype f32");
    shell.ok("verify adapters coded.tl floats.tl --tolerance 0");
    packed("style.tl -o tied.tl --error 0.02");
    shell.ok("verify adapters style.tl tied.tl --tolerance 0.1");
    packed("style.tl -o exact.tl --exact");
    shell.ok("verify adapters style.tl exact.tl --tolerance 0");
    shell.ok("inspect coded.tl --tensors");
    shell.ok("audit coded.tl small.tl lora");
    let refused = |line: &str| assert_eq!(shell.quiet(&format!("pack {line}")).code, 2, "{line}");
    refused("lora -o no.tl --error 2");
    refused("lora -o no.tl --max-bytes 100");
    refused("lora -o no.tl --error 0.05 --dtype f16");
    assert!(shell.quiet("pack lora -o no.tl").code != 0);
    assert!(!shell.path("no.tl").exists());
}

/// Breaks where a form of packing loses something: all of them have one root.
#[test]
fn pack_thin_and_compressed() {
    let mut shell = Shell::new();
    shell.run("pack style.tl -o small.tl --zstd");
    shell.run("pack style.tl -o thin.tl --thin --blobs blobs");
    shell.run("pack style.tl -o both.tl --thin --zstd --blobs blobs");
    shell.run("verify file thin.tl");
    shell.run("verify file thin.tl --blobs blobs");
    shell.run("pack both.tl -o fat.tl --blobs blobs");
    assert_eq!(
        std::fs::read(shell.path("fat.tl")).unwrap(),
        std::fs::read(shell.path("style.tl")).unwrap()
    );
    assert_transcript!(shell);
}
