mod foreign;

use std::path::Path;

use super::tied::largest_error;
use super::*;
use crate::adapter::{
    Adapter, BaseModel, Factor, ModuleKind, Scaling, ScalingRule, Seed, Target, TieGroup,
};
use crate::error::Code;
use crate::format::{NoBlobs, TlFile, fingerprint, seeded_tensor};
use crate::fs::Existing;
use crate::open::import_with_base;
use crate::peft::export::{ExportOptions, Form, export};
use crate::peft::projection::Fma;
use crate::peft::testing::shared;
use crate::safetensors::{Checkpoint, write_tensors};
use crate::tensor::{Dtype, Tensor};

fn random(shape: &[usize], key: u8) -> Tensor {
    seeded_tensor(
        &Seed {
            key: [key; 32],
            step: f32::powi(2.0, -24),
        },
        Dtype::F32,
        shape,
    )
    .unwrap()
}

/// TL6 joint over q (6 rows), k and v (4 rows), three layers.
fn tied(rank: usize, with_u: bool, with_v: bool) -> Adapter {
    let target = |n: &str, out| Target {
        module: format!("model.layers.{{}}.self_attn.{n}"),
        out,
        kind: ModuleKind::Linear,
    };
    let group = TieGroup {
        layers: Some(vec![0, 1, 2]),
        experts: None,
        rank,
        in_features: 16,
        scaling: Scaling {
            alpha: 3.0,
            rule: ScalingRule::AlphaOverSqrtRank,
        },
        a: Factor::trained(random(&[rank, 16], 1)),
        b: Factor::trained(random(&[14, rank], 2)),
        core: None,
        u: with_u.then(|| Factor::trained(random(&[3, rank], 3))),
        v: with_v.then(|| Factor::trained(random(&[3, 14], 4))),
        targets: vec![
            target("q_proj", 6),
            target("k_proj", 4),
            target("v_proj", 4),
        ],
    };
    Adapter {
        groups: vec![group],
        ..Adapter::default()
    }
}

fn round_trip(adapter: &Adapter, dtype: Dtype, form: Form, dir: &Path) -> ToTied {
    let folder = dir.join(format!("{dtype}-{form:?}"));
    export(
        adapter,
        &folder,
        &ExportOptions {
            form,
            dtype: Some(dtype),
            ..Default::default()
        },
    )
    .unwrap();
    let out = dir.join(format!("{dtype}-{form:?}.tl"));
    peft_to_tied(&folder, &out, &ToTiedOptions::default()).unwrap()
}

#[test]
fn an_exported_tied_adapter_is_recognised_in_every_dtype() {
    // Fails if the tolerance is tighter than an export's rounding, or the gauge loses accuracy.
    let dir = tempfile::tempdir().unwrap();
    for (with_u, with_v, method) in [
        (true, true, "tl6"),
        (true, false, "custom"),
        (false, false, "tl5"),
    ] {
        let adapter = tied(4, with_u, with_v);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for form in [Form::Faithful, Form::Portable] {
                let sub = tempfile::tempdir_in(&dir).unwrap();
                let report = round_trip(&adapter, dtype, form, sub.path());
                assert_eq!(
                    (report.found, report.method.name()),
                    (Found::Tied, method),
                    "{dtype} {form:?}"
                );
                assert!(
                    report.max_relative_error < 4.0 * dtype.unit_roundoff(),
                    "{dtype} {}",
                    report.max_relative_error
                );
                assert_eq!(
                    report.groups, 1,
                    "q, k and v share A and u, so they are one group"
                );
            }
        }
    }
}

#[test]
fn an_ordinary_lora_keeps_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut adapter = tied(4, false, false);
    adapter.groups[0].a = Factor::trained(random(&[3, 4, 16], 5));
    adapter.groups[0].b = Factor::trained(random(&[3, 14, 4], 6));
    let report = round_trip(&adapter, Dtype::F32, Form::Faithful, dir.path());
    assert_eq!(
        (report.found, report.max_relative_error),
        (Found::Untied, 0.0)
    );
    let back = TlFile::open(&report.output)
        .unwrap()
        .load(&NoBlobs)
        .unwrap();
    for module in adapter.modules() {
        let place = back
            .modules()
            .into_iter()
            .find(|m| m.path == module.path)
            .unwrap();
        let want = adapter.groups[module.group]
            .low_rank(module.layer, module.target)
            .unwrap();
        let got = back.groups[place.group]
            .low_rank(place.layer, place.target)
            .unwrap();
        assert_eq!(want, got, "{}", module.path);
    }
}

#[test]
fn one_layer_that_differs_breaks_the_tie() {
    // A tie that is claimed and not there would change a layer without a word.
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("lora");
    export(&tied(4, true, true), &folder, &ExportOptions::default()).unwrap();
    let path = folder.join(crate::peft::WEIGHTS_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 400;
    bytes[at + 3] = 0x42;
    std::fs::write(&path, bytes).unwrap();
    let report =
        peft_to_tied(&folder, &dir.path().join("x.tl"), &ToTiedOptions::default()).unwrap();
    assert_eq!(report.found, Found::PartlyTied);
    assert!(
        report.max_relative_error < 1e-6,
        "the damaged module itself keeps its bits"
    );
}

#[test]
fn vera_goes_there_and_back_as_vera() {
    let dir = tempfile::tempdir().unwrap();
    let mut groups = Vec::new();
    for (i, (name, n, out)) in [("q_proj", 8, 8), ("k_proj", 8, 4)].into_iter().enumerate() {
        let key = 10 + 2 * i as u8;
        groups.push(TieGroup {
            layers: Some(vec![0, 1]),
            experts: None,
            rank: 3,
            in_features: n,
            scaling: Scaling::one(3),
            a: Factor::frozen(random(&[3, 8], 1)),
            b: Factor::frozen(random(&[8, 3], 2)),
            core: None,
            u: Some(Factor::trained(random(&[2, 3], key))),
            v: Some(Factor::trained(random(&[2, out], key + 1))),
            targets: vec![Target {
                module: format!("m.layers.{{}}.{name}"),
                out,
                kind: ModuleKind::Linear,
            }],
        });
    }
    let adapter = Adapter {
        groups,
        ..Adapter::default()
    };
    let folder = dir.path().join("vera");
    export(
        &adapter,
        &folder,
        &ExportOptions {
            form: Form::Vera,
            ..Default::default()
        },
    )
    .unwrap();
    let report =
        peft_to_tied(&folder, &dir.path().join("v.tl"), &ToTiedOptions::default()).unwrap();
    assert_eq!(
        (
            report.found,
            report.method.name(),
            report.max_relative_error
        ),
        (Found::Vera, "vera", 0.0)
    );
    let joint = tied(4, true, true);
    let e = export(
        &joint,
        &dir.path().join("no"),
        &ExportOptions {
            form: Form::Vera,
            ..Default::default()
        },
    )
    .unwrap_err();
    assert_eq!(e.code(), Code::ExportImpossible);
    assert!(!dir.path().join("no").exists());
}

/// Breaks where VeRA is written without the core, which would be another update.
#[test]
fn vera_has_no_place_for_a_core() {
    let dir = tempfile::tempdir().unwrap();
    let mut adapter = tied(4, false, true);
    let group = &mut adapter.groups[0];
    group.targets.truncate(1);
    group.scaling = Scaling::one(4);
    group.v = Some(Factor::trained(random(&[3, 6], 4)));
    let options = ExportOptions {
        form: Form::Vera,
        ..Default::default()
    };
    export(&adapter, &dir.path().join("vera"), &options).unwrap();
    adapter.groups[0].core = Some(Factor::trained(random(&[3, 4, 4], 5)));
    let e = export(&adapter, &dir.path().join("core"), &options).unwrap_err();
    assert_eq!(e.code(), Code::ExportImpossible);
    assert!(e.message().contains("core"), "{e}");
}

/// Breaks where looking for ties, joining targets or stacking layers loses a core, gives it to
/// other targets, or puts a u beside it.
#[test]
fn cores_survive_what_is_done_to_imported_groups() {
    let mut adapter = tied(4, false, false);
    let group = &mut adapter.groups[0];
    group.core = Some(Factor::trained(random(&[3, 4, 4], 5)));
    let mut other = group.clone();
    group.targets.truncate(1);
    group.b = Factor::trained(random(&[6, 4], 6));
    other.targets.drain(..2);
    other.b = Factor::trained(random(&[4, 4], 7));
    other.core = Some(Factor::trained(random(&[3, 4, 4], 8)));
    // A that is one row times a number in each layer: without a core, these numbers become u.
    let a = random(&[4, 16], 1).to_f32().unwrap();
    let stacked: Vec<f32> = (0..3)
        .flat_map(|l| a.iter().map(move |x| x * [1.0, 2.0, 4.0][l]))
        .collect();
    other.a = Factor::trained(Tensor::from_f32(vec![3, 4, 16], &stacked).unwrap());
    adapter.groups.push(other);
    adapter.validate().unwrap();
    let mut single = Adapter::default();
    for group in &adapter.groups {
        for (l, layer) in group.layers.clone().unwrap().into_iter().enumerate() {
            let mut group = group.clone();
            let own = |t: &Tensor, lead: &[usize]| {
                let t = t.index_first(l).unwrap();
                let shape = [lead, t.shape()].concat();
                Factor::trained(Tensor::new(t.dtype(), shape, t.data().clone()).unwrap())
            };
            if group.a.tensor.shape().len() == 3 {
                group.a = own(&group.a.tensor, &[]);
            }
            group.core = Some(own(&group.core.as_ref().unwrap().tensor, &[1]));
            group.layers = Some(vec![layer]);
            single.groups.push(group);
        }
    }
    single.validate().unwrap();
    let again = recover_ties(&coalesce(&single).unwrap()).unwrap();
    again.validate().unwrap();
    assert_eq!(again.groups.len(), 2);
    assert_eq!(largest_error(&adapter, &again).unwrap().0.max_abs, 0.0);
}

/// Breaks where the base is checked at other tensors than those that a merge changes.
#[test]
fn a_fingerprint_is_of_the_tensors_that_a_merge_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.safetensors");
    let named = |name: &str, rows, key| (name.to_owned(), random(&[rows, 16], key));
    let tensors = [
        named("model.embed_tokens.weight", 9, 1),
        named("model.layers.0.q.weight", 6, 2),
        named("other.layers.0.q.weight", 6, 3),
    ];
    write_tensors(&path, Existing::Refuse, &[], &tensors).unwrap();
    let base = Checkpoint::open(&path).unwrap();
    let group = |module: &str, out| TieGroup {
        layers: None,
        b: Factor::trained(random(&[out, 2], 5)),
        u: None,
        v: None,
        targets: vec![Target {
            module: module.to_owned(),
            out,
            kind: ModuleKind::Linear,
        }],
        ..tied(2, false, false).groups.remove(0)
    };
    let made_for = |names: &[&str], groups: Vec<TieGroup>| {
        let weights = fingerprint(&base, names.iter().copied()).unwrap().hex();
        Adapter {
            groups,
            base: Some(BaseModel {
                weights: Some(weights),
                ..BaseModel::default()
            }),
            ..Adapter::default()
        }
    };
    // The base leaves its output projection out: it is the embedding.
    let both = made_for(
        &["model.embed_tokens.weight", "model.layers.0.q.weight"],
        vec![group("model.layers.0.q", 6), group("lm_head", 9)],
    );
    check_fingerprint(&both, &base, &[]).unwrap();
    // A name that a merge needs a rename for, and that leads to two tensors without one.
    let one = made_for(&["other.layers.0.q.weight"], vec![group("layers.0.q", 6)]);
    let e = check_fingerprint(&one, &base, &[]).unwrap_err();
    assert_eq!(e.code(), Code::AmbiguousModule);
    let renamed = |to: &str| check_fingerprint(&one, &base, &[("layers".into(), to.into())]);
    renamed("other.layers").unwrap();
    let e = renamed("model.layers").unwrap_err();
    assert_eq!(e.code(), Code::FingerprintMismatch);
    let silent = Adapter {
        base: None,
        ..one.clone()
    };
    let e = check_fingerprint(&silent, &base, &[]).unwrap_err();
    assert_eq!(e.code(), Code::FingerprintAbsent);
}

#[test]
fn every_interop_adapter_converts_or_is_refused_by_name() {
    let Some(data) = shared("peft-interop") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut outcomes = Vec::new();
    for entry in std::fs::read_dir(data.join("adapters")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let adapter = data.join("adapters").join(&name);
        let config = std::fs::read_to_string(adapter.join(crate::peft::CONFIG_FILE)).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let base = Checkpoint::open(data.join(config["base_model_name_or_path"].as_str().unwrap()))
            .unwrap();
        let out = dir.path().join(format!("{name}.tl"));
        let options = ToTiedOptions {
            base: Some(&base),
            keep_equal: true,
            ..Default::default()
        };
        match peft_to_tied(&adapter, &out, &options) {
            Err(e) => {
                assert!(!out.exists(), "{name}: refused, and something was written");
                outcomes.push((name, e.code().as_str()));
            }
            Ok(report) => {
                assert_eq!(report.max_relative_error, 0.0, "{name}");
                let back = dir.path().join(&name);
                tied_to_peft(
                    &out,
                    &back,
                    &NoBlobs,
                    Some(&base),
                    &ExportOptions::default(),
                )
                .unwrap();
                let source = import_with_base(&adapter, Some(&base), Fma::Fused, None)
                    .unwrap()
                    .adapter;
                let exported = import_with_base(&back, Some(&base), Fma::Fused, None)
                    .unwrap()
                    .adapter;
                let places: std::collections::BTreeMap<_, _> = exported
                    .modules()
                    .into_iter()
                    .map(|m| (m.path.clone(), m))
                    .collect();
                for m in source.modules() {
                    let p = &places[&m.path];
                    let want = source.groups[m.group].low_rank(m.layer, m.target).unwrap();
                    let got = exported.groups[p.group]
                        .low_rank(p.layer, p.target)
                        .unwrap();
                    assert_eq!(
                        (want.left, want.right, want.scale as f32),
                        (got.left, got.right, got.scale as f32),
                        "{name} {}",
                        m.path
                    );
                }
                let names = |a: &Adapter| {
                    a.extras
                        .iter()
                        .map(|e| (e.name.clone(), e.role))
                        .collect::<Vec<_>>()
                };
                assert_eq!(names(&source), names(&exported), "{name}");
                let found = match report.found {
                    Found::Vera => "vera",
                    Found::VeraRegenerated => "vera-regenerated",
                    Found::Untied => "untied",
                    _ => "tied",
                };
                outcomes.push((name, found));
            }
        }
    }
    outcomes.sort();
    let special: Vec<_> = outcomes
        .iter()
        .filter(|(_, o)| *o != "untied")
        .map(|(n, o)| (n.as_str(), *o))
        .collect();
    assert_eq!(outcomes.len(), 23);
    assert_eq!(
        special,
        [
            ("lora-dora", "TL0401"),
            ("lora-pissa", "TL0405"),
            ("vera-all7-bf16", "vera"),
            ("vera-gpt2", "vera"),
            ("vera-noproj", "vera-regenerated"),
            ("vera-qkv", "vera"),
        ]
    );
}

#[test]
fn real_adapters_convert_or_are_refused_by_name() {
    let Some(data) = shared("adapters") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let outcome = |name: &str| {
        let out = dir.path().join(name);
        peft_to_tied(&data.join(name), &out, &ToTiedOptions::default())
            .map(|r| r.found)
            .map_err(|e| e.code())
    };
    assert_eq!(outcome("gpt-oss-20b-r4-qv-luster"), Ok(Found::Untied));
    assert_eq!(
        outcome("smollm-135m-r16-qv-medai-ckpt1000"),
        Ok(Found::Untied)
    );
    assert_eq!(outcome("bloom-560m-r8-bin"), Err(Code::UnsupportedVariant));
    assert_eq!(outcome("mlx-qwen2.5-0.5b-wyek1n"), Ok(Found::Untied));
}

/// Breaks where what all experts of a layer have, or all of all layers, is stored more than once, or an
/// expert gets another's factors.
#[test]
fn what_experts_share_is_kept_once() {
    let group = |layer: u32, a: Tensor, b: Tensor| TieGroup {
        layers: Some(vec![layer]),
        experts: Some(3),
        in_features: 5,
        a: Factor::trained(a),
        b: Factor::trained(b),
        u: None,
        v: None,
        targets: vec![Target {
            module: "l.{}.experts.gate_up_proj".to_owned(),
            out: 4,
            kind: ModuleKind::Parameter,
        }],
        ..tied(2, false, false).groups.remove(0)
    };
    let rank = tied(2, false, false).groups[0].rank;
    let repeated = |tensor: &Tensor| {
        let shape = [&[3], tensor.shape()].concat();
        Tensor::new(tensor.dtype(), shape, tensor.data().repeat(3)).unwrap()
    };
    let [of_first, of_second] = [1, 2].map(|key| random(&[rank, 5], key));
    let own = |key| random(&[3, 4, rank], key);
    for (second, shape) in [(&of_first, vec![rank, 5]), (&of_second, vec![2, rank, 5])] {
        let source = Adapter {
            groups: vec![
                group(4, repeated(&of_first), own(3)),
                group(7, repeated(second), own(4)),
            ],
            ..Adapter::default()
        };
        source.validate().unwrap();
        let stacked = coalesce(&source).unwrap();
        stacked.validate().unwrap();
        assert_eq!(stacked.groups.len(), 1);
        assert_eq!(stacked.groups[0].a.tensor.shape(), shape);
        assert_eq!(stacked.groups[0].b.tensor.shape(), [6, 4, rank]);
        for (m, n) in source.modules().iter().zip(stacked.modules()) {
            let before = source.groups[m.group].low_rank(m.layer, m.target).unwrap();
            let after = stacked.groups[n.group].low_rank(n.layer, n.target).unwrap();
            assert_eq!((m.label(), before), (n.label(), after));
        }
    }
}
