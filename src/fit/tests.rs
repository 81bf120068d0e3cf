mod forms;
mod shrink;

use proptest::prelude::*;

use super::select::select;
use super::solver::untied::Untied;
use super::*;
use crate::adapter::{Adapter, DeltaError, TieGroup, delta_error};
use crate::adapter::{Factor, ModuleKind, Scaling, Seed, Target};
use crate::convert::{Found, Tied, ToTiedOptions, find_ties, import_tied};
use crate::error::Code;
use crate::format::generate;
use crate::open::Source;
use crate::peft::import::PeftKind;
use crate::tensor::{Dtype, Tensor};
use crate::testing::shared;

pub(super) fn values(len: usize, seed: u16, salt: u8) -> Vec<f32> {
    let mut key = [salt; 32];
    key[..2].copy_from_slice(&seed.to_le_bytes());
    let step = f32::powi(2.0, -23);
    generate(&Seed { key, step }, len).unwrap()
}

/// rows × inner · inner × columns, row-major.
fn product(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    let columns = b.len() / inner;
    let entry = |i: usize, j: usize| -> f64 {
        (0..inner)
            .map(|k| f64::from(a[i * inner + k]) * f64::from(b[k * columns + j]))
            .sum()
    };
    (0..a.len() / inner)
        .flat_map(|i| (0..columns).map(move |j| (i, j)))
        .map(|(i, j)| entry(i, j) as f32)
        .collect()
}

/// One module of a LoRA as an import makes it.
pub(super) fn module(name: &str, layer: u32, a: &[f32], b: &[f32], rank: usize) -> TieGroup {
    let (n, out) = (a.len() / rank, b.len() / rank);
    let factor = |shape, values| Factor::trained(Tensor::from_f32(shape, values).unwrap());
    TieGroup {
        layers: Some(vec![layer]),
        experts: None,
        rank,
        in_features: n,
        scaling: Scaling::one(rank),
        a: factor(vec![rank, n], a),
        b: factor(vec![out, rank], b),
        core: None,
        u: None,
        v: None,
        targets: vec![Target {
            module: format!("model.layers.{{}}.self_attn.{name}"),
            out,
            kind: ModuleKind::Linear,
        }],
    }
}

pub(super) fn tied(groups: Vec<TieGroup>) -> Tied {
    let source = Adapter {
        groups,
        ..Adapter::default()
    };
    let (adapter, found) = find_ties(&source, PeftKind::Lora).unwrap();
    Tied {
        adapter,
        from: Source::Peft(PeftKind::Lora),
        found,
        source,
        worst: DeltaError {
            frobenius: 0.0,
            norm: 0.0,
            relative: 0.0,
            max_abs: 0.0,
        },
        worst_module: String::new(),
        left_out: Vec::new(),
        bytes: 0,
        notes: Vec::new(),
    }
}

fn random_lora(names: &[(&str, usize)], layers: u32, n: usize, rank: usize, seed: u16) -> Tied {
    let mut groups = Vec::new();
    for (t, (name, out)) in names.iter().enumerate() {
        for l in 0..layers {
            let salt = (t as u8) * 100 + 2 * l as u8;
            let a = values(rank * n, seed, salt);
            let b = values(out * rank, seed, salt + 1);
            groups.push(module(name, 2 * l, &a, &b, rank));
        }
    }
    tied(groups)
}

/// B·diag(u_l)·A of q and v, the factors of each layer and target mixed by a matrix of their own.
fn scrambled(rank: usize, layers: u32, seed: u16) -> Tied {
    scrambled_with(rank, layers, seed, false)
}

/// As [`scrambled`], and where `with_v` as diag(v_l)·B·diag(u_l)·A.
fn scrambled_with(rank: usize, layers: u32, seed: u16, with_v: bool) -> Tied {
    let (n, out) = (40, 24);
    let a = values(rank * n, seed, 1);
    let mut groups = Vec::new();
    for (t, name) in [(2u8, "q_proj"), (3, "v_proj")] {
        let tied_b = values(out * rank, seed, t);
        for l in 0..layers {
            let v = values(out, seed, 60 + 30 * t + l as u8);
            let v = |row: usize| if with_v { v[row] } else { 1.0 };
            let b: Vec<f32> = tied_b
                .chunks(rank)
                .enumerate()
                .flat_map(|(row, b)| b.iter().map(move |b| b * v(row)))
                .collect();
            let u = values(rank, seed, 10 + l as u8);
            let mixer = values(rank * rank, seed, 100 + 20 * t + l as u8);
            let mixer_matrix = faer::Mat::from_fn(rank, rank, |i, j| {
                f64::from(mixer[i * rank + j]) + if i == j { 1.5 } else { 0.0 }
            });
            let inverse =
                faer::linalg::solvers::DenseSolveCore::inverse(&mixer_matrix.partial_piv_lu());
            let flat = |m: &faer::Mat<f64>| -> Vec<f32> {
                let row = |i| (0..rank).map(move |j| m[(i, j)] as f32);
                (0..rank).flat_map(row).collect()
            };
            let scaled: Vec<f32> = a
                .chunks(n)
                .zip(&u)
                .flat_map(|(row, u)| row.iter().map(move |x| x * u))
                .collect();
            let left = product(&b, &flat(&mixer_matrix), rank);
            let right = product(&flat(&inverse), &scaled, rank);
            groups.push(module(name, l, &right, &left, rank));
        }
    }
    tied(groups)
}

fn options(rank: usize, joint: bool) -> FitOptions {
    FitOptions {
        budget: Budget::Rank(rank),
        joint,
        core: false,
        quick: false,
    }
}

/// The report's errors are those of the result, and between bound and baseline.
fn check_report(tied: &Tied, adapter: &Adapter, report: &FitReport) {
    for group in &report.groups {
        assert!(group.error <= group.baseline, "{group:?}");
        let in_order = group.bound_with_v <= group.bound && group.bound <= group.error;
        assert!(
            !group.with_v || group.bound == group.bound_with_v,
            "{group:?}"
        );
        assert!(in_order, "{group:?}");
        assert!(group.untied <= group.baseline + 1e-6, "{group:?}");
    }
    check_layers(tied, adapter, report);
    assert!(report.bound <= report.error && report.error <= report.baseline);
}

/// The errors told of each layer are those of the result.
fn check_layers(tied: &Tied, adapter: &Adapter, report: &FitReport) {
    let source = tied.source.modules();
    for group in &report.groups {
        for fit in &group.layers {
            let (mut off, mut norm) = (0.0, 0.0);
            for target in &group.targets {
                let path = target.replace("{}", &fit.layer.to_string());
                let find = |all: &[crate::adapter::Module]| {
                    all.iter().find(|m| m.path == path).cloned().unwrap()
                };
                let (old, new) = (find(&source), find(&adapter.modules()));
                let before = tied.source.groups[old.group].low_rank(0, 0).unwrap();
                let after = adapter.groups[new.group].low_rank(new.layer, new.target);
                let error = delta_error(&before, &after.unwrap()).unwrap();
                off += error.frobenius.powi(2);
                norm += error.norm.powi(2);
            }
            let want = if norm > 0.0 { (off / norm).sqrt() } else { 0.0 };
            assert!((fit.error - want).abs() < 1e-6, "{} {want}", fit.error);
        }
    }
}

#[test]
fn a_tied_adapter_behind_mixed_factors_is_recovered() {
    // Plain alternating least squares stops at a few per cent here; the pencils are exact.
    for (rank, layers, seed) in [(4, 3, 1), (8, 6, 2), (12, 5, 3)] {
        let tied = scrambled(rank, layers, seed);
        assert_eq!(tied.found, Found::Untied);
        for joint in [false, true] {
            let (adapter, report) = fit_adapter(&tied, &options(rank, joint)).unwrap();
            assert!(report.error < 1e-4, "{rank} {joint} {}", report.error);
            assert_eq!(report.groups.len(), if joint { 1 } else { 2 });
            assert!(
                report.summary.starts_with("the adapter is tied"),
                "{}",
                report.summary
            );
            check_report(&tied, &adapter, &report);
        }
        // More rank than there is: the columns that carry nothing are not written.
        let (_, report) = fit_adapter(&tied, &options(rank + 3, true)).unwrap();
        assert!(report.error < 1e-4 && report.rank == rank, "{report:?}");
    }
}

/// Breaks where a v that the layers have is not found behind mixed factors, or one is kept that its
/// bytes do not pay for.
#[test]
fn a_planted_v_is_recovered_and_none_is_invented() {
    for (rank, layers, seed) in [(3, 3, 1), (6, 5, 2)] {
        let tied = scrambled_with(rank, layers, seed, true);
        for joint in [false, true] {
            let (adapter, report) = fit_adapter(&tied, &options(rank, joint)).unwrap();
            assert!(report.error < 1e-4, "{rank} {joint} {}", report.error);
            assert!(report.groups.iter().all(|g| g.with_v), "{report:?}");
            check_report(&tied, &adapter, &report);
        }
    }
    let budget = Budget::Tolerance(1e-3);
    let tied = scrambled_with(4, 6, 4, true);
    let fit = FitOptions {
        budget,
        joint: true,
        core: false,
        quick: false,
    };
    let (_, report) = fit_adapter(&tied, &fit).unwrap();
    assert!(report.error <= 1e-3 && report.rank == 4, "{report:?}");
    assert!(report.groups[0].with_v, "{report:?}");
    let random = random_lora(&[("q_proj", 24)], 5, 40, 2, 6);
    let (_, report) = fit_adapter(&random, &options(3, false)).unwrap();
    assert!(!report.groups[0].with_v, "{report:?}");
}

/// Breaks where a file passes its budget, a larger budget gives a worse fit, or bytes go to a group
/// that gains nothing from them.
#[test]
fn a_budget_of_bytes_is_kept_and_spent() {
    let mut groups = random_lora(&[("q_proj", 12), ("v_proj", 9)], 4, 20, 3, 21)
        .source
        .groups;
    // Small updates: the others deserve the bytes.
    for l in 0..4 {
        let a: Vec<f32> = values(60, 9, l).iter().map(|x| 1e-3 * x).collect();
        groups.push(module("o_proj", u32::from(l), &a, &values(30, 8, l), 3));
    }
    let tied = tied(groups);
    let fit = |bytes, joint| {
        let budget = Budget::Bytes(bytes);
        fit_adapter(
            &tied,
            &FitOptions {
                budget,
                joint,
                core: false,
                quick: false,
            },
        )
    };
    let options = crate::format::WriteOptions::default();
    for joint in [false, true] {
        let mut last = f64::INFINITY;
        for bytes in (4096..12_000).step_by(701) {
            let (adapter, report) = fit(bytes, joint).unwrap();
            let len = crate::format::encoded_len(&adapter, &options).unwrap();
            assert!(len <= bytes, "{len} {bytes}");
            // A rank of the widest group is 41 numbers.
            assert!(len + 4 * 64 > bytes || report.error < 1e-5, "{len} {bytes}");
            assert!(report.error < last + 1e-3, "{bytes}");
            last = report.error;
            check_report(&tied, &adapter, &report);
        }
    }
    let (_, report) = fit(5000, false).unwrap();
    let of = |name: &str| {
        let group = report.groups.iter().find(|g| g.targets[0].ends_with(name));
        group.unwrap().rank
    };
    assert!(of("o_proj") == 1 && of("q_proj") > 2, "{report:?}");
    let error = fit(1000, false).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
}

/// Breaks where the LoRAs that a fit is compared with do not lose what the truncated updates lose,
/// take more bytes than they may, or a curve's numbers are not those of the fits.
#[test]
fn a_curve_compares_with_loras_of_the_same_bytes() {
    let tied = random_lora(&[("q_proj", 12), ("v_proj", 6)], 4, 20, 3, 31);
    for joint in [false, true] {
        let curve = fit_curve(&tied, &CurveOptions { joint }).unwrap();
        let ranks: Vec<usize> = curve.points.iter().map(|p| p.rank).collect();
        assert_eq!(ranks[..5], [1, 2, 3, 4, 6]);
        for p in &curve.points {
            assert!(p.bound_with_v <= p.bound && p.bound <= p.error, "{p:?}");
            assert!(
                p.error <= p.baseline && p.global <= p.per_module + 1e-9,
                "{p:?}"
            );
            assert!(p.bytes <= curve.bytes_before, "{p:?}");
            let (_, fit) = fit_adapter(&tied, &options(p.rank, joint)).unwrap();
            assert!(
                fit.error <= p.error + 1e-6 && fit.bytes >= p.bytes,
                "{p:?} {fit:?}"
            );
        }
        let falls = |w: &[CurvePoint]| w[1].error < w[0].error && w[1].global <= w[0].global;
        assert!(curve.points.windows(2).all(falls), "{curve:?}");
        assert!(
            curve.summary.starts_with("tying pays at none"),
            "{}",
            curve.summary
        );
        assert!(figure(&curve).unwrap().contains("<svg"));
        assert!(curve.f16.error < 1e-3 && curve.f16.bytes == curve.bytes_before / 2);
        assert!(curve.int8.error > curve.f16.error && curve.int8.error < 0.02);
        let falls = |w: &[CurveCoded]| w[1].bytes > w[0].bytes && w[1].error < w[0].error;
        assert!(curve.coded.windows(2).all(falls), "{curve:?}");
        assert!(curve.coded.iter().all(|p| p.bound_bytes < p.bytes));
    }
    // What scales the updates scales what types take off them.
    let mut scaled = tied.source.groups.clone();
    scaled.iter_mut().for_each(|g| g.scaling.alpha *= 4.0);
    let [one, four] =
        [&tied.source.groups, &scaled].map(|g| super::forms::stored(g, Dtype::I8).unwrap());
    assert!((four.error / one.error - 1.0).abs() < 1e-6);
    // At half the bytes, each module keeps one of its three terms.
    let plan = select(&tied, &options(1, false)).unwrap();
    let values = plan.sets.iter().flat_map(|set| set.values().unwrap());
    let untied = Untied::new(values.collect());
    let all = 4 * 4 * 3 * (32 + 26);
    assert_eq!(untied.per_module(all / 2).0, 1);
    assert!(untied.per_module(all).1 < 1e-9 && untied.spend(all).1 < 1e-9);
    assert!((untied.spend(0).1 - untied.square()).abs() < 1e-9 * untied.square());
    let mut dense = 0.0;
    for group in &tied.source.groups {
        let delta = group.low_rank(0, 0).unwrap().delta();
        let delta = faer::Mat::from_fn(delta.nrows(), delta.ncols(), |i, j| {
            f64::from(delta[[i, j]])
        });
        let svd = delta.thin_svd().unwrap();
        dense += svd
            .S()
            .column_vector()
            .iter()
            .skip(1)
            .map(|s| s * s)
            .sum::<f64>();
    }
    let per_module = untied.per_module(all / 2).1;
    assert!(
        (per_module - dense).abs() < 1e-5 * dense,
        "{per_module} {dense}"
    );
    let scrambled = fit_curve(&scrambled(4, 6, 5), &CurveOptions { joint: true }).unwrap();
    assert!(
        scrambled.summary.starts_with("tying pays: at rank 4"),
        "{}",
        scrambled.summary
    );
}

#[test]
fn the_tolerance_finds_the_planted_rank() {
    let budget = Budget::Tolerance(1e-3);
    let tied = scrambled(5, 4, 7);
    let fit = FitOptions {
        budget,
        joint: true,
        core: false,
        quick: false,
    };
    let (_, report) = fit_adapter(&tied, &fit).unwrap();
    assert!(report.error <= 1e-3 && report.rank == 5, "{report:?}");
    for bad in [
        Budget::Tolerance(f64::NAN),
        Budget::Tolerance(0.0),
        Budget::Rank(0),
    ] {
        let fit = FitOptions {
            budget: bad,
            joint: false,
            core: false,
            quick: false,
        };
        assert_eq!(fit_adapter(&tied, &fit).unwrap_err().code(), Code::Usage);
    }
}

#[test]
fn what_is_tied_already_and_what_has_one_layer_stays() {
    // Fails if a fit touches modules that lose nothing as they are.
    let mut all = random_lora(&[("q_proj", 12), ("o_proj", 10)], 3, 16, 2, 5)
        .source
        .groups;
    let (a, b) = (values(2 * 16, 9, 1), values(8 * 2, 9, 2));
    all.push(module("k_proj", 4, &a, &b, 2));
    for l in 0..3 {
        let a: Vec<f32> = a.iter().map(|x| x * (l + 1) as f32).collect();
        all.push(module("v_proj", l, &a, &b, 2));
    }
    for l in 0..2 {
        all.push(module(
            "gate_proj",
            l,
            &values(32, l as u16, 1),
            &[0.0; 8],
            2,
        ));
    }
    let tied = tied(all);
    let (adapter, report) = fit_adapter(&tied, &options(2, true)).unwrap();
    let targets: Vec<&String> = report.groups.iter().flat_map(|g| &g.targets).collect();
    assert_eq!(targets.len(), 2, "{targets:?}");
    assert_eq!(report.kept.len(), 6, "{:?}", report.kept);
    assert_eq!(adapter.modules().len(), tied.source.modules().len());
    check_report(&tied, &adapter, &report);
}

#[test]
fn layers_without_an_update_and_of_other_ranks_are_fitted_with_the_rest() {
    let mut groups = random_lora(&[("q_proj", 12)], 3, 16, 2, 11).source.groups;
    groups.push(module("q_proj", 9, &values(48, 1, 1), &values(36, 1, 2), 3));
    groups.push(module("q_proj", 10, &values(32, 1, 1), &[0.0; 24], 2));
    let tied = tied(groups);
    let (adapter, report) = fit_adapter(&tied, &options(4, false)).unwrap();
    assert_eq!(
        adapter.groups[0].layers.as_deref(),
        Some(&[0, 2, 4, 9, 10][..])
    );
    assert_eq!(report.groups[0].layers[4].error, 0.0);
    check_report(&tied, &adapter, &report);
    let (_, exact) = fit_adapter(&tied, &options(100, false)).unwrap();
    assert!(exact.error < 1e-6 && exact.rank == 9, "{exact:?}");
}

#[test]
fn the_result_is_the_same_for_any_number_of_threads() {
    let tied = random_lora(&[("q_proj", 12), ("k_proj", 6), ("v_proj", 6)], 5, 20, 3, 4);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let (adapter, _) = pool.install(|| fit_adapter(&tied, &options(4, true)).unwrap());
        let bytes = |g: &TieGroup| {
            g.factors()
                .flat_map(|(_, f)| f.tensor.data().to_vec())
                .collect()
        };
        adapter.groups.iter().map(bytes).collect::<Vec<Vec<u8>>>()
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let a = [vec![f32::NAN], values(15, 1, 1)].concat();
    let tied = tied(vec![
        module("q_proj", 0, &a, &values(8, 1, 2), 2),
        module("q_proj", 1, &values(16, 2, 1), &values(8, 2, 2), 2),
    ]);
    let error = fit_adapter(&tied, &options(1, false)).unwrap_err();
    assert_eq!(error.code(), Code::NonFinite);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn between_bound_and_triplets_on_any_lora(
        layers in 2u32..6, n in 2usize..24, out in 1usize..20, r in 1usize..4, rank in 1usize..9,
        seed: u16, joint: bool,
    ) {
        let tied = random_lora(&[("q_proj", out), ("v_proj", 7)], layers, n, r, seed);
        let (adapter, report) = fit_adapter(&tied, &options(rank, joint)).unwrap();
        check_report(&tied, &adapter, &report);
    }
}

#[test]
fn real_adapters_lie_between_bound_and_triplets() {
    for name in [
        "adapters/smollm-135m-r16-qv-medai-ckpt1000",
        "adapters/gpt-oss-20b-r4-qv-luster",
        "peft-interop/adapters/lora-patterns",
        "peft-interop/adapters/lora-gpt2-conv1d",
        "peft-interop/adapters/lora-qkv-r8-bf16",
    ] {
        let Some(dir) = shared(name) else { continue };
        let tied = import_tied(&dir, &ToTiedOptions::default()).unwrap();
        let (_, report) = fit_adapter(&tied, &options(8, false)).unwrap();
        for group in &report.groups {
            assert!(group.error <= group.baseline, "{name} {group:?}");
            assert!(group.bound <= group.error, "{name} {group:?}");
        }
    }
}
