mod gptq;
mod mlx;
mod unknown;

use std::path::Path;

use half::bf16;
use safetensors::tensor::TensorView;

use super::{Held, Quantised};
use crate::error::{Code, Result};
use crate::safetensors::{Checkpoint, SafetensorsFile};
use crate::tensor::Dtype;

const DTYPES: [(&str, Dtype); 3] = [
    ("bf16", Dtype::BF16),
    ("f16", Dtype::F16),
    ("f32", Dtype::F32),
];

fn fixtures() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant");
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path());
    let mut found: Vec<_> = entries.filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

/// Breaks where a number is not, bit for bit, what the weight's own library gives.
#[test]
fn numbers_are_the_libraries_own() {
    assert!(fixtures().len() > 20);
    let mut wrong = Vec::new();
    for folder in fixtures() {
        let base = Checkpoint::open(&folder).unwrap();
        let quantised = Quantised::of(&base).unwrap().unwrap();
        let expected = SafetensorsFile::open(folder.join("expected.safetensors")).unwrap();
        assert_eq!(
            quantised.weights().len() * 3,
            expected.header().tensors.len()
        );
        for weight in quantised.weights() {
            for (suffix, dtype) in DTYPES {
                let want = expected
                    .tensor(&format!("{}.{suffix}", weight.name))
                    .unwrap();
                assert_eq!(want.shape(), weight.shape, "{folder:?}");
                let mut got = vec![0; want.data().len()];
                weight.fill(0..weight.elements(), dtype, &mut got).unwrap();
                let size = dtype.bits() / 8;
                let differ = got.chunks(size).zip(want.data().chunks(size));
                let differ = differ.filter(|(a, b)| a != b).count();
                if differ > 0 {
                    wrong.push(format!("{folder:?} {} {suffix}: {differ}", weight.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Breaks where a part of a weight is other than the same part of the whole.
#[test]
fn any_part_is_that_of_the_whole() {
    for folder in fixtures() {
        let base = Checkpoint::open(&folder).unwrap();
        let quantised = Quantised::of(&base).unwrap().unwrap();
        for weight in quantised.weights() {
            let n = weight.elements();
            let mut whole = vec![0.0; n];
            weight.values(0..n, Dtype::F16, &mut whole).unwrap();
            for (start, step) in [(0, 1), (3, 7), (1, 33), (n / 3, n / 3)] {
                let mut at = start;
                while at < n {
                    let end = (at + step.max(1)).min(n);
                    let mut part = vec![0.0; end - at];
                    weight.values(at..end, Dtype::F16, &mut part).unwrap();
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&part), bits(&whole[at..end]), "{folder:?} {at}");
                    at = end + step;
                }
            }
        }
    }
}

/// Breaks where a part that is made of what was read for another one is other than the same part of the whole.
#[test]
fn what_is_held_serves_every_part() {
    for folder in fixtures() {
        let base = Checkpoint::open(&folder).unwrap();
        let quantised = Quantised::of(&base).unwrap().unwrap();
        for weight in quantised.weights() {
            let (n, cols) = (weight.elements(), *weight.shape.last().unwrap());
            for dtype in [Dtype::F16, Dtype::BF16] {
                let mut whole = vec![0; 2 * n];
                weight.fill(0..n, dtype, &mut whole).unwrap();
                let held = Held::default();
                for step in [cols, 3 * cols, cols + 1] {
                    let mut parts = vec![0; 2 * n];
                    for (i, part) in parts.chunks_mut(2 * step).enumerate() {
                        let elements = i * step..i * step + part.len() / 2;
                        weight.fill_held(&held, elements, dtype, part).unwrap();
                    }
                    assert!(parts == whole, "{folder:?} {step}");
                }
            }
        }
    }
}

/// Breaks where FP8 in blocks so large that their numbers come from tables is other than code times scale.
#[test]
fn large_blocks_are_products_too() {
    const ROWS: usize = 70;
    const COLS: usize = 150;
    let codes: Vec<u8> = (0..ROWS * COLS).map(|i| (i * 37 % 251) as u8).collect();
    let codes: Vec<u8> = codes.iter().map(|c| c & 0xf7).collect();
    let scale = |row: usize, col: usize| 0.37 + (row / 32 * 3 + col / 64) as f32 * 1.01;
    let scales: Vec<u8> = (0..9)
        .flat_map(|i| scale(i / 3 * 32, i % 3 * 64).to_le_bytes())
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let tensor = |dtype, shape: [usize; 2], bytes| TensorView::new(dtype, shape.to_vec(), bytes);
    let tensors = [
        (
            "a.weight",
            tensor(safetensors::Dtype::F8_E4M3, [ROWS, COLS], &codes),
        ),
        (
            "a.weight_scale_inv",
            tensor(safetensors::Dtype::F32, [3, 3], &scales),
        ),
    ];
    let tensors = tensors.map(|(name, tensor)| (name, tensor.unwrap()));
    safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors"))
        .unwrap();
    let config =
        r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 64]}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let base = Checkpoint::open(folder.path()).unwrap();
    let quantised = Quantised::of(&base).unwrap().unwrap();
    let mut got = vec![0; 2 * ROWS * COLS];
    let weight = &quantised.weights()[0];
    weight.fill(0..ROWS * COLS, Dtype::BF16, &mut got).unwrap();
    let product = |i: usize| super::codes::E4M3[usize::from(codes[i])] * scale(i / COLS, i % COLS);
    let want = (0..ROWS * COLS).map(product).map(bf16::from_f32);
    let want: Vec<u8> = want.flat_map(bf16::to_le_bytes).collect();
    assert!(got == want);
}

const KINDS: [&str; 29] = [
    "awq: AWQ 4 bit, F16",
    "bnb-fp4: bitsandbytes fp4, F32",
    "bnb-int8: bitsandbytes int8, F16",
    "bnb-nf4: bitsandbytes nf4, BF16",
    "bnb-nf4-nested: bitsandbytes nf4, nested, F16",
    "bnb-nf4-stored-bf16: bitsandbytes nf4, nested, stored as BF16, BF16",
    "ct-fp8-block: compressed-tensors FP8 (E4M3), blocks of 8 × 16, BF16",
    "ct-fp8-channel: compressed-tensors FP8 (E4M3), a scale for each row, BF16",
    "ct-int3-packed: compressed-tensors int3, groups of 16, BF16",
    "ct-int3-packed-asymmetric: compressed-tensors int3, groups of 16, BF16",
    "ct-int4-packed: compressed-tensors int4, groups of 16, BF16",
    "ct-int4-packed-asymmetric: compressed-tensors int4, groups of 16, BF16",
    "ct-int8-asymmetric: compressed-tensors int8, a scale for each row, BF16",
    "ct-int8-packed: compressed-tensors int8, groups of 16, BF16",
    "ct-mxfp4: compressed-tensors mxfp4, BF16",
    "ct-nvfp4: compressed-tensors nvfp4, BF16",
    "fp8-blocks: FP8 (E4M3), blocks of 8 × 8, BF16",
    "fp8-edges: FP8 (E4M3), blocks of 8 × 8, BF16",
    "fp8-fbgemm: FBGEMM FP8 (E4M3), one scale, BF16",
    "fp8-modelopt: ModelOpt FP8 (E4M3), one scale, BF16",
    "gptq-2bit: GPTQ 2 bit, F16",
    "gptq-3bit: GPTQ 3 bit, F16",
    "gptq-4bit: GPTQ 4 bit, F16",
    "gptq-4bit-act-v2: GPTQ 4 bit, F16",
    "gptq-8bit: GPTQ 8 bit, F16",
    "mlx-4bit: MLX 4 bit, groups of 64, BF16",
    "mlx-6bit-f32: MLX 6 bit, groups of 32, F32",
    "mlx-mixed: MLX 8 bit, groups of 128, F16",
    "mxfp4: MXFP4, BF16",
];

/// What each fixture is called, and what belongs to no unquantised model.
#[test]
fn kinds_are_told() {
    let mut kinds = Vec::new();
    for folder in fixtures() {
        let base = Checkpoint::open(&folder).unwrap();
        let quantised = Quantised::of(&base).unwrap().unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        kinds.push(format!(
            "{name}: {}, {}",
            quantised.kind(),
            quantised.dtype()
        ));
        // All but the norm and biases are parts of weights.
        let plain = base
            .tensors()
            .iter()
            .filter(|(_, l)| quantised.at(**l).is_none() && !quantised.companions().contains(*l));
        let ends = |n: &str| n == "norm.weight" || n.ends_with("bias");
        assert!(plain.map(|(n, _)| n).all(|n| ends(n)), "{name}");
    }
    assert_eq!(kinds, KINDS);
}

fn of(folder: &Path) -> Result<usize> {
    let base = Checkpoint::open(folder)?;
    Ok(Quantised::of(&base)?.map_or(0, |q| q.weights().len()))
}

/// A copy of a fixture with another header: `change` is given each tensor's name, dtype and shape.
fn changed(
    fixture: &str,
    config: Option<&str>,
    change: impl Fn(&mut String, &mut Dtype, &mut Vec<usize>, &mut Vec<u8>) -> bool,
) -> tempfile::TempDir {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/quant")
        .join(fixture);
    let file = SafetensorsFile::open(folder.join("model.safetensors")).unwrap();
    let mut parts = Vec::new();
    for info in &file.header().tensors {
        let tensor = file.mapped(info).unwrap();
        let mut part = (
            info.name.clone(),
            info.dtype,
            info.shape.clone(),
            tensor.data().to_vec(),
        );
        if change(&mut part.0, &mut part.1, &mut part.2, &mut part.3) {
            parts.push(part);
        }
    }
    let out = tempfile::tempdir().unwrap();
    let entries = parts
        .iter()
        .map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), b.len() as u64));
    let mut bytes = crate::safetensors::encode_header(&[], entries, 8);
    parts.iter().for_each(|p| bytes.extend_from_slice(&p.3));
    std::fs::write(out.path().join("model.safetensors"), bytes).unwrap();
    let own = std::fs::read_to_string(folder.join("config.json")).unwrap();
    std::fs::write(out.path().join("config.json"), config.unwrap_or(&own)).unwrap();
    out
}

fn refused(folder: &tempfile::TempDir) -> String {
    let e = of(folder.path()).unwrap_err();
    assert_eq!(e.code(), Code::BaseDtype, "{e}");
    e.to_string()
}

/// Breaks where a base without a config is not recognised, or taken for something else.
#[test]
fn names_tell_where_no_config_does() {
    for fixture in [
        "bnb-nf4-nested",
        "bnb-int8",
        "fp8-fbgemm",
        "gptq-4bit",
        "awq",
        "mxfp4",
        "ct-int4-packed",
        "ct-nvfp4",
    ] {
        let bare = changed(fixture, Some("{}"), |_, _, _, _| true);
        assert!(of(bare.path()).unwrap() > 0, "{fixture}");
    }
}

/// Breaks where a broken base is taken for a whole one, or asks for memory that its shapes claim.
#[test]
fn broken_parts_are_refused_by_name() {
    let cases: [(&str, &str, &str); 12] = [
        ("bnb-nf4", ".absmax", "absmax is missing"),
        (
            "bnb-nf4",
            ".quant_state.bitsandbytes__nf4",
            "quant_state is missing",
        ),
        (
            "bnb-nf4-nested",
            ".nested_quant_map",
            "nested_quant_map is missing",
        ),
        ("bnb-nf4-nested", ".nested_absmax", "U8"),
        ("bnb-int8", ".SCB", "its scale is missing"),
        ("fp8-blocks", ".weight_scale_inv", "its scale is missing"),
        ("gptq-4bit", ".qzeros", "qzeros is missing"),
        (
            "gptq-4bit",
            ".qweight",
            "belongs to a quantised weight that is not there",
        ),
        ("awq", ".scales", "scales is missing"),
        ("ct-int4-packed", ".weight_shape", "weight_shape is missing"),
        (
            "ct-int4-packed",
            ".weight_scale",
            "belongs to a quantised weight that is not there",
        ),
        ("ct-nvfp4", ".weight_packed", "NOTHING"),
    ];
    for (fixture, end, says) in cases {
        let folder = changed(fixture, None, |name, _, _, _| !name.ends_with(end));
        if says == "NOTHING" {
            assert_eq!(of(folder.path()).unwrap(), 0);
            continue;
        }
        let said = refused(&folder);
        assert!(said.contains(says), "{fixture} {end}: {said}");
    }
}

/// Breaks where a shape that others do not fit is believed.
#[test]
fn shapes_have_to_fit() {
    let swapped = |fixture: &str, end: &'static str| {
        changed(fixture, None, move |name, _, shape, _| {
            if name.ends_with(end) {
                shape.reverse();
                if shape.len() == 1 {
                    shape.push(1);
                }
            }
            true
        })
    };
    for (fixture, end) in [
        ("bnb-nf4", ".absmax"),
        ("fp8-blocks", ".weight_scale_inv"),
        ("gptq-4bit", ".scales"),
        ("gptq-4bit", ".qweight"),
        ("gptq-2bit", ".qzeros"),
        ("awq", ".qweight"),
        ("awq", ".scales"),
        ("mxfp4", "_scales"),
        ("ct-int4-packed", ".weight_scale"),
        ("ct-int4-packed", ".weight_packed"),
        ("ct-nvfp4", ".weight_scale"),
    ] {
        refused(&swapped(fixture, end));
    }
}

/// Breaks where the JSON of a quant_state is believed before it is checked.
#[test]
fn states_are_checked() {
    let state = |text: &'static str| {
        changed("bnb-nf4-nested", None, move |name, _, shape, bytes| {
            if name.contains(".quant_state") {
                *bytes = text.as_bytes().to_vec();
                *shape = vec![bytes.len()];
            }
            true
        })
    };
    for (text, says) in [
        ("\0\0\0\0", "no JSON"),
        ("[]", "no shape"),
        ("{\"shape\": [16, 64]}", "no blocksize"),
        ("{\"shape\": [16, 64], \"blocksize\": 0}", "blocksize of 0"),
        (
            "{\"shape\": [16, 64], \"blocksize\": 48}",
            "blocksize of 48",
        ),
        (
            "{\"shape\": [16, 64], \"blocksize\": 1099511627776}",
            "blocksize of 1099511627776",
        ),
        (
            "{\"shape\": [16, 64], \"blocksize\": 64, \"quant_type\": \"fp4\"}",
            "another kind",
        ),
        (
            "{\"shape\": [16, 64], \"blocksize\": 64, \"dtype\": \"int8\"}",
            "no dtype",
        ),
        (
            "{\"shape\": [4294967296, 4294967296], \"blocksize\": 64, \"dtype\": \"float16\"}",
            "absurd shape",
        ),
        (
            "{\"shape\": [0, 64], \"blocksize\": 64, \"dtype\": \"float16\"}",
            "absurd shape",
        ),
        (
            "{\"shape\": [99, 64], \"blocksize\": 64, \"dtype\": \"float16\"}",
            "of 4 bit would take",
        ),
        (
            "{\"dtype\": \"float16\", \"blocksize\": 64, \"shape\": [16, 64]}",
            "nested_blocksize",
        ),
        (
            "{\"dtype\": \"float16\", \"blocksize\": 64, \"shape\": [16, 64], \"nested_blocksize\": 256}",
            "nested_offset",
        ),
        (
            "{\"dtype\": \"float16\", \"blocksize\": 64, \"shape\": [16, 64], \"nested_blocksize\": 3, \"nested_offset\": 1}",
            "nested_absmax is",
        ),
    ] {
        let said = refused(&state(text));
        assert!(said.contains(says), "{text}: {said}");
    }
    let long = changed("bnb-nf4", None, |name, _, shape, bytes| {
        if name.contains(".quant_state") {
            *bytes = vec![b' '; 1 << 17];
            *shape = vec![bytes.len()];
        }
        true
    });
    assert!(refused(&long).contains("far too long"));
}

/// Breaks where a group that there is not is read from somewhere else.
#[test]
fn groups_that_are_not_there_are_refused() {
    let folder = changed("gptq-4bit", None, |name, _, _, bytes| {
        if name.ends_with(".g_idx") {
            bytes[0] = 77;
        }
        true
    });
    let base = Checkpoint::open(folder.path()).unwrap();
    let quantised = Quantised::of(&base).unwrap().unwrap();
    let weight = &quantised.weights()[0];
    let mut out = vec![0.0; weight.elements()];
    let e = weight
        .values(0..out.len(), Dtype::F16, &mut out)
        .unwrap_err();
    assert_eq!(e.code(), Code::BaseDtype);
}
