use super::*;

use tlkit::Code;

/// Folder of the shared data, or a line that says the test had nothing to run on.
fn shared(part: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let data = std::env::var_os("TLKIT_SHARED").map_or(beside, PathBuf::from);
    let dir = data.join(part);
    if !dir.is_dir() {
        eprintln!(
            "skipped: no {}; set TLKIT_SHARED to the shared data",
            dir.display()
        );
        return None;
    }
    Some(dir)
}

/// Adapters that PEFT wrote, each with the folder of its base.
fn interop() -> Option<(PathBuf, Vec<(String, PathBuf)>)> {
    let data = shared("peft-interop")?;
    let summary = fs::read(data.join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    let cases: Vec<_> = names(&data.join("adapters"))
        .into_iter()
        .map(|name| {
            let base = data
                .join("bases")
                .join(summary[&name]["base"].as_str().unwrap());
            (name, base)
        })
        .collect();
    assert_eq!(cases.len(), 23);
    Some((data, cases))
}

/// Breaks where one bit of one merge differs from PEFT's, for any kind of adapter, dtype or
/// architecture; or where PiSSA, relative to a base that is not at hand, leaves an output.
#[test]
fn every_merge_is_pefts_bit_for_bit() {
    let Some((data, cases)) = interop() else {
        return;
    };
    let (mut plain, mut safe) = (0, 0);
    for (name, base) in cases {
        let dir = tempfile::tempdir().unwrap();
        let adapter = data.join("adapters").join(&name);
        let expected = data.join("expected").join(&name);
        for (rounding, folder, done) in [
            (Rounding::Peft, "merged", &mut plain),
            (Rounding::PeftSafe, "merged_safe", &mut safe),
        ] {
            let ours = merge(
                &base,
                &[(&adapter, 1.0)],
                &dir.path().join(folder),
                rounding,
            );
            if name == "lora-pissa" {
                assert_eq!(ours.unwrap_err().code(), Code::UnsupportedPissa);
                assert_eq!(names(dir.path()), [""; 0]);
            } else if expected.join(folder).is_dir() {
                let theirs = tensors(&expected.join(folder));
                assert_eq!(
                    first_difference(&ours.unwrap(), &theirs),
                    None,
                    "{name} {folder}"
                );
                *done += 1;
            }
        }
    }
    assert_eq!(plain, 22);
    assert!(safe > 0);
}

/// Breaks where a sampled adapter of some uncommon kind, with its base and what PEFT made of them,
/// merges to other tensors.
#[test]
fn sampled_cases_merge_as_peft_merged_them() {
    let Some(cases) = shared("cases") else {
        return;
    };
    let mut done = 0;
    for name in names(&cases) {
        let case = cases.join(&name);
        if case.join("peft_expected").is_dir() {
            let dir = tempfile::tempdir().unwrap();
            let (adapter, out) = (case.join("adapter"), dir.path().join("out"));
            let base = case.join("base");
            let ours = merge(&base, &[(&adapter, 1.0)], &out, Rounding::Peft)
                .unwrap_or_else(|e| panic!("{name}: {e:?}"));
            let theirs = tensors(&case.join("peft_expected"));
            assert_eq!(first_difference(&ours, &theirs), None, "{name}");
            done += 1;
        }
    }
    assert!(done >= 8);
}

/// Breaks where `.tl`, or the export from it, says something else than the adapter did.
#[test]
fn tl_and_export_merge_to_the_same_bytes_as_the_original() {
    let Some((data, cases)) = interop() else {
        return;
    };
    for (name, base) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n);
        let adapter = data.join("adapters").join(&name);
        let tl = match (to_tl(&adapter, &path("a.tl"), &base), name.as_str()) {
            (Err(e), "lora-dora") => {
                assert_eq!(e.code(), Code::UnsupportedDora);
                continue;
            }
            (Err(e), "lora-pissa") => {
                assert_eq!(e.code(), Code::UnsupportedPissa);
                continue;
            }
            (tl, _) => tl.unwrap(),
        };
        let export = to_peft(&tl, &path("export"), &base, Form::Faithful).unwrap();
        let merged = |from: &Path, rounding| {
            let out = path(&format!(
                "{}-{rounding:?}",
                from.file_name().unwrap().display()
            ));
            merge(&base, &[(from, 1.0)], &out, rounding).unwrap()
        };
        let original = merged(&adapter, Rounding::Peft);
        assert_eq!(
            first_difference(&original, &merged(&tl, Rounding::Peft)),
            None,
            "{name}"
        );
        assert_eq!(
            first_difference(&original, &merged(&export, Rounding::Peft)),
            None,
            "{name}"
        );
        let (from_peft, from_tl) = (
            merged(&adapter, Rounding::PeftSafe),
            merged(&tl, Rounding::PeftSafe),
        );
        assert_eq!(
            first_difference(&from_peft, &from_tl),
            None,
            "{name} peft-safe"
        );
    }
}

/// Breaks where an adapter that people published converts otherwise, or its refusal leaves files.
#[test]
fn published_adapters_convert_or_are_refused() {
    let Some(data) = shared("adapters") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let convert = |name: &str| {
        let out = dir.path().join(format!("{name}.tl"));
        let report = peft_to_tied(&data.join(name), &out, &ToTiedOptions::default());
        report.map(|r| r.max_relative_error).map_err(|e| e.code())
    };
    assert_eq!(convert("bloom-560m-r8-bin"), Err(Code::UnsupportedVariant));
    assert_eq!(names(dir.path()), [""; 0]);
    assert_eq!(convert("mlx-qwen2.5-0.5b-wyek1n"), Ok(0.0));
    assert_eq!(convert("gpt-oss-20b-r4-qv-luster"), Ok(0.0));
    assert_eq!(convert("smollm-135m-r16-qv-medai-ckpt1000"), Ok(0.0));
}
