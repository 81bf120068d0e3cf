use super::*;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tlkit::fs::Existing;
use tlkit::safetensors::write_tensors;
use tlkit::tensor::Dtype;

/// Architectures times kinds of adapters, as tests/peft/matrix.py wrote them: names, shapes and rules
/// for the values of what transformers and PEFT saved, and digests of what PEFT merged.
///
/// Breaks where one bit of one merge differs from PEFT's, or a tensor that PEFT leaves changes.
#[test]
fn merges_of_many_architectures_are_pefts() {
    let text = fs::read_to_string(fixtures().join("peft-matrix.jsonl")).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str(l).unwrap());
    let (bases, cells): (Vec<Value>, Vec<Value>) = lines.partition(|l: &Value| l["of"].is_null());
    let dir = tempfile::tempdir().unwrap();
    for line in &bases {
        let base = dir.path().join(text_of(&line["base"]));
        let tensors = made(&line["tensors"], None, false);
        write(&base, "model.safetensors", &tensors);
        fs::write(base.join("config.json"), line["config"].to_string()).unwrap();
    }
    for (n, line) in cells.iter().enumerate() {
        let what = format!("{} {}", line["of"], line["kind"]);
        let base = dir.path().join(text_of(&line["of"]));
        let adapter = dir.path().join(format!("adapter{n}"));
        let mut want = super::tensors(&base);
        let given = made(&line["tensors"], Some(&want), line["few"] == true);
        write(&adapter, "adapter_model.safetensors", &given);
        let config = line["config"].to_string();
        fs::write(adapter.join("adapter_config.json"), config).unwrap();

        let tied = if line["untie"] == true {
            TiedPolicy::Untie
        } else {
            TiedPolicy::Shared
        };
        let out = dir.path().join(format!("out{n}"));
        let got = merge_tied(&base, &[(&adapter, 1.0)], &out, Rounding::Peft, tied)
            .unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let changed = line["changed"].as_object().unwrap();
        want.retain(|name, _| !changed.contains_key(name));
        for (name, tensor) in &got {
            match (changed.get(name), want.remove(name)) {
                (Some(digest), _) => assert_eq!(hex(tensor), text_of(digest), "{what} {name}"),
                (None, Some(old)) => assert!(tensor.same_bytes(&old), "{what} {name}"),
                (None, None) => panic!("{what}: {name} is not in PEFT's"),
            }
        }
        assert!(want.is_empty(), "{what}: {:?}", want.keys());
        let missing = changed.keys().find(|name| !got.contains_key(*name));
        assert_eq!(missing, None, "{what}");
    }
    assert!(bases.len() >= 8 && cells.len() >= 50);
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn write(dir: &Path, name: &str, tensors: &[(String, Tensor)]) {
    fs::create_dir_all(dir).unwrap();
    write_tensors(
        &dir.join(name),
        Existing::Refuse,
        &[("format", "pt")],
        tensors,
    )
    .unwrap();
}

/// The tensors of a line: of a base, or of an adapter, whose values may be few and copies of the base's.
fn made(
    tensors: &Value,
    base: Option<&BTreeMap<String, Tensor>>,
    few: bool,
) -> Vec<(String, Tensor)> {
    let made = |t: &Value| {
        let (name, mut dtype) = (text_of(&t[0]), Dtype::F32);
        let mut named = name;
        let shape: Vec<usize> = serde_json::from_value(t[1].clone()).unwrap();
        for more in t.as_array().unwrap().iter().skip(2) {
            match text_of(more) {
                "BF16" => dtype = Dtype::BF16,
                "F16" => dtype = Dtype::F16,
                other if other.starts_with('~') => named = &other[1..],
                copied => {
                    let copied = &base.unwrap()[copied.trim_start_matches('=')];
                    return (name.to_owned(), copied.clone());
                }
            }
        }
        let factor = name.contains("lora_") || name.contains("vera_");
        let (seed, range, unit) = match base {
            Some(_) if name.contains("magnitude") => (named.to_owned(), (32, 96), 64.0),
            Some(_) if factor && few => (named.to_owned(), (-3, 3), 4.0),
            Some(_) if factor => (named.to_owned(), (-31, 31), 32.0),
            Some(_) => (format!("adapter {named}"), (-63, 63), 64.0),
            None => (named.to_owned(), (-63, 63), 64.0),
        };
        let values = values(&seed, shape.iter().product(), range, unit);
        let tensor = Tensor::narrowed(dtype, shape, &values).unwrap();
        (name.to_owned(), tensor)
    };
    tensors.as_array().unwrap().iter().map(made).collect()
}

/// `values` of tests/peft/matrix.py.
fn values(name: &str, count: usize, (low, high): (i64, i64), unit: f32) -> Vec<f32> {
    let digest = Sha256::digest(name.as_bytes());
    let seed = u64::from_le_bytes(digest[..8].try_into().unwrap());
    let value = |i: usize| {
        let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = x.wrapping_add(seed);
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let x = (x >> 33) % (high - low + 1) as u64;
        (x as i64 + low) as f32 / unit
    };
    (0..count).map(value).collect()
}

fn hex(tensor: &Tensor) -> String {
    let digest = Sha256::digest(&tensor.data()[..]);
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}
