use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::adapter::{
    Adapter, BaseModel, Extra, ExtraRole, Factor, ModuleKind, Scaling, ScalingRule, Seed, Target,
    TieGroup,
};
use crate::digest::Digest;
use crate::error::Code;
use crate::tensor::{Dtype, Tensor};

fn tensor(shape: &[usize], key: u8, dtype: Dtype) -> Tensor {
    let seed = Seed {
        key: [key; 32],
        step: f32::powi(2.0, -26),
    };
    seeded_tensor(&seed, dtype, shape).unwrap()
}

fn targets(names: &[(&str, usize)]) -> Vec<Target> {
    names
        .iter()
        .map(|(n, out)| Target {
            module: format!("model.layers.{{}}.self_attn.{n}"),
            out: *out,
            kind: ModuleKind::Linear,
        })
        .collect()
}

/// TL6 over q, k, v of 32 layers, as in the paper, with a seeded A.
fn paper(layers: u32, hidden: usize, rank: usize) -> Adapter {
    let seed = Seed {
        key: [9; 32],
        step: f32::powi(2.0, -25),
    };
    let a = Factor {
        tensor: seeded_tensor(&seed, Dtype::F32, &[rank, hidden]).unwrap(),
        trained: false,
        seed: Some(seed),
    };
    let n = layers as usize;
    let group = TieGroup {
        layers: Some((0..layers).collect()),
        experts: None,
        rank,
        in_features: hidden,
        scaling: Scaling::one(rank),
        a,
        b: Factor::trained(tensor(&[3 * hidden, rank], 2, Dtype::F32)),
        core: None,
        u: Some(Factor::trained(tensor(&[n, rank], 3, Dtype::F32))),
        v: Some(Factor::trained(tensor(&[n, 3 * hidden], 4, Dtype::F32))),
        targets: targets(&[("q_proj", hidden), ("k_proj", hidden), ("v_proj", hidden)]),
    };
    Adapter {
        groups: vec![group],
        ..Adapter::default()
    }
}

fn write(adapter: &Adapter, packing: Packing, zstd: bool) -> (tempfile::TempDir, PathBuf, Written) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tl");
    let options = WriteOptions {
        packing,
        zstd,
        ..WriteOptions::default()
    };
    let written = write_tl(&path, adapter, &options).unwrap();
    (dir, path, written)
}

#[test]
fn fat_thin_and_packed_have_one_root_and_one_content() {
    let adapter = paper(3, 8, 2);
    let b = Digest::of(adapter.groups[0].b.tensor.data());
    let blobs = tempfile::tempdir().unwrap();
    fs::write(
        blobs.path().join(b.hex()),
        &**adapter.groups[0].b.tensor.data(),
    )
    .unwrap();
    let mut roots = Vec::new();
    for packing in [Packing::Fat, Packing::Thin, Packing::External([b].into())] {
        for zstd in [false, true] {
            let (_dir, path, written) = write(&adapter, packing.clone(), zstd);
            let file = TlFile::open(&path).unwrap();
            assert_eq!(file.root(), written.root);
            let back = file.load(&DirBlobs(blobs.path().into())).unwrap();
            assert_eq!(encode(&back).unwrap().manifest, *file.manifest());
            if matches!(packing, Packing::External(_)) {
                assert_eq!(
                    file.load(&NoBlobs).unwrap_err().code(),
                    Code::ExternalMissing
                );
            }
            roots.push(written.root);
        }
    }
    assert!(roots.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn overhead_of_a_paper_sized_adapter_is_under_4_kib() {
    let adapter = paper(32, 64, 8);
    let (_dir, _, written) = write(&adapter, Packing::Fat, false);
    assert!(
        written.bytes - adapter.tensor_bytes() < 4096,
        "{}",
        written.bytes - adapter.tensor_bytes()
    );
}

#[test]
fn overhead_of_an_untied_lora_is_under_4_kib_too() {
    // Stacked factors keep it at two tensors a module, not two a layer.
    let mut adapter = Adapter::default();
    for (i, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        adapter.groups.push(TieGroup {
            layers: Some((0..32).collect()),
            experts: None,
            rank: 4,
            in_features: 16,
            scaling: Scaling {
                alpha: 2.5,
                rule: ScalingRule::AlphaOverSqrtRank,
            },
            a: Factor::trained(tensor(&[32, 4, 16], 10 + i as u8, Dtype::BF16)),
            b: Factor::trained(tensor(&[32, 16, 4], 20 + i as u8, Dtype::BF16)),
            core: None,
            u: None,
            v: None,
            targets: targets(&[(name, 16)]),
        });
    }
    let (_dir, path, written) = write(&adapter, Packing::Fat, false);
    assert!(written.bytes - adapter.tensor_bytes() < 4096);
    let back = TlFile::open(&path).unwrap().load(&NoBlobs).unwrap();
    assert_eq!(back.groups[0].scaling, adapter.groups[0].scaling);
    assert_eq!(back.method().name(), "lora");
}

#[test]
fn the_official_reader_opens_every_packing() {
    for zstd in [false, true] {
        let (_dir, path, _) = write(&paper(2, 8, 2), Packing::Fat, zstd);
        let bytes = fs::read(path).unwrap();
        assert!(bytes[8..].starts_with(br#"{"__metadata__":{"tl":"1","tl.manifest":""#));
        safetensors::SafeTensors::deserialize(&bytes).unwrap();
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    // A reader that lets one byte pass does not verify what it reads.
    let mut adapter = paper(1, 2, 1);
    adapter.extras.push(Extra::new(
        "lm_head.weight",
        ExtraRole::Replace,
        tensor(&[2, 2], 7, Dtype::F16),
    ));
    for zstd in [false, true] {
        let (dir, path, _) = write(&adapter, Packing::Fat, zstd);
        let good = fs::read(&path).unwrap();
        let bad_path = dir.path().join("bad.tl");
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            fs::write(&bad_path, &bad).unwrap();
            let outcome = TlFile::open(&bad_path).and_then(|f| f.load(&NoBlobs));
            assert!(
                outcome.is_err(),
                "byte {i} of {} changed unnoticed",
                good.len()
            );
        }
        for cut in 0..good.len() {
            fs::write(&bad_path, &good[..cut]).unwrap();
            assert!(TlFile::open(&bad_path).is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn non_finite_values_are_not_written() {
    let mut adapter = paper(1, 2, 1);
    let values = [1.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0];
    adapter.groups[0].v = Some(Factor::trained(
        Tensor::from_f32(vec![1, 6], &values).unwrap(),
    ));
    let e = encode(&adapter).unwrap_err();
    assert_eq!((e.code(), e.tensor_name()), (Code::NonFinite, Some("g0.v")));
}

/// The manifest text of a small adapter, changed, parsed.
fn parse_changed(from: &str, to: &str) -> Code {
    let manifest = encode(&paper(1, 2, 1)).unwrap().manifest;
    let text = String::from_utf8(manifest.to_bytes()).unwrap();
    assert!(text.contains(from), "{text}");
    Manifest::parse(text.replacen(from, to, 1).as_bytes())
        .unwrap_err()
        .code()
}

#[test]
fn manifest_rules_have_their_codes() {
    assert_eq!(parse_changed(r#""tl":1"#, r#""tl":2"#), Code::TlVersion);
    assert_eq!(
        parse_changed(r#""requires":[]"#, r#""requires":["int8"]"#),
        Code::UnknownFeature
    );
    assert_eq!(
        parse_changed(r#""requires":[]"#, r#""requires":["core"]"#),
        Code::ManifestNotCanonical
    );
    assert_eq!(
        parse_changed(r#"{"groups""#, r#"{ "groups""#),
        Code::ManifestNotCanonical
    );
    assert_eq!(
        parse_changed(r#""alpha":1,"#, r#""alpha":1,"alpha":1,"#),
        Code::ManifestInvalid
    );
    assert_eq!(
        parse_changed(r#""alpha":1,"#, r#""alpha":1.0,"#),
        Code::ManifestInvalid
    );
    assert_eq!(
        parse_changed(r#""alpha":1,"#, r#""alpha":0,"#),
        Code::BadAlpha
    );
    assert_eq!(
        parse_changed(r#""alpha":1,"#, r#""alpha":"0x3ff0000000000000","#),
        Code::ManifestInvalid
    );
    assert_eq!(
        parse_changed(r#""method":"custom""#, r#""method":"tl6""#),
        Code::ManifestNotCanonical
    );
    assert_eq!(
        parse_changed(r#""method":"#, r#""colour":1,"method":"#),
        Code::ManifestInvalid
    );
    assert_eq!(
        parse_changed(r#""B":"g0.B""#, r#""B":"g0.C""#),
        Code::TensorUndeclared
    );
    assert_eq!(parse_changed(r#""u":"g0.u","#, ""), Code::ManifestInvalid);
    assert_eq!(
        parse_changed(r#""rank":1"#, r#""rank":3"#),
        Code::ShapeDisagrees
    );
    assert_eq!(parse_changed("k_proj", "q_proj"), Code::DuplicateTarget);
    assert_eq!(parse_changed("k_proj", "k proj"), Code::BadName);
    assert_eq!(
        parse_changed(r#""dtype":"F32""#, r#""dtype":"I32""#),
        Code::DtypeNotAllowed
    );
    assert_eq!(
        parse_changed("chacha20-uniform/1", "xorshift/1"),
        Code::SeedInvalid
    );
}

/// One group of `layers` × `targets` linear modules with one output each, rank 1, in 1.
fn wide(layers: usize, targets: &[String]) -> String {
    let numbers: Vec<String> = (0..layers).map(|i| i.to_string()).collect();
    let tensor = |name: &str, digit: &str, rows: usize| {
        let digest = digit.repeat(64);
        format!(r#""{name}":{{"dtype":"F32","sha256":"{digest}","shape":[{rows},1]}}"#)
    };
    format!(
        r#"{{"groups":[{{"A":"g0.A","B":"g0.B","alpha":1,"in":1,"layers":[{}],"rank":1,"scaling":"alpha/rank","targets":[{}],"trained":["A","B"]}}],"method":"tl5","requires":[],"tensors":{{{},{}}},"tl":1}}"#,
        numbers.join(","),
        targets.join(","),
        tensor("g0.A", "0", 1),
        tensor("g0.B", "1", targets.len()),
    )
}

fn parse_code(text: &str) -> Option<Code> {
    Manifest::parse(text.as_bytes()).err().map(|e| e.code())
}

#[test]
fn a_small_manifest_cannot_order_a_large_amount_of_work() {
    // 50 kB of text would otherwise become millions of module paths.
    let targets = |n| -> Vec<String> {
        (0..n)
            .map(|i| format!(r#"{{"module":"{{}}.a{i}","out":1}}"#))
            .collect()
    };
    assert_eq!(parse_code(&wide(4096, &targets(64))), None);
    assert_eq!(
        parse_code(&wide(4096, &targets(65))),
        Some(Code::ManifestLimit)
    );
}

#[test]
fn outputs_that_overflow_are_refused() {
    // The sum would wrap to 4, and B would seem to fit.
    let outs = [u64::MAX, 5].map(|n| format!(r#"{{"module":"{{}}.a{n}","out":{n}}}"#));
    assert_eq!(parse_code(&wide(1, &outs)), Some(Code::ShapeDisagrees));
}

#[test]
fn one_adapter_has_one_manifest() {
    // Each of these would be a second spelling of an adapter, with another root.
    let text = |base: &str, tensor: &str| {
        let extra = r#"[{"name":"n","role":"replace","tensor":"x0"}]"#;
        format!(
            r#"{{{base}"extras":{extra},"groups":[],"method":"custom","requires":[],"tensors":{{"x0":{tensor}}},"tl":1}}"#
        )
    };
    let digest = "0".repeat(64);
    let plain = |shape: &str| format!(r#"{{"dtype":"F32","sha256":"{digest}","shape":{shape}}}"#);
    assert_eq!(parse_code(&text("", &plain("[1]"))), None);
    assert_eq!(
        parse_code(&text(r#""base":{},"#, &plain("[1]"))),
        Some(Code::ManifestNotCanonical)
    );
    assert_eq!(
        parse_code(&text("", &plain("[2,0]"))),
        Some(Code::ManifestInvalid)
    );
    let seeded = format!(
        r#"{{"dtype":"F32","seed":{{"generator":"{GENERATOR}","key":"{digest}","step":"33000000"}},"sha256":"{digest}","shape":[1]}}"#
    );
    assert_eq!(
        parse_code(&text("", &seeded)),
        Some(Code::ManifestNotCanonical)
    );
}

#[test]
fn what_cannot_be_read_back_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let code = |adapter: &Adapter, packing| {
        let options = WriteOptions {
            packing,
            ..WriteOptions::default()
        };
        let written = write_tl(&dir.path().join("a.tl"), adapter, &options);
        written.unwrap_err().code()
    };
    let mut wrong_seed = paper(1, 2, 1);
    wrong_seed.groups[0].a.seed.as_mut().unwrap().key[0] ^= 1;
    assert_eq!(code(&wrong_seed, Packing::Thin), Code::SeedInvalid);
    assert_eq!(code(&wrong_seed, Packing::Fat), Code::SeedInvalid);
    let without_bytes = encode(&paper(1, 2, 1)).unwrap().manifest.adapter().unwrap();
    assert_eq!(code(&without_bytes, Packing::Fat), Code::SizeMismatch);
    let mut bad_base = paper(1, 2, 1);
    bad_base.base = Some(BaseModel {
        weights: Some("nonsense".into()),
        ..BaseModel::default()
    });
    assert_eq!(code(&bad_base, Packing::Fat), Code::ManifestInvalid);
}

#[test]
fn a_longer_blob_is_a_damaged_one() {
    let adapter = paper(1, 2, 1);
    let b = Digest::of(adapter.groups[0].b.tensor.data());
    let (dir, path, _) = write(&adapter, Packing::External([b].into()), false);
    fs::write(dir.path().join(b.hex()), [0; 1000]).unwrap();
    let loaded = TlFile::open(path)
        .unwrap()
        .load(&DirBlobs(dir.path().into()));
    assert_eq!(loaded.unwrap_err().code(), Code::DigestMismatch);
}

#[test]
fn groups_given_in_any_order_are_one_adapter() {
    let mut a = paper(1, 2, 1);
    let mut other = a.groups[0].clone();
    other.targets = vec![Target {
        module: "a.{}.z".into(),
        out: 6,
        kind: ModuleKind::Conv1d,
    }];
    a.groups.push(other);
    let mut b = a.clone();
    b.groups.reverse();
    assert_eq!(
        encode(&a).unwrap().manifest.root(),
        encode(&b).unwrap().manifest.root()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_encoded_is_read_back(
        layers in 1u32..5, rank in 1usize..5, n in 1usize..6, outs in proptest::collection::vec(1usize..5, 1..4),
        middle in 0usize..3, has_v: bool, stacked: bool, alpha in 0.001f64..100.0, dtype in 0usize..4, zstd: bool,
    ) {
        let i8_rows = dtype == 3;
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F32][dtype];
        let (l, m) = (layers as usize, outs.iter().sum::<usize>());
        let own = |shape: [usize; 2], key| {
            let shape = if stacked { vec![l, shape[0], shape[1]] } else { shape.to_vec() };
            Factor::trained(tensor(&shape, key, dtype))
        };
        let group = TieGroup {
            layers: Some((0..layers).map(|i| 2 * i).collect()),
            experts: None,
            rank,
            in_features: n,
            scaling: Scaling { alpha, rule: ScalingRule::AlphaOverRank },
            a: own([rank, n], 1),
            b: own([m, rank], 2),
            core: (middle == 2).then(|| Factor::trained(tensor(&[l, rank, rank], 5, dtype))),
            u: (middle == 1).then(|| Factor::trained(tensor(&[l, rank], 3, Dtype::F32))),
            v: has_v.then(|| Factor::trained(tensor(&[l, m], 4, Dtype::BF16))),
            targets: outs.iter().enumerate()
                .map(|(i, out)| Target { module: format!("l.{{}}.t{i}"), out: *out, kind: ModuleKind::Linear })
                .collect(),
        };
        let mut adapter = Adapter { groups: vec![group], task: Some("CAUSAL_LM".into()), ..Adapter::default() };
        if i8_rows {
            adapter = adapter.to_dtype(Dtype::I8).unwrap();
        }
        let (_dir, path, _) = write(&adapter, Packing::Fat, zstd);
        let back = TlFile::open(&path).unwrap().load(&NoBlobs).unwrap();
        prop_assert_eq!(encode(&back).unwrap().manifest, encode(&adapter).unwrap().manifest);
        for layer in 0..l {
            for t in 0..outs.len() {
                prop_assert_eq!(back.groups[0].low_rank(layer, t).unwrap(), adapter.groups[0].low_rank(layer, t).unwrap());
            }
        }
    }
}
