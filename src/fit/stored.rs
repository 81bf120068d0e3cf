//! A fit in other numbers: stored in another type, or trained further.

use super::choose::Origin;
use super::finish::describe;
use super::measure::measure;
use super::options::FitOptions;
use super::report::{FitReport, report};
use super::select::select;
use super::solver::problem::Problem;
use crate::adapter::{Adapter, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// A fit of `tied` with its tie groups stored as `dtype` (F32, BF16, F16, or I8 with a scale for each
/// row), and its errors with that of the rounding. What is kept is kept.
///
/// # Errors
/// Those of [`Adapter::to_dtype`].
pub fn stored_as(
    tied: &Tied,
    options: &FitOptions,
    (mut adapter, fit): (Adapter, FitReport),
    dtype: Dtype,
) -> Result<(Adapter, FitReport)> {
    if dtype == Dtype::F32 {
        return Ok((adapter, fit));
    }
    let fitted = |g: &TieGroup| fit.groups.iter().any(|f| f.describes(g));
    let (groups, kept) = adapter.groups.into_iter().partition(fitted);
    adapter.groups = groups_as(groups, dtype)?;
    adapter.groups.extend::<Vec<_>>(kept);
    adapter.sort();
    adapter.validate()?;
    let fit = measure_again(tied, options, &fit, &adapter)?;
    Ok((adapter, fit))
}

/// Tie groups stored as `dtype`.
pub(super) fn groups_as(groups: Vec<TieGroup>, dtype: Dtype) -> Result<Vec<TieGroup>> {
    let alone = Adapter {
        groups,
        ..Adapter::default()
    };
    Ok(alone.to_dtype(dtype)?.groups)
}

/// `before`, with the errors of an adapter whose tie groups are those of the fit with other numbers.
///
/// # Errors
/// [`Code::Usage`] where they are not; those of [`super::fit_adapter`].
pub(super) fn measure_again(
    tied: &Tied,
    options: &FitOptions,
    before: &FitReport,
    adapter: &Adapter,
) -> Result<FitReport> {
    let mut groups = Vec::new();
    for set in select(tied, options)?.sets {
        let updates = set.updates()?;
        let Some(problem) = Problem::new(&updates)? else {
            continue;
        };
        let other = || Error::new(Code::Usage, "the adapter is not of this fit");
        let same =
            |g: &&TieGroup| g.targets == set.targets && g.layers.as_ref() == Some(&set.layers);
        let group = adapter.groups.iter().find(same).ok_or_else(other)?;
        let old = before.groups.iter().find(|f| f.describes(group));
        let old = old.ok_or_else(other)?;
        let errors = measure(&updates, group)?;
        let baseline = problem.triplet_error(group.rank);
        let origin = Origin {
            start: old.start,
            sweeps: old.sweeps,
        };
        groups.push(describe(&set, &problem, group, &errors, baseline, origin)?);
    }
    Ok(report(groups, before.kept.clone()))
}
