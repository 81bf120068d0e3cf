//! Bases that store weights quantised.

use super::*;
use crate::verify::verify_merged;

fn fixture(name: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant");
    Checkpoint::open(folder.join(name)).unwrap()
}

fn written(plan: &MergePlan<'_>, out: &Path) -> MergeReport {
    execute(plan, out, &ExecOptions::default(), &Control::default()).unwrap()
}

/// Breaks where a merge adds to other numbers than those that are written without one, or where a
/// companion, the config's words or a name of its own stay behind.
#[test]
fn a_merge_adds_to_what_is_written_dequantised() {
    for (name, out, n) in [
        ("bnb-nf4-nested", 16, 64),
        ("bnb-int8", 12, 48),
        ("fp8-blocks", 16, 32),
        ("gptq-4bit-act-v2", 32, 64),
        ("awq", 32, 64),
        ("ct-int4-packed-asymmetric", 16, 64),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture(name);
        let adapters = [input(vec![lora(
            "layers.0.q_proj",
            out,
            n,
            ModuleKind::Linear,
            7,
        )])];
        for dtype in [None, Some(Dtype::F16), Some(Dtype::F32)] {
            let path = |what: &str| dir.path().join(format!("{what}-{dtype:?}"));
            let options = PlanOptions {
                dtype,
                ..PlanOptions::default()
            };
            let (plain, direct, after) = (path("plain"), path("direct"), path("after"));
            let alone = plan_dequantised(&base, &options).unwrap();
            assert!(written(&alone, &plain).tensors.is_empty());
            let merging = plan(&base, &adapters, &options).unwrap();
            let report = written(&merging, &direct);
            assert_eq!(report.tensors.len(), 1, "{name}");
            let dequantised = Checkpoint::open(&plain).unwrap();
            let second = plan(&dequantised, &adapters, &PlanOptions::default()).unwrap();
            written(&second, &after);
            let (got, want) = (read(&direct), read(&after));
            assert!(got.keys().eq(want.keys()), "{name}");
            assert!(got.iter().all(|(n, t)| t.same_bytes(&want[n])), "{name}");
            let config = fs::read_to_string(direct.join("config.json")).unwrap();
            assert!(!config.contains("quantization_config"));
            let merged = Checkpoint::open(&direct).unwrap();
            let asked = PlanOptions::default();
            let verified = verify_merged(&base, &adapters, &merged, &asked, &Control::default());
            assert!(verified.unwrap().is_equal(0), "{name} {dtype:?}");
        }
    }
}

/// Breaks where the index of a sharded base still names what is not written, or misses what is.
#[test]
fn the_index_names_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let one = fixture("gptq-4bit");
    // Codes and scales in different shards.
    let file = &one.shards()[0];
    let tensors: Vec<(String, Tensor)> = file
        .header()
        .tensors
        .iter()
        .map(|info| (info.name.clone(), file.mapped(info).unwrap()))
        .collect();
    let bench = Bench::model(&tensors, 2, Some("{}"));
    let folder = &bench.base;
    fs::copy(one.folder().join("config.json"), folder.join("config.json")).unwrap();
    let base = Checkpoint::open(folder).unwrap();
    let (sharded, single) = (dir.path().join("sharded"), dir.path().join("single"));
    written(
        &plan_dequantised(&base, &PlanOptions::default()).unwrap(),
        &sharded,
    );
    written(
        &plan_dequantised(&one, &PlanOptions::default()).unwrap(),
        &single,
    );
    let (got, want) = (read(&sharded), read(&single));
    assert!(got.keys().eq(want.keys()));
    assert!(got.iter().all(|(n, t)| t.same_bytes(&want[n])));
    let text = fs::read_to_string(sharded.join(crate::safetensors::INDEX_FILE)).unwrap();
    for end in ["qweight", "qzeros", "scales", "g_idx"] {
        assert!(!text.contains(end), "{end}");
    }
}

/// Breaks where a quantised base is changed in place, or a dtype is asked of one that is not quantised.
#[test]
fn what_cannot_be_is_refused() {
    let base = fixture("bnb-nf4");
    let adapters = [input(vec![lora(
        "layers.0.q_proj",
        16,
        64,
        ModuleKind::Linear,
        7,
    )])];
    let merging = plan(&base, &adapters, &PlanOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let undo = dir.path().join("undo");
    let e = merge_in_place(
        &merging,
        &undo,
        &InPlaceOptions::default(),
        &Control::default(),
    );
    let e = e.unwrap_err();
    assert_eq!(e.code(), Code::Usage);
    assert!(e.to_string().contains("bitsandbytes nf4"));
    let bench = Bench::model(&decoder(), 1, None);
    let plain = Checkpoint::open(&bench.base).unwrap();
    let options = PlanOptions {
        dtype: Some(Dtype::F16),
        ..PlanOptions::default()
    };
    let qkv = [input(vec![tied_qkv(3)])];
    assert_eq!(
        plan(&plain, &qkv, &options).unwrap_err().code(),
        Code::Usage
    );
    assert_eq!(
        plan_dequantised(&plain, &options).unwrap_err().code(),
        Code::Usage
    );
}
