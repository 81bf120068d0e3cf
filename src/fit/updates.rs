//! The fit to an adapter's updates.

use rayon::prelude::*;

use super::choose::{Solution, choose, choose_cores, triplets};
use super::finish::finish;
use super::limit::{GroupLimit, limits};
use super::modules::ModuleSet;
use super::options::FitOptions;
use super::report::{FitReport, GroupFit, report};
use super::select::{nothing_to_fit, select};
use super::solver::problem::Problem;
use crate::adapter::{Adapter, TieGroup};
use crate::convert::Tied;
use crate::error::Result;

/// Fits tied groups to an adapter, in memory.
///
/// `tied.adapter`'s tied groups stay where their rank is within the budget; the other modules with
/// layers are fitted, each target over all of its layers. The numbers are the same bytes for any
/// number of threads.
///
/// # Errors
/// [`Code::Usage`](crate::Code::Usage) for a budget out of range, or an adapter that has nothing to fit;
/// [`Code::NonFinite`](crate::Code::NonFinite); those of [`TieGroup::low_rank`].
pub fn fit_adapter(tied: &Tied, options: &FitOptions) -> Result<(Adapter, FitReport)> {
    options.check()?;
    let selection = select(tied, options)?;
    let limits = limits(&selection, options.budget)?;
    let fitted: Vec<Option<(TieGroup, GroupFit)>> = (selection.sets.par_iter().zip(limits))
        .map(|(set, limit)| fit_set(set, limit, options))
        .collect::<Result<_>>()?;
    let (mut adapter, mut kept) = (selection.rest, selection.kept);
    let mut groups = Vec::new();
    for (set, fitted) in selection.sets.iter().zip(fitted) {
        match fitted {
            Some((group, report)) => {
                adapter.groups.push(group);
                groups.push(report);
            }
            None => {
                adapter.groups.extend(set.sources.iter().cloned());
                kept.extend(set.module_paths());
            }
        }
    }
    if groups.is_empty() {
        return Err(nothing_to_fit());
    }
    adapter.sort();
    adapter.validate()?;
    Ok((adapter, report(groups, kept)))
}

/// `None` where all updates are zero.
fn fit_set(
    set: &ModuleSet,
    limit: GroupLimit,
    options: &FitOptions,
) -> Result<Option<(TieGroup, GroupFit)>> {
    let Some(problem) = Problem::new(&set.updates()?)? else {
        return Ok(None);
    };
    let found = match (options.core, options.quick) {
        (true, _) => choose_cores(&problem, limit, options),
        (false, true) => Solution::plain(&problem, &triplets(&problem, limit)),
        (false, false) => choose(set, &problem, limit),
    };
    finish(set, &problem, found).map(Some)
}
