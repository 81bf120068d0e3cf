//! Dense arithmetic in f64 against what is made.

use proptest::prelude::*;

use super::*;
use crate::adapter::{Adapter, Factor, ModuleKind, Scaling, ScalingRule, Target, TieGroup};
use crate::digest::Digest;
use crate::error::{Code, Result};
use crate::fit::Budget;
use crate::progress::Progress;
use crate::tensor::{Dtype, Tensor};

fn combine(
    inputs: &[CombineInput],
    options: &CombineOptions<'_>,
) -> Result<(Adapter, CombineReport)> {
    super::combine(inputs, options, Progress::new())
}

/// Numbers that are the same for one seed, between −1 and 1.
fn tensor(dtype: Dtype, shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::narrowed(dtype, shape.to_vec(), &values).unwrap()
}

/// How a group of two targets over layers is made.
#[derive(Debug, Clone)]
struct Form {
    layers: Vec<u32>,
    rank: usize,
    stacked: bool,
    joint: bool,
    core: bool,
    u: Option<u32>,
    v: Option<u32>,
    a: u32,
    b: u32,
    dtype: Dtype,
    alpha: f64,
    rule: ScalingRule,
}

const N: usize = 6;
const OUTS: [usize; 2] = [5, 3];

fn groups(form: &Form) -> Vec<TieGroup> {
    let (l, r) = (form.layers.len(), form.rank);
    let target = |t: usize| Target {
        module: format!("m.{{}}.{}", ["q", "k"][t]),
        out: OUTS[t],
        kind: ModuleKind::Linear,
    };
    let of = |targets: Vec<Target>, salt: u32| {
        let m: usize = targets.iter().map(|t| t.out).sum();
        let matrix = |own: [usize; 2], seed: u32| match form.stacked {
            true => tensor(form.dtype, &[l, own[0], own[1]], seed + salt),
            false => tensor(form.dtype, &own, seed + salt),
        };
        let vector =
            |width: usize, seed: u32| Factor::trained(tensor(Dtype::F32, &[l, width], seed + salt));
        TieGroup {
            layers: Some(form.layers.clone()),
            experts: None,
            rank: r,
            in_features: N,
            scaling: Scaling {
                alpha: form.alpha,
                rule: form.rule,
            },
            a: Factor::trained(matrix([r, N], form.a)),
            b: Factor::trained(matrix([m, r], form.b)),
            core: form
                .core
                .then(|| Factor::trained(tensor(Dtype::F32, &[l, r, r], form.a + 7))),
            u: form.u.filter(|_| !form.core).map(|seed| vector(r, seed)),
            v: form.v.map(|seed| vector(m, seed)),
            targets,
        }
    };
    match form.joint {
        true => vec![of(vec![target(0), target(1)], 0)],
        false => vec![of(vec![target(0)], 0), of(vec![target(1)], 1)],
    }
}

fn adapter(groups: Vec<TieGroup>) -> Adapter {
    let mut adapter = Adapter {
        groups,
        ..Adapter::default()
    };
    adapter.sort();
    adapter.validate().unwrap();
    adapter
}

fn input(label: &str, adapter: Adapter, weight: f64) -> CombineInput {
    CombineInput::new(label, adapter, weight, Digest::of(label.as_bytes()))
}

/// s·diag(v)·B·(C or diag(u))·A in f64 from the factors as they are stored, by paths of modules.
fn dense(adapter: &Adapter) -> std::collections::BTreeMap<String, Vec<f64>> {
    let mut out = std::collections::BTreeMap::new();
    for module in adapter.modules() {
        let group = &adapter.groups[module.group];
        let target = &group.targets[module.target];
        let first: usize = group.targets[..module.target].iter().map(|t| t.out).sum();
        let (at, r, n) = (module.layer, group.rank, group.in_features);
        let f64s = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
        let a = f64s(group.inputs(at).unwrap());
        let b = f64s(group.outputs(at).unwrap());
        let m = group.total_out();
        let own = |f: &Option<Factor>, len: usize| {
            let values = f.as_ref().map(|f| f64s(f.tensor.to_f32().unwrap()));
            values.map(|v| v[(at * len).min(v.len() - len)..][..len].to_vec())
        };
        let (core, u, v) = (own(&group.core, r * r), own(&group.u, r), own(&group.v, m));
        let middle = |k: usize, i: usize| match (&core, &u) {
            (Some(c), _) => c[k * r + i],
            (None, _) if k != i => 0.0,
            (None, Some(u)) => u[k],
            (None, None) => 1.0,
        };
        let mut delta = vec![0.0; target.out * n];
        for i in 0..target.out {
            let row = first + i;
            let v = v.as_ref().map_or(1.0, |v| v[row]);
            for k in 0..r {
                for x in 0..r {
                    let left = group.scaling.factor(r) * v * b[row * r + k] * middle(k, x);
                    for j in 0..n {
                        delta[i * n + j] += left * a[x * n + j];
                    }
                }
            }
        }
        out.insert(module.label(), delta);
    }
    out
}

/// ‖one − Σ w·two‖ over ‖Σ w·two‖, and what the modules of the sum are.
fn off(result: &Adapter, inputs: &[CombineInput]) -> f64 {
    let mut sum: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
    for input in inputs {
        for (name, delta) in dense(&input.adapter) {
            let to = sum.entry(name).or_insert_with(|| vec![0.0; delta.len()]);
            for (to, x) in to.iter_mut().zip(delta) {
                *to += input.weight * x;
            }
        }
    }
    let found = dense(result);
    let (mut square, mut norm) = (0.0, 0.0);
    for (name, wanted) in &sum {
        let none = vec![0.0; wanted.len()];
        let own = found.get(name).unwrap_or(&none);
        for (x, y) in own.iter().zip(wanted) {
            square += (x - y).powi(2);
            norm += y.powi(2);
        }
    }
    assert!(found.keys().all(|name| sum.contains_key(name)));
    if norm == 0.0 {
        square
    } else {
        (square / norm).sqrt()
    }
}

fn form() -> impl Strategy<Value = Form> {
    let layers = prop_oneof![
        Just(vec![0, 1, 2]),
        Just(vec![0, 1, 2]),
        Just(vec![1, 2, 4]),
        Just(vec![3])
    ];
    let seed = || prop_oneof![Just(3u32), Just(3u32), 40u32..60];
    let vector = || prop_oneof![Just(None), (20u32..22).prop_map(Some)];
    let alpha = prop_oneof![Just(2.0), 0.25f64..8.0];
    let flags = (
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    let wide = prop_oneof![Just(Dtype::F32), Just(Dtype::BF16)];
    (
        layers,
        1usize..4,
        flags,
        (vector(), vector()),
        (seed(), seed()),
        wide,
        alpha,
    )
        .prop_map(
            |(layers, rank, (stacked, joint, core, rs), (u, v), (a, b), dtype, alpha)| Form {
                layers,
                rank,
                stacked,
                joint,
                core,
                u,
                v,
                a,
                b,
                dtype,
                alpha,
                rule: match rs {
                    true => ScalingRule::AlphaOverSqrtRank,
                    false => ScalingRule::AlphaOverRank,
                },
            },
        )
}

fn weight() -> impl Strategy<Value = f64> {
    prop_oneof![Just(1.0), Just(-1.0), Just(0.0), -2.0f64..2.0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Breaks where a weight, a scaling, a sign, a layer or a row of any form of adapter goes wrong in a sum, or the
    /// report says another error than there is.
    #[test]
    fn cat_is_the_weighted_sum(forms in prop::collection::vec((form(), weight()), 1..4)) {
        let one = |(i, (form, weight)): (usize, &(Form, f64))| input(&i.to_string(), adapter(groups(form)), *weight);
        let inputs: Vec<CombineInput> = forms.iter().enumerate().map(one).collect();
        let made = combine(&inputs, &CombineOptions::new(CombineMethod::Cat));
        if forms.iter().all(|(_, w)| *w == 0.0) {
            prop_assert_eq!(made.unwrap_err().code(), Code::Usage);
            return Ok(());
        }
        match made {
            // Updates that cancel leave nothing.
            Err(e) => prop_assert_eq!(e.code(), Code::Usage),
            Ok((result, report)) => {
                let right = off(&result, &inputs);
                // What nearly cancels is relative to nearly nothing.
                let norm: f64 = report.modules.iter().map(|m| m.norm * m.norm).sum();
                let bound = 1e-6 * (1.0 + 10.0 / norm.sqrt().max(1e-9));
                prop_assert!(right < bound, "{right} {norm}");
                prop_assert!(report.error < bound, "{} {right}", report.error);
            }
        }
    }
}

/// Breaks where adapters that share A and B become one of zeros in place of an error.
#[test]
fn weights_of_zero_leave_nothing() {
    let other = Form {
        u: Some(20),
        ..plain(2, 3)
    };
    let one = |label, form: &Form| input(label, adapter(groups(form)), 0.0);
    let inputs = [one("a", &plain(2, 3)), one("b", &other)];
    let made = combine(&inputs, &CombineOptions::new(CombineMethod::Cat));
    assert_eq!(made.unwrap_err().code(), Code::Usage);
}

/// Breaks where the weight of an update that comes twice is lost beside one of zero.
#[test]
fn an_update_beside_itself_without_weight_stays() {
    for weights in [[0.0, 1.5], [1.5, 0.0], [-1.0, 1.5]] {
        let one = |weight| input("a", adapter(groups(&plain(2, 3))), weight);
        let inputs = weights.map(one);
        let cat = CombineOptions::new(CombineMethod::Cat);
        let (result, report) = combine(&inputs, &cat).unwrap();
        assert!(off(&result, &inputs) < 1e-6 && report.error < 1e-6);
    }
}

fn plain(rank: usize, seed: u32) -> Form {
    Form {
        layers: vec![0, 1, 2],
        rank,
        stacked: true,
        joint: false,
        core: false,
        u: None,
        v: None,
        a: seed,
        b: seed + 100,
        dtype: Dtype::F32,
        alpha: 2.0,
        rule: ScalingRule::AlphaOverRank,
    }
}

fn tied(a: u32, b: u32, u: Option<u32>, v: Option<u32>) -> Form {
    Form {
        stacked: false,
        a,
        b,
        u,
        v,
        ..plain(2, 0)
    }
}

fn cat(forms: &[Form]) -> Result<(Adapter, CombineReport)> {
    let inputs: Vec<CombineInput> = forms
        .iter()
        .enumerate()
        .map(|(i, f)| input(&i.to_string(), adapter(groups(f)), 0.5 - i as f64))
        .collect();
    let made = combine(&inputs, &CombineOptions::new(CombineMethod::Cat))?;
    assert!(off(&made.0, &inputs) < 1e-6);
    Ok(made)
}

/// Breaks where a sum that one tied adapter is becomes untied, or takes a higher rank than it needs.
#[test]
fn what_stays_tied_and_at_which_rank() {
    for (one, two, is_tied, rank) in [
        // One factor differs: it adds.
        (
            tied(1, 2, Some(3), None),
            tied(1, 2, Some(4), None),
            true,
            2,
        ),
        (
            tied(1, 2, Some(3), Some(5)),
            tied(1, 2, Some(3), Some(6)),
            true,
            2,
        ),
        (tied(1, 2, None, None), tied(1, 9, None, None), true, 2),
        (tied(1, 2, None, None), tied(1, 2, Some(4), None), true, 2),
        // Two differ: side by side, where v is one.
        (tied(1, 2, None, None), tied(8, 9, None, None), true, 4),
        (
            tied(1, 2, Some(3), Some(5)),
            tied(8, 2, Some(4), Some(5)),
            true,
            4,
        ),
        // Different v: B is of each layer, over one A where they have one.
        (
            tied(1, 2, Some(3), Some(5)),
            tied(1, 2, Some(4), Some(6)),
            false,
            2,
        ),
        (
            tied(1, 2, Some(3), Some(5)),
            tied(8, 9, Some(4), Some(6)),
            false,
            4,
        ),
    ] {
        let (made, report) = cat(&[one.clone(), two.clone()]).unwrap();
        for group in &made.groups {
            assert_eq!(group.rank, rank, "{one:?} {two:?}");
            assert_eq!(group.is_tied(), is_tied, "{one:?} {two:?}");
            // A is common in every case.
            assert_eq!(group.a.tensor.shape().len(), 2);
        }
        assert_eq!(report.tied, if is_tied { 6 } else { 0 });
    }
}

/// Breaks where groups that share A between targets are torn apart without need, or are not where others are not joint.
#[test]
fn joint_groups_stay_where_all_are_joint() {
    let joint = |a| Form {
        joint: true,
        ..tied(a, a + 1, Some(3), None)
    };
    let count = |forms: &[Form]| cat(forms).unwrap().0.groups.len();
    assert_eq!(count(&[joint(1), joint(7)]), 1);
    assert_eq!(count(&[joint(1), tied(7, 8, None, None)]), 2);
    let untied = Form {
        joint: true,
        ..plain(2, 30)
    };
    let (made, report) = cat(&[joint(1), untied]).unwrap();
    assert_eq!((made.groups.len(), report.tied), (2, 0));
    assert!(made.groups.iter().all(|g| g.a.tensor.shape() == [3, 4, N]));
}

/// Breaks where numbers in bf16 are rounded again, or an asked-for type is not what is written.
#[test]
fn cat_keeps_numbers_and_other_types_are_asked_for() {
    let half = |seed| Form {
        dtype: Dtype::BF16,
        alpha: 0.7,
        ..plain(2, seed)
    };
    let inputs = [half(1), half(9)].map(|f| input("x", adapter(groups(&f)), 0.3));
    let mut options = CombineOptions::new(CombineMethod::Cat);
    let (made, report) = combine(&inputs, &options).unwrap();
    assert!(
        made.groups
            .iter()
            .all(|g| g.a.tensor.dtype() == Dtype::BF16)
    );
    assert!(report.error < 1e-7, "{}", report.error);
    for (dtype, low, high) in [
        (Dtype::F32, 0.0, 1e-7),
        (Dtype::F16, 0.0, 1e-3),
        (Dtype::I8, 1e-4, 2e-2),
    ] {
        options.dtype = Some(dtype);
        let (made, report) = combine(&inputs, &options).unwrap();
        assert!(made.groups.iter().all(|g| g.a.tensor.dtype() == dtype));
        assert!(
            (low..high).contains(&report.error),
            "{dtype} {}",
            report.error
        );
        assert!((report.error - off(&made, &inputs)).abs() < 1e-7);
    }
}

/// Breaks where a truncation is not the best of its ranks, passes its budget, or unties what is smaller tied.
#[test]
fn svd_is_the_closest_within_its_budget() {
    let inputs = [plain(3, 1), plain(2, 50)].map(|f| input("x", adapter(groups(&f)), 0.8));
    let mut options = CombineOptions::new(CombineMethod::Svd);
    let (made, report) = combine(&inputs, &options).unwrap();
    assert_eq!(report.rank, 3);
    let bound = report.bound.unwrap();
    assert!(report.error >= bound && report.error < bound + 1e-6);
    assert!((report.error - off(&made, &inputs)).abs() < 1e-6);
    options.budget = Some(Budget::Tolerance(0.2));
    let (_, report) = combine(&inputs, &options).unwrap();
    assert!(report.error <= 0.2);
    options.budget = Some(Budget::Rank(5));
    assert!(combine(&inputs, &options).unwrap().1.error < 1e-6);
    options.budget = Some(Budget::Bytes(2600));
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join("x.tl");
    let written = combine_to(&inputs, &written, &options, Progress::new()).unwrap();
    assert!(written.bytes <= 2600, "{}", written.bytes);
    let both = [tied(1, 2, Some(3), None), tied(8, 9, Some(4), None)]
        .map(|f| input("x", adapter(groups(&f)), 1.0));
    options.budget = None;
    assert_eq!(combine(&both, &options).unwrap().1.tied, 6);
    // One adapter has tied modules that are not cut: bound and error are of all.
    let mixed = [
        Form {
            rule: ScalingRule::AlphaOverRank,
            ..tied(1, 2, Some(3), None)
        },
        plain(4, 60),
    ];
    let mixed: Vec<CombineInput> = mixed
        .iter()
        .enumerate()
        .map(|(i, f)| input("x", adapter(groups(f).split_off(i)), 1.0))
        .collect();
    options.budget = Some(Budget::Tolerance(0.3));
    let (made, report) = combine(&mixed, &options).unwrap();
    assert!(report.bound.unwrap() <= report.error && report.error <= 0.3);
    assert!((report.error - off(&made, &mixed)).abs() < 1e-6);
    options.budget = Some(Budget::Rank(2));
    let (_, report) = combine(&both, &options).unwrap();
    assert_eq!((report.tied, report.rank), (0, 2));
}

/// Breaks where a dense update is cut otherwise than by all of its singular values, by iteration too.
#[test]
fn the_leading_triplets_are_the_largest() {
    let (m, n) = (300, 280);
    let values = tensor(Dtype::F32, &[m, n], 5).to_f32().unwrap();
    let rough: Vec<f32> = values
        .iter()
        .enumerate()
        .map(|(at, x)| x / (1 + at % n) as f32)
        .collect();
    let squares = leading::singular_squares(&rough, n).unwrap();
    for rank in [1, 7, 40] {
        let found = leading::leading(&rough, n, rank).unwrap();
        assert_eq!(found.rank, rank);
        let mut off = 0.0;
        for i in 0..m {
            for j in 0..n {
                let made: f64 = (0..rank)
                    .map(|k| f64::from(found.b[i * rank + k]) * f64::from(found.a[k * n + j]))
                    .sum();
                off += (f64::from(rough[i * n + j]) - made).powi(2);
            }
        }
        let best: f64 = squares[rank..].iter().sum();
        assert!((off / best - 1.0).abs() < 1e-4, "{rank} {off} {best}");
    }
}

/// Breaks where a number of threads changes a byte, of methods that draw and sort above all.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let inputs = [plain(3, 1), plain(3, 50)].map(|f| input("x", adapter(groups(&f)), 0.8));
    for method in CombineMethod::ALL {
        let mut options = CombineOptions::new(method);
        options.density = method.is_sparse().then_some(0.6);
        options.seed = 7;
        let roots: Vec<Digest> = [1, 3]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let made = pool.install(|| combine(&inputs, &options)).unwrap();
                crate::format::encode(&made.0).unwrap().manifest.root()
            })
            .to_vec();
        assert_eq!(roots[0], roots[1], "{method}");
    }
}

/// Breaks where A and B are added with another weight than PEFT's, in a tied group too.
#[test]
fn linear_adds_roots_of_weights() {
    for forms in [
        [plain(2, 1), plain(2, 40)],
        [tied(1, 2, None, None), tied(8, 9, None, None)],
    ] {
        let inputs: Vec<CombineInput> = forms
            .iter()
            .zip([0.6, -0.9])
            .map(|(f, w)| input("x", adapter(groups(f)), w))
            .collect();
        let (made, _) = combine(&inputs, &CombineOptions::new(CombineMethod::Linear)).unwrap();
        for (at, group) in made.groups.iter().enumerate() {
            let of = |i: usize| inputs[i].adapter.groups[at].right(1).unwrap();
            let (one, two) = (of(0), of(1));
            for (k, x) in group.right(1).unwrap().iter().enumerate() {
                let right = 0.6f64.sqrt() * f64::from(one[k]) - 0.9f64.sqrt() * f64::from(two[k]);
                assert!((f64::from(*x) - right).abs() < 1e-6);
            }
        }
    }
    let other = [plain(2, 1), plain(3, 40)].map(|f| input("x", adapter(groups(&f)), 1.0));
    let refused = combine(&other, &CombineOptions::new(CombineMethod::Linear)).unwrap_err();
    assert_eq!(refused.code(), Code::AdaptersConflict);
}

mod refusals;
