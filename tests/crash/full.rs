use super::*;

/// Runs the binary from a shell that first does `setup`.
fn shell(site: &Site, setup: &str, line: &str) -> Output {
    let script = format!("{setup}; exec \"$TLKIT\" {line}");
    Command::new("bash")
        .args(["-c", &script])
        .env("TLKIT", env!("CARGO_BIN_EXE_tlkit"))
        .current_dir(&site.dir)
        .output()
        .unwrap()
}

/// No file may grow past 32 MiB (1024-byte units); the signal that comes with it is ignored.
const SHORT: &str = "trap '' XFSZ; ulimit -f 32768";

/// Breaks where a write that fails midway leaves an output, or leftovers, or a changed base.
#[test]
fn a_write_that_fails_leaves_nothing() {
    let _alone = ALONE.lock();
    let site = Site::new();
    let before = site.names();
    let original = content(&site.path("base.safetensors"));
    for line in [
        "merge base.safetensors all.tl -o out.safetensors",
        // The undo file does not fit.
        "merge base.safetensors all.tl --in-place",
        // It fits, and the first layer is written before the last one fails.
        "merge base.safetensors ends.tl --in-place",
    ] {
        let output = shell(&site, SHORT, line);
        assert_eq!(
            (output.status.code(), code(&output).as_str()),
            (Some(3), "TL0001"),
            "{line}"
        );
        assert!(
            content(&site.path("base.safetensors")) == original,
            "{line}"
        );
        assert_eq!(site.names(), before, "{line}");
    }
}

/// Breaks where a full disk is noticed by a half-written output only.
#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let _alone = ALONE.lock();
    let site = Site::new();
    fs::create_dir(site.path("small")).unwrap();
    // In a mount namespace of its own, which ends with the process.
    let mount = "mount -t tmpfs -o size=24m tmpfs small";
    let inside = |line: &str| {
        let script =
            format!("{mount} || exit 99; \"$TLKIT\" {line}; code=$?; ls -A small; exit $code");
        Command::new("unshare")
            .args(["-m", "bash", "-c", &script])
            .env("TLKIT", env!("CARGO_BIN_EXE_tlkit"))
            .current_dir(&site.dir)
            .output()
    };
    match inside("--version") {
        Ok(probe) if probe.status.success() => {}
        _ => {
            eprintln!("skipped: no mount namespace for a small disk (needs root)");
            return;
        }
    }
    let original = content(&site.path("base.safetensors"));
    for line in [
        "merge base.safetensors all.tl -o small/out.safetensors",
        "merge base all.tl -o small/out",
        "merge base.safetensors all.tl --in-place --undo small/undo",
    ] {
        let output = inside(line).unwrap();
        assert_eq!(
            (output.status.code(), code(&output).as_str()),
            (Some(3), "TL0004"),
            "{line}"
        );
        assert_eq!(text(&output.stdout), "", "left on the full disk by {line}");
        assert!(
            content(&site.path("base.safetensors")) == original,
            "{line}"
        );
    }
}
