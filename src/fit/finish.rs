//! From factors to a tie group, and what it comes to.

use super::choose::{Origin, Solution};
use super::factors::{Factors, tie_group};
use super::measure::measure;
use super::modules::ModuleSet;
use super::report::{GroupFit, LayerFit};
use super::solver::problem::Problem;
use super::solver::starts::Start;
use super::solver::untied::{NUMBER_BYTES, Untied};
use crate::adapter::TieGroup;
use crate::error::Result;
use crate::tensor::worst::is_within;

/// The tie group of a solution. One to the updates is never worse than the triplets.
pub(super) fn finish(
    set: &ModuleSet,
    problem: &Problem,
    found: Solution,
) -> Result<(TieGroup, GroupFit)> {
    let updates = set.updates()?;
    let group = tie_group(set, problem, &found.factors)?;
    let errors = measure(&updates, &group)?;
    let sum: f64 = errors.iter().sum();
    if found.origin == Origin::TRIPLETS {
        let report = describe(set, problem, &group, &errors, sum, found.origin)?;
        return Ok((group, report));
    }
    let triplets = Factors::plain(problem, &problem.triplets(group.rank));
    let triplets = tie_group(set, problem, &triplets)?;
    let triplet_errors = measure(&updates, &triplets)?;
    let baseline: f64 = triplet_errors.iter().sum();
    // Both as they are written, so that rounding to f32 cannot put the fit above the triplets.
    let is_worse = baseline.is_finite() && !is_within(sum, baseline);
    let (group, errors, origin) = match is_worse && found.origin.start != Start::Outputs {
        true => (triplets, triplet_errors, Origin::TRIPLETS),
        false => (group, errors, found.origin),
    };
    let report = describe(set, problem, &group, &errors, baseline, origin)?;
    Ok((group, report))
}

/// What a tie group of a set of modules comes to: `errors` are its squared ones, layer by layer, and
/// `baseline` that of the triplets.
pub(super) fn describe(
    set: &ModuleSet,
    problem: &Problem,
    group: &TieGroup,
    errors: &[f64],
    baseline: f64,
    origin: Origin,
) -> Result<GroupFit> {
    let share = |square: f64| (square / problem.square).sqrt();
    let layers = layer_fits(set, problem, errors);
    let worst = layers.iter().fold(layers[0], |worst, l| {
        match worst.error.is_nan() || l.error <= worst.error {
            true => worst,
            false => *l,
        }
    });
    let numbers = group
        .factors()
        .map(|(_, f)| f.tensor.shape().iter().product::<usize>() as u64);
    let bytes_as_f32 = NUMBER_BYTES * numbers.sum::<u64>();
    let with_v = group.v.is_some();
    let bound_with_v = share(problem.bound_with_v(group.rank));
    Ok(GroupFit {
        targets: set.targets.iter().map(|t| t.module.clone()).collect(),
        rank: group.rank,
        with_core: group.core.is_some(),
        with_v,
        error: share(errors.iter().sum()),
        bound: match with_v {
            true => bound_with_v,
            false => share(problem.bound(group.rank)),
        },
        bound_with_v,
        baseline: share(baseline),
        untied: share(untied_error(set, problem, bytes_as_f32)?),
        norm: problem.square.sqrt(),
        bytes_before: set.bytes(),
        bytes: group.factors().map(|(_, f)| f.tensor.byte_len()).sum(),
        start: origin.start,
        sweeps: origin.sweeps,
        worst_layer: worst.layer,
        layers,
    })
}

/// Squared error of the best LoRA of so many bytes.
fn untied_error(set: &ModuleSet, problem: &Problem, bytes: u64) -> Result<f64> {
    let together = problem.triplet_error(set.untied_terms(bytes));
    if set.targets.len() == 1 {
        return Ok(together);
    }
    // A joint group's triplets share A, as a LoRA's need not.
    Ok(together.min(Untied::new(set.values()?).spend(bytes).1))
}

fn layer_fits(set: &ModuleSet, problem: &Problem, errors: &[f64]) -> Vec<LayerFit> {
    let norms = problem.layer_squares();
    let fits = set.layers.iter().zip(errors).zip(norms);
    fits.map(|((layer, error), norm)| LayerFit {
        layer: *layer,
        // A layer without an update gets u = 0, and so no error.
        error: if norm > 0.0 {
            (error / norm).sqrt()
        } else {
            0.0
        },
    })
    .collect()
}
