//! Fits with cores, quick ones, and storage types.

use super::*;

/// Planted cores, the factors of each layer mixed by a matrix of their own: B·C_l·A.
fn planted_cores(rank: usize, layers: u32, seed: u16) -> Tied {
    let (n, out) = (40, 24);
    let (a, b) = (values(rank * n, seed, 1), values(out * rank, seed, 2));
    let groups = (0..layers).map(|l| {
        let core = values(rank * rank, seed, 10 + l as u8);
        module("q_proj", l, &product(&core, &a, rank), &b, rank)
    });
    tied(groups.collect())
}

/// Breaks where cores that are there are not found, where cores of a rank are worse than u of that
/// rank (of which they are more), or what is written is not what the report says.
#[test]
fn cores_are_found_and_never_worse_than_u() {
    for (rank, layers, seed) in [(3, 4, 1), (6, 5, 2)] {
        let tied = planted_cores(rank, layers, seed);
        let fit = FitOptions {
            core: true,
            ..options(rank, false)
        };
        let (adapter, report) = fit_adapter(&tied, &fit).unwrap();
        assert!(report.error < 1e-5, "{rank} {}", report.error);
        assert!(report.groups[0].with_core && adapter.groups[0].core.is_some());
        check_report(&tied, &adapter, &report);
        let (_, plain) = fit_adapter(&tied, &options(rank, false)).unwrap();
        assert!(plain.error > 100.0 * report.error, "{}", plain.error);
        let tolerance = FitOptions {
            budget: Budget::Tolerance(1e-3),
            ..fit
        };
        let (_, least) = fit_adapter(&tied, &tolerance).unwrap();
        assert!(least.error <= 1e-3 && least.rank == rank, "{least:?}");
    }
    let random = random_lora(&[("q_proj", 24), ("v_proj", 17)], 5, 40, 3, 11);
    for rank in [1, 2, 5, 9] {
        for joint in [false, true] {
            let plain = options(rank, joint);
            let fit = FitOptions {
                core: true,
                ..plain
            };
            let (adapter, report) = fit_adapter(&random, &fit).unwrap();
            check_report(&random, &adapter, &report);
            let (_, with_u) = fit_adapter(&random, &plain).unwrap();
            if with_u.groups.iter().all(|g| !g.with_v) {
                assert!(report.error <= with_u.error + 1e-9, "{rank} {joint}");
            }
        }
    }
    let bytes = FitOptions {
        budget: Budget::Bytes(9000),
        core: true,
        joint: false,
        quick: false,
    };
    let e = fit_adapter(&random, &bytes).unwrap_err();
    assert_eq!(e.code(), Code::Usage);
}

/// Breaks where a quick fit is not the triplets, or takes more rank for a tolerance than they need.
#[test]
fn quick_fits_are_the_triplets() {
    let tied = random_lora(&[("q_proj", 24), ("v_proj", 17)], 5, 40, 3, 11);
    for joint in [false, true] {
        let fit = FitOptions {
            quick: true,
            ..options(5, joint)
        };
        let (adapter, report) = fit_adapter(&tied, &fit).unwrap();
        check_report(&tied, &adapter, &report);
        assert!(report.error > report.baseline * (1.0 - 1e-9), "{report:?}");
        let (_, searched) = fit_adapter(&tied, &options(5, joint)).unwrap();
        assert!(searched.error < report.error);
        let within = FitOptions {
            budget: Budget::Tolerance(report.groups[0].error + 1e-6),
            ..fit
        };
        let (_, within) = fit_adapter(&tied, &within).unwrap();
        assert_eq!(within.groups[0].rank, 5);
        let cores = FitOptions { core: true, ..fit };
        let (adapter, cores) = fit_adapter(&tied, &cores).unwrap();
        check_report(&tied, &adapter, &cores);
        assert!(cores.error <= report.error + 1e-9);
    }
}

/// Breaks where the rounding to a storage type is not in the errors told, or what is kept is rounded.
#[test]
fn errors_include_the_rounding_to_a_storage_type() {
    let mut groups = planted_cores(3, 4, 5).source.groups;
    let alone = module("up_proj", 7, &values(60, 3, 1), &values(30, 3, 2), 3);
    groups.push(alone.clone());
    let tied = tied(groups);
    for core in [false, true] {
        let fit = FitOptions {
            core,
            ..options(3, false)
        };
        let found = fit_adapter(&tied, &fit).unwrap();
        let exact = found.1.clone();
        for (dtype, most) in [(Dtype::F16, 1e-3), (Dtype::BF16, 1e-2), (Dtype::I8, 3e-2)] {
            let (adapter, report) = stored_as(&tied, &fit, found.clone(), dtype).unwrap();
            check_layers(&tied, &adapter, &report);
            assert!(report.error > exact.error, "{dtype} {}", report.error);
            assert!(
                report.error < exact.error + most,
                "{dtype} {}",
                report.error
            );
            assert!(report.bytes < exact.bytes && report.untied == exact.untied);
            let kept = |g: &&TieGroup| g.targets == alone.targets;
            let kept = adapter.groups.iter().find(kept).unwrap();
            assert_eq!(kept.a.tensor.dtype(), Dtype::F32);
        }
    }
}
