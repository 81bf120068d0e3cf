use proptest::prelude::*;

use super::*;
use crate::adapter::{Extra, ExtraRole, Factor, ModuleKind, Scaling, Target};

const LAYERS: usize = 3;
const RANK: usize = 2;
const IN: usize = 5;
const OUTS: [usize; 2] = [4, 3];

fn values(len: usize, salt: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + salt * 11) % 19) as f32 / 8.0 - 1.1)
        .collect()
}

fn factor(shape: Vec<usize>, salt: usize) -> Factor {
    let len = shape.iter().product();
    Factor::trained(Tensor::from_f32(shape, &values(len, salt)).unwrap())
}

/// A joint group over some layers: tied or not, with u and v or with a core, A and B with columns
/// and rows to spare.
fn adapter(tied: bool, vectors: bool, core: bool, spare: usize) -> Adapter {
    let total: usize = OUTS.iter().sum();
    let shape = |rows, columns| match tied {
        true => vec![rows, columns],
        false => vec![LAYERS, rows, columns],
    };
    let target = |(name, out): (&str, usize)| Target {
        module: format!("h.{{}}.{name}"),
        out,
        kind: ModuleKind::Linear,
    };
    let group = TieGroup {
        layers: Some(vec![0, 1, 2]),
        experts: None,
        rank: RANK,
        in_features: IN,
        scaling: Scaling::one(RANK),
        a: factor(shape(RANK, IN + spare), 1),
        b: factor(shape(total + spare, RANK), 2),
        core: core.then(|| factor(vec![LAYERS, RANK, RANK], 3)),
        u: (vectors && !core).then(|| factor(vec![LAYERS, RANK], 4)),
        v: vectors.then(|| factor(vec![LAYERS, total], 5)),
        targets: ["q", "k"].into_iter().zip(OUTS).map(target).collect(),
    };
    Adapter {
        groups: vec![group],
        extras: vec![Extra::new(
            "h.0.norm.weight",
            ExtraRole::Replace,
            factor(vec![IN], 6).tensor,
        )],
        ..Adapter::default()
    }
}

fn with_value(tensor: &Tensor, at: usize, value: f32) -> Tensor {
    let mut values = tensor.to_f32().unwrap();
    let len = values.len();
    values[at % len] = value;
    Tensor::from_f32(tensor.shape().to_vec(), &values).unwrap()
}

fn compare(one: &Adapter, two: &Adapter) -> AdaptersReport {
    let none = Magnitudes::new();
    verify_adapters((one, &none), (two, &none)).unwrap()
}

proptest! {
    /// Breaks where a value that is not finite, in any factor of any method or in a full tensor,
    /// drops out of a maximum: adapters with one are equal to nothing, not even to themselves.
    #[test]
    fn a_value_that_is_not_finite_is_never_equal(
        tied: bool, vectors: bool, core: bool, spare in 0usize..2,
        part in 0usize..6, at: usize,
        value in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        scale in prop_oneof![Just(0.0f32), Just(1.0), Just(50.0)],
    ) {
        let good = adapter(tied, vectors, core, spare);
        let mut bad = good.clone();
        let group = &mut bad.groups[0];
        // Zeros beside it must not hide it either.
        let rescale = |t: &Tensor| {
            let values: Vec<f32> = t.to_f32().unwrap().iter().map(|x| x * scale).collect();
            Tensor::from_f32(t.shape().to_vec(), &values).unwrap()
        };
        let mut factors: Vec<&mut Factor> = [&mut group.a, &mut group.b].into_iter().collect();
        factors.extend([&mut group.core, &mut group.u, &mut group.v].into_iter().flatten());
        match factors.get_mut(part) {
            Some(factor) => factor.tensor = with_value(&rescale(&factor.tensor), at, value),
            None => bad.extras[0].tensor = with_value(&rescale(&bad.extras[0].tensor), at, value),
        }
        for (one, two) in [(&good, &bad), (&bad, &good), (&bad, &bad)] {
            let report = compare(one, two);
            prop_assert!(report.not_finite > 0, "{report:?}");
            prop_assert!(report.max_relative.is_nan() && !report.worst.is_empty());
            for tolerance in [0.0, 1e-6, 1.0, f64::INFINITY] {
                prop_assert!(!report.is_equal(tolerance));
            }
        }
        prop_assert!(compare(&good, &good).is_equal(0.0));
    }
}

#[test]
fn the_modules_that_are_not_finite_are_counted_and_named() {
    let good = adapter(false, false, false, 0);
    let mut bad = good.clone();
    let b = &mut bad.groups[0].b.tensor;
    // The last row of k in layer 1.
    let at = (OUTS[0] + OUTS[1]) * RANK * 2 - 1;
    *b = with_value(b, at, f32::NAN);
    let report = compare(&good, &bad);
    assert_eq!((report.not_finite, report.worst.as_str()), (1, "h.1.k"));
    let of = |name: &str| report.targets.iter().find(|t| t.target == name).unwrap();
    assert_eq!(of("h.{}.k").not_finite, 1);
    assert_eq!(
        (of("h.{}.q").not_finite, of("h.{}.q").max_relative),
        (0, 0.0)
    );
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["max_relative"].is_null() && json["not_finite"] == 1);
}

/// Breaks where an overflow on the way to the error looks like none: finite factors whose products
/// leave the range of f32, and scalings at its ends.
#[test]
fn what_overflows_is_not_equal() {
    let good = adapter(true, true, false, 0);
    let at_ends = |value: f32, alpha: f64| {
        let mut a = good.clone();
        let group = &mut a.groups[0];
        group.scaling.alpha = alpha;
        for (_, factor) in group.factors_mut() {
            let values = factor.tensor.to_f32().unwrap();
            let values: Vec<f32> = values.iter().map(|x| x * value).collect();
            let shape = factor.tensor.shape().to_vec();
            factor.tensor = Tensor::from_f32(shape, &values).unwrap();
        }
        a
    };
    // u·A is infinite in f32.
    let report = compare(&at_ends(f32::MAX, 2.0), &at_ends(f32::MAX, 2.0));
    assert!(report.not_finite > 0 && !report.is_equal(1.0), "{report:?}");
    let pairs = [
        (at_ends(1e19, 3e38), at_ends(1.1e19, 3e38)),
        (at_ends(1e-19, 1e-37), at_ends(1.1e-19, 1e-37)),
    ];
    for (one, two) in pairs {
        let report = compare(&one, &two);
        assert!(
            report.max_relative > 1e-6 && !report.is_equal(1e-9),
            "{report:?}"
        );
        assert_eq!(report.not_finite, 0);
        assert!(compare(&one, &one).is_equal(0.0));
    }
    // Only the second does anything: an infinite relative error, of finite numbers.
    let mut zero = good.clone();
    zero.groups[0].b = Factor::trained(Tensor::from_f32(vec![7, RANK], &[0.0; 14]).unwrap());
    let report = compare(&zero, &good);
    assert!(report.max_relative.is_infinite() && report.not_finite == 0);
    assert!(!report.is_equal(f64::INFINITY));
}
