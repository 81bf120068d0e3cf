use super::*;
use crate::error::Code;
use crate::tensor::{Dtype, Tensor};

/// A joint q,k,v group with u and v: rank 2, in 3, out 4 + 2, layers 0 and 5.
fn joint() -> TieGroup {
    let t = |shape: &[usize], start: f32| {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| start + i as f32).collect();
        Factor::trained(Tensor::from_f32(shape.to_vec(), &values).unwrap())
    };
    TieGroup {
        layers: Some(vec![0, 5]),
        experts: None,
        rank: 2,
        in_features: 3,
        scaling: Scaling {
            alpha: 1.0,
            rule: ScalingRule::AlphaOverRank,
        },
        a: t(&[2, 3], 1.0),
        b: t(&[6, 2], -3.0),
        core: None,
        u: Some(t(&[2, 2], 0.5)),
        v: Some(t(&[2, 6], 2.0)),
        targets: vec![
            Target {
                module: "m.{}.q".into(),
                out: 4,
                kind: ModuleKind::Linear,
            },
            Target {
                module: "m.{}.k".into(),
                out: 2,
                kind: ModuleKind::Linear,
            },
        ],
    }
}

fn code(change: impl FnOnce(&mut TieGroup)) -> Code {
    let mut group = joint();
    change(&mut group);
    Adapter {
        groups: vec![group],
        ..Adapter::default()
    }
    .validate()
    .unwrap_err()
    .code()
}

#[test]
fn delta_is_the_formula() {
    // Would fail if targets took the wrong rows of B or v, or layers the wrong row of u.
    let group = joint();
    let delta = group.low_rank(1, 1).unwrap().delta();
    let (a, b) = (
        group.a.tensor.to_f32().unwrap(),
        group.b.tensor.to_f32().unwrap(),
    );
    let u = [2.5, 3.5]; // second row of u
    let v = [12.0, 13.0]; // entries 4 and 5 of the second row of v
    for i in 0..2 {
        for j in 0..3 {
            let sum: f32 = (0..2)
                .map(|k| v[i] * b[(4 + i) * 2 + k] * u[k] * a[k * 3 + j])
                .sum();
            assert_eq!(delta[(i, j)], 0.5 * sum);
        }
    }
}

/// A core with distinct entries in place of the joint group's u.
fn with_core() -> TieGroup {
    let values: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
    TieGroup {
        core: Some(Factor::trained(
            Tensor::from_f32(vec![2, 2, 2], &values).unwrap(),
        )),
        u: None,
        ..joint()
    }
}

/// Breaks where a layer takes another's core, or the core's transpose.
#[test]
fn a_core_mixes_the_rows_of_a() {
    let group = with_core();
    let low = group.low_rank(1, 0).unwrap();
    let a = group.a.tensor.to_f32().unwrap();
    let core = [1.5, 2.5, 3.5, 4.5];
    for k in 0..2 {
        for j in 0..3 {
            let want = core[2 * k] * a[j] + core[2 * k + 1] * a[3 + j];
            assert_eq!(low.right[k * 3 + j], want);
        }
    }
    assert_eq!(low.left, joint().low_rank(1, 0).unwrap().left);
}

/// Breaks where a group outside the layers looks for a layer axis of its core.
#[test]
fn a_group_without_layers_has_one_core() {
    let mut group = with_core();
    group.layers = None;
    group.v = None;
    for (target, name) in group.targets.iter_mut().zip(["q", "k"]) {
        target.module = name.into();
    }
    let core = Tensor::from_f32(vec![2, 2], &[0.0, 1.0, 1.0, 0.0]).unwrap();
    group.core = Some(Factor::trained(core));
    let adapter = Adapter {
        groups: vec![group],
        ..Adapter::default()
    };
    adapter.validate().unwrap();
    let low = adapter.groups[0].low_rank(0, 0).unwrap();
    assert_eq!(low.right, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
}

#[test]
fn leading_columns_and_rows_count() {
    // PEFT VeRA: one pair of the largest shape serves smaller modules.
    let mut group = joint();
    let whole = group.low_rank(0, 0).unwrap();
    group.in_features = 2;
    group.targets.pop();
    group.v = None;
    group.u = None;
    let part = group.low_rank(0, 0).unwrap();
    assert_eq!(part.right, [1.0, 2.0, 4.0, 5.0]);
    assert_eq!(part.left.len(), whole.left.len());
}

#[test]
fn validation_names_what_is_wrong() {
    assert_eq!(code(|g| g.rank = 3), Code::ShapeDisagrees);
    assert_eq!(code(|g| g.rank = 0), Code::ManifestLimit);
    assert_eq!(code(|g| g.in_features = 4), Code::ShapeDisagrees);
    assert_eq!(code(|g| g.layers = Some(vec![5, 0])), Code::BadName);
    assert_eq!(
        code(|g| g.layers = Some(vec![0, 1, 2])),
        Code::ShapeDisagrees
    );
    assert_eq!(code(|g| g.layers = None), Code::BadName);
    assert_eq!(
        code(|g| g.targets[0].module = "m.{}.k".into()),
        Code::DuplicateTarget
    );
    assert_eq!(
        code(|g| g.targets[0].module = "m.{}..q".into()),
        Code::BadName
    );
    assert_eq!(code(|g| g.scaling.alpha = 0.0), Code::BadAlpha);
    assert_eq!(code(|g| g.scaling.alpha = f64::NAN), Code::BadAlpha);
    assert_eq!(
        code(|g| g.core = with_core().core.clone()),
        Code::ShapeDisagrees
    );
    let flat = Tensor::from_f32(vec![2, 4], &[0.0; 8]).unwrap();
    assert_eq!(
        code(|g| {
            g.u = None;
            g.core = Some(Factor::trained(flat.clone()));
        }),
        Code::ShapeDisagrees
    );
    let ints = Tensor::new(Dtype::U8, vec![2, 2], vec![0; 4]).unwrap();
    assert_eq!(
        code(|g| g.u = Some(Factor::trained(ints))),
        Code::DtypeNotAllowed
    );
}

#[test]
fn presets_are_told_by_what_trains_and_ties() {
    let mut g = joint();
    assert_eq!(Method::of(std::slice::from_ref(&g)), Method::Tl6);
    // No preset has a core, whether it trains or not.
    for trained in [true, false] {
        let mut core = with_core();
        core.core.iter_mut().for_each(|f| f.trained = trained);
        assert_eq!(Method::of(&[core]), Method::Custom);
    }
    g.a.trained = false;
    assert_eq!(Method::of(std::slice::from_ref(&g)), Method::Custom);
    g.b.trained = false;
    assert_eq!(Method::of(std::slice::from_ref(&g)), Method::Vera);
    g.u = None;
    g.v = None;
    g.a.trained = true;
    assert_eq!(Method::of(std::slice::from_ref(&g)), Method::Tl1);
    g.b.trained = true;
    assert_eq!(Method::of(std::slice::from_ref(&g)), Method::Tl5);
    let stacked = Tensor::from_f32(vec![2, 2, 3], &[0.0; 12]).unwrap();
    g.a = Factor::trained(stacked);
    assert_eq!(Method::of(&[g.clone()]), Method::Lora);
}

#[test]
fn shared_tensors_count_once() {
    let g = joint();
    let mut other = g.clone();
    other.targets = vec![Target {
        module: "n.{}.q".into(),
        out: 6,
        kind: ModuleKind::Linear,
    }];
    let adapter = Adapter {
        groups: vec![g, other],
        ..Adapter::default()
    };
    adapter.validate().unwrap();
    assert_eq!(adapter.parameters(), 6 + 12 + 4 + 12);
}

/// Breaks where a storage type changes what seeds make, unshares a tensor, or counts the codes
/// without their scales.
#[test]
fn another_type_keeps_seeds_and_shares() {
    let mut group = with_core();
    group.a.seed = Some(Seed {
        key: [1; 32],
        step: 1.0,
    });
    let mut other = group.clone();
    for (target, name) in other.targets.iter_mut().zip(["n.{}.q", "n.{}.k"]) {
        target.module = name.into();
    }
    let adapter = Adapter {
        groups: vec![group, other],
        ..Adapter::default()
    };
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::I8] {
        let stored = adapter.to_dtype(dtype).unwrap();
        stored.validate().unwrap();
        let [one, two] = &stored.groups[..] else {
            panic!("two groups")
        };
        assert!(one.a.tensor.same_bytes(&adapter.groups[0].a.tensor));
        for ((part, one), (_, two)) in one.factors().zip(two.factors()).skip(1) {
            assert_eq!(one.tensor.dtype(), dtype, "{}", part.name());
            assert_eq!(one.tensor.data().id(), two.tensor.data().id());
        }
        assert_eq!(stored.parameters(), adapter.parameters());
        let wide = stored.to_dtype(Dtype::F32).unwrap();
        for layer in 0..2 {
            for target in 0..2 {
                let low = |a: &Adapter| a.groups[1].low_rank(layer, target).unwrap();
                assert_eq!(low(&stored), low(&wide), "{dtype}");
            }
        }
    }
    // B, C and v: codes, and four bytes for each row.
    let (codes, rows) = (12 + 8 + 12, 6 + 4 + 2);
    let stored = adapter.to_dtype(Dtype::I8).unwrap();
    assert_eq!(stored.tensor_bytes(), 24 + codes + 4 * rows);
}

#[test]
fn values_beyond_a_type_are_named() {
    let mut group = joint();
    group.b = Factor::trained(Tensor::from_f32(vec![6, 2], &[1e5; 12]).unwrap());
    let adapter = Adapter {
        groups: vec![group],
        ..Adapter::default()
    };
    let e = adapter.to_dtype(Dtype::F16).unwrap_err();
    assert_eq!((e.code(), e.tensor_name()), (Code::NonFinite, Some("g0.B")));
    assert_eq!(
        adapter.to_dtype(Dtype::U8).unwrap_err().code(),
        Code::DtypeNotAllowed
    );
}
