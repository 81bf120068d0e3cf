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
