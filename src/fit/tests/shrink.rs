//! LoRAs of fewer bytes that stay untied.

use super::*;
use crate::adapter::{Adapter, LowRank};
use crate::format::{WriteOptions, encoded_len};
use crate::peft::export::{ExportOptions, export};

/// A LoRA on q and v of five layers, of which the later ones matter less and the last has no update.
fn falling(seed: u16) -> Tied {
    let mut groups = Vec::new();
    for (t, (name, out)) in [("q_proj", 24), ("v_proj", 9)].into_iter().enumerate() {
        for l in 0..5u8 {
            let size = [1.0, 0.5, 0.3, 0.02, 0.0][usize::from(l)];
            let salt = 100 * t as u8 + 2 * l;
            let a = values(4 * 20, seed, salt);
            let b: Vec<f32> = values(out * 4, seed, salt + 1);
            let b: Vec<f32> = b.iter().map(|x| size * x).collect();
            groups.push(module(name, l.into(), &a, &b, 4));
        }
    }
    tied(groups)
}

/// ‖ΔW − ΔW'‖² and ‖ΔW‖² of all modules; one that is not there is no update.
fn distance(tied: &Tied, adapter: &Adapter) -> (f64, f64) {
    let places = adapter.modules();
    let of_module = |m: crate::adapter::Module| {
        let before = tied.source.groups[m.group].low_rank(0, 0).unwrap();
        let place = places.iter().find(|p| p.path == m.path);
        let after = match place {
            Some(p) => adapter.groups[p.group].low_rank(p.layer, p.target).unwrap(),
            None => LowRank {
                left: vec![0.0; before.out],
                right: vec![0.0; before.in_features],
                rank: 1,
                ..before.clone()
            },
        };
        let error = delta_error(&before, &after).unwrap();
        (error.frobenius.powi(2), error.norm.powi(2))
    };
    let pairs = tied.source.modules().into_iter().map(of_module);
    pairs.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y))
}

/// Breaks where a budget is passed or left unused, an error told is not that of what is written, or one
/// rank for all modules would have been closer.
#[test]
fn every_budget_is_kept_and_spent_where_it_counts() {
    let tied = falling(3);
    let mut last = f64::INFINITY;
    let budgets = [1_500, 4_000, 8_000, 12_000, 100_000].map(Budget::Bytes);
    let others = [
        Budget::Rank(2),
        Budget::Tolerance(0.2),
        Budget::Tolerance(1e-6),
    ];
    for budget in budgets.into_iter().chain(others) {
        let (adapter, report) = shrink(&tied, budget, Dtype::F32).unwrap();
        let (off, norm) = distance(&tied, &adapter);
        let right = (off / norm).sqrt();
        assert!(
            (report.error - right).abs() < 1e-6,
            "{budget:?} {right} {report:?}"
        );
        assert!(report.bound <= report.error + 1e-9);
        match budget {
            Budget::Bytes(bytes) => {
                assert!(encoded_len(&adapter, &WriteOptions::default()).unwrap() <= bytes);
                assert!(report.error < last || report.error < 1e-6, "{report:?}");
                last = report.error;
            }
            Budget::Rank(rank) => assert!(report.modules.iter().all(|m| m.rank <= rank)),
            Budget::Tolerance(error) => assert!(report.error <= error + 1e-6),
        }
        if let Some(uniform) = report.uniform {
            assert!(report.bound <= uniform + 1e-12, "{report:?}");
        }
        for module in report.modules.iter().filter(|m| m.module.contains(".4.")) {
            assert_eq!((module.rank, module.error), (0, 0.0), "no update to keep");
        }
    }
}

/// Breaks where ranks that differ from layer to layer do not survive PEFT's form.
#[test]
fn a_shrunk_lora_is_a_lora_to_peft() {
    let tied = falling(4);
    let (adapter, report) = shrink(&tied, Budget::Tolerance(0.3), Dtype::F32).unwrap();
    let ranks: std::collections::BTreeSet<usize> = report.modules.iter().map(|m| m.rank).collect();
    assert!(ranks.len() > 2, "{ranks:?}");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("peft");
    export(&adapter, &folder, &ExportOptions::default()).unwrap();
    let again = import_tied(&folder, &ToTiedOptions::default()).unwrap();
    let (off, norm) = distance(&tied, &again.adapter);
    assert!(((off / norm).sqrt() - report.error).abs() < 1e-6);
    assert_eq!(again.adapter.modules().len(), adapter.modules().len());
}

/// Breaks where the error of a type is not counted, or the rounding of stacked layers is another.
#[test]
fn the_error_is_of_the_type_it_is_stored_in() {
    let tied = falling(5);
    let exact = Budget::Rank(4);
    for (dtype, from, to) in [
        (Dtype::F32, 0.0, 1e-6),
        (Dtype::F16, 1e-5, 1e-3),
        (Dtype::BF16, 1e-4, 1e-2),
        (Dtype::I8, 1e-4, 2e-2),
    ] {
        let (adapter, report) = shrink(&tied, exact, dtype).unwrap();
        let (off, norm) = distance(&tied, &adapter);
        assert!(
            (from..to).contains(&report.error),
            "{dtype} {}",
            report.error
        );
        let right = (off / norm).sqrt();
        assert!(
            (report.error - right).abs() < 1e-6,
            "{dtype} {right} {}",
            report.error
        );
        for group in &adapter.groups {
            assert_eq!(group.a.tensor.dtype(), dtype);
        }
    }
}

/// Breaks where what is tied is untied, or an adapter without a LoRA makes an empty one.
#[test]
fn tied_groups_stay_and_nothing_makes_nothing() {
    let a = values(2 * 20, 1, 1);
    let same = |l: u32| module("o_proj", l, &a, &values(2 * 6, 1, 2), 2);
    let both = tied([vec![same(0), same(1)], falling(6).source.groups].concat());
    let (adapter, report) = shrink(&both, Budget::Rank(1), Dtype::F32).unwrap();
    assert_eq!(report.kept.len(), 2, "{report:?}");
    assert!(adapter.groups.iter().any(|g| g.is_tied() && g.rank == 2));
    let e = shrink(&tied(vec![same(0), same(1)]), Budget::Rank(1), Dtype::F32).unwrap_err();
    assert_eq!(e.code(), Code::Usage);
    for budget in [Budget::Bytes(100), Budget::Rank(0), Budget::Tolerance(2.0)] {
        let e = shrink(&both, budget, Dtype::F32).unwrap_err();
        assert_eq!(e.code(), Code::Usage, "{budget:?}");
    }
}

/// Breaks where the base's fingerprint is still of modules that are left out.
#[test]
fn the_fingerprint_is_of_what_is_left() {
    use crate::convert::check_fingerprint;
    use crate::format::{NoBlobs, TlFile};
    use crate::fs::Existing;
    use crate::safetensors::{Checkpoint, write_tensors};

    let tied = falling(7);
    let dir = tempfile::tempdir().unwrap();
    let named = |m: crate::adapter::Module| {
        let group = &tied.source.groups[m.group];
        let shape = vec![group.targets[0].out, group.in_features];
        let numbers = values(shape.iter().product(), 9, m.group as u8);
        let tensor = Tensor::from_f32(shape, &numbers).unwrap();
        (format!("{}.weight", m.path), tensor)
    };
    let tensors: Vec<_> = tied.source.modules().into_iter().map(named).collect();
    let path = dir.path().join("base.safetensors");
    write_tensors(&path, Existing::Refuse, &[], &tensors).unwrap();
    let base = Checkpoint::open(&path).unwrap();
    let (folder, out) = (dir.path().join("peft"), dir.path().join("a.tl"));
    export(&tied.source, &folder, &ExportOptions::default()).unwrap();
    let options = ToTiedOptions {
        base: Some(&base),
        ..ToTiedOptions::default()
    };
    let report = peft_to_untied(&folder, &out, &options, Budget::Rank(2), Dtype::F32).unwrap();
    assert!(report.shrunk.modules.iter().any(|m| m.rank == 0));
    let written = TlFile::open(&out).unwrap().load(&NoBlobs).unwrap();
    assert!(written.modules().len() < tensors.len());
    check_fingerprint(&written, &base, &[]).unwrap();
}
