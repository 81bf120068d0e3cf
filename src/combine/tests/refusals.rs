//! What does not go together, and what is kept of what does.

use super::*;
use crate::adapter::{BaseModel, Extra, ExtraRole};

fn code(inputs: &[CombineInput], options: &CombineOptions<'_>) -> Code {
    combine(inputs, options).unwrap_err().code()
}

/// Breaks where adapters that do not go together are combined, or what goes with all of them is lost.
#[test]
fn extras_and_bases_have_to_agree() {
    let saved = |seed| {
        Extra::new(
            "lm_head.weight",
            ExtraRole::Replace,
            tensor(Dtype::F32, &[2, 2], seed),
        )
    };
    let bias = |scale: f64| {
        let role = ExtraRole::AddBias(
            Scaling {
                alpha: scale * 2.0,
                ..Scaling::one(2)
            },
            2,
        );
        Extra::new("m.0.q.bias", role, tensor(Dtype::F32, &[5], 1))
    };
    let of = |extras: Vec<Extra>, base: Option<&str>| {
        let base = base.map(|name| BaseModel {
            name: Some(name.into()),
            ..BaseModel::default()
        });
        let whole = Adapter {
            extras,
            base,
            ..adapter(groups(&plain(2, 1)))
        };
        input("x", whole, 0.5)
    };
    let options = CombineOptions::new(CombineMethod::Cat);
    let (made, _) = combine(
        &[of(vec![saved(1)], None), of(vec![saved(1)], None)],
        &options,
    )
    .unwrap();
    assert!(made.extras[0].tensor.same_bytes(&saved(1).tensor));
    for other in [vec![saved(2)], vec![]] {
        let inputs = [of(vec![saved(1)], None), of(other, None)];
        assert_eq!(code(&inputs, &options), Code::AdaptersConflict);
    }
    let (made, _) = combine(
        &[of(vec![bias(1.0)], None), of(vec![bias(3.0)], None)],
        &options,
    )
    .unwrap();
    let ExtraRole::AddBias(scaling, rank) = made.extras[0].role else {
        panic!("not added");
    };
    let values = made.extras[0].tensor.to_f32().unwrap();
    for (x, y) in values.iter().zip(bias(1.0).tensor.to_f32().unwrap()) {
        let right = 0.5 * f64::from(y) + 1.5 * f64::from(y);
        assert!((scaling.factor(rank) * f64::from(*x) - right).abs() < 1e-6);
    }
    let named = |name| of(vec![], Some(name));
    assert_eq!(
        code(&[named("org/a-7b"), named("org/b-7b")], &options),
        Code::AdaptersConflict
    );
    combine(
        &[named("org/a-7b"), named("mirror/A-7b-bnb-4bit")],
        &options,
    )
    .unwrap();
    let printed = |weights: &str| {
        let mut one = named("org/a-7b");
        one.adapter.base.as_mut().unwrap().weights = Some(weights.repeat(64));
        one
    };
    assert_eq!(
        code(&[printed("1"), printed("2")], &options),
        Code::AdaptersConflict
    );
    let (made, _) = combine(&[printed("1"), printed("1")], &options).unwrap();
    assert_eq!(made.base.unwrap().weights, Some("1".repeat(64)));
}

/// Breaks where one module of two shapes is combined.
#[test]
fn shapes_have_to_agree() {
    let mut other = groups(&plain(2, 1));
    for group in &mut other {
        group.targets[0].kind = ModuleKind::Conv1d;
    }
    let inputs = [
        input("x", adapter(groups(&plain(2, 1))), 1.0),
        input("y", adapter(other), 1.0),
    ];
    for method in [
        CombineMethod::Cat,
        CombineMethod::Svd,
        CombineMethod::Linear,
    ] {
        assert_eq!(
            code(&inputs, &CombineOptions::new(method)),
            Code::AdaptersConflict
        );
    }
}

/// Breaks where options that mean nothing for a method are taken without a word.
#[test]
fn options_have_to_fit_the_method() {
    let inputs = [input("x", adapter(groups(&plain(2, 1))), 1.0)];
    let with = |method, change: fn(&mut CombineOptions<'_>)| {
        let mut options = CombineOptions::new(method);
        change(&mut options);
        code(&inputs, &options)
    };
    for found in [
        with(CombineMethod::Ties, |_| {}),
        with(CombineMethod::Cat, |o| o.density = Some(0.5)),
        with(CombineMethod::Dare, |o| o.density = Some(0.0)),
        with(CombineMethod::Dare, |o| o.density = Some(f64::NAN)),
        with(CombineMethod::Cat, |o| o.budget = Some(Budget::Rank(2))),
        with(CombineMethod::Svd, |o| o.budget = Some(Budget::Rank(0))),
    ] {
        assert_eq!(found, Code::Usage);
    }
    assert_eq!(
        code(&[], &CombineOptions::new(CombineMethod::Cat)),
        Code::Usage
    );
    for (name, method) in [
        ("ties_svd", CombineMethod::TiesSvd),
        ("dare_linear", CombineMethod::Dare),
    ] {
        assert_eq!(name.parse::<CombineMethod>().unwrap(), method);
    }
    assert!("sum".parse::<CombineMethod>().is_err());
}

/// Breaks where a few kilobytes of tied factors may order a result of gigabytes.
#[test]
fn a_result_has_a_limit() {
    let wide = |seed: u32| {
        let layers = 4096;
        let group = TieGroup {
            layers: Some((0..layers as u32).collect()),
            in_features: 1,
            targets: vec![Target {
                module: "m.{}.q".into(),
                out: 600,
                kind: ModuleKind::Linear,
            }],
            rank: 300,
            scaling: Scaling::one(300),
            a: Factor::trained(tensor(Dtype::F32, &[300, 1], seed)),
            b: Factor::trained(tensor(Dtype::F32, &[600, 300], 1)),
            core: None,
            u: None,
            v: Some(Factor::trained(tensor(Dtype::F32, &[layers, 600], seed))),
            experts: None,
        };
        input("x", adapter(vec![group]), 1.0)
    };
    let inputs = [wide(1), wide(2)];
    assert_eq!(
        code(&inputs, &CombineOptions::new(CombineMethod::Cat)),
        Code::ManifestLimit
    );
}

/// Breaks where what is counted is not what was said to be, a combination does not stop, or its file does not say what it
/// was made of.
#[test]
fn work_is_counted_stopped_and_told() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    let inputs = [plain(3, 1), plain(3, 50)].map(|f| input("x", adapter(groups(&f)), 0.8));
    for method in CombineMethod::ALL {
        let mut options = CombineOptions::new(method);
        options.density = method.is_sparse().then_some(0.5);
        let done = AtomicU64::new(0);
        let count = |n| {
            done.fetch_add(n, Ordering::Relaxed);
        };
        let progress = Progress::new().counted_by(&count);
        let (made, _) = super::super::combine(&inputs, &options, progress).unwrap();
        assert_eq!(done.into_inner(), work(&inputs), "{method}");
        let told = &made.provenance["combine.inputs"];
        let identity = inputs[0].identity;
        let one = format!(r#"{{"adapter":"{identity}","weight":0.8}}"#);
        assert_eq!(*told, format!("[{one},{one}]"), "{method}");
        let stop = AtomicBool::new(true);
        let stopped = Progress::new().stopped_by(&stop);
        let e = super::super::combine(&inputs, &options, stopped).unwrap_err();
        assert_eq!(e.code(), Code::Interrupted, "{method}");
    }
}
