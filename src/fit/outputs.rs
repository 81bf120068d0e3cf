//! The fit that loses least of the outputs, where it is known what the layers read.

use faer::Mat;

use super::choose::{Chosen, Limit, plain};
use super::groups::{Factors, Family, families};
use super::{
    FitOptions, FitReport, GroupFit, Start, check, describe, finish, limits, nothing_to_fit, report,
};
use crate::adapter::{Adapter, LAYER_PLACE, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::solver::measure::measure;
use crate::fit::solver::problem::Problem;
use crate::fit::solver::untied::NUMBER;
use crate::fit::solver::weighted::Weighted;

/// One layer of a tie group in the making, whose inputs are asked for.
#[derive(Debug)]
pub struct LayerInputs<'p> {
    /// Path of a module that reads them.
    pub module: String,
    /// Q: orthonormal columns that span all rows of the group's updates, in × p.
    pub basis: &'p Mat<f64>,
}

/// Answers for each layer Qᵀ·E\[x·xᵀ\]·Q (p × p), x being what the layer's modules read.
pub type Moments<'m> = dyn FnMut(&[LayerInputs<'_>]) -> Result<Vec<Mat<f64>>> + 'm;

/// Two fits of the same ranks.
#[derive(Debug)]
pub struct OutputFit {
    /// The fit to the updates.
    pub plain: (Adapter, FitReport),
    /// The fit to the outputs.
    pub calibrated: (Adapter, FitReport),
    /// Relative error of the plain fit's outputs: √(Σ E‖(ΔW_l − ΔW_l')·x‖² ÷ Σ E‖ΔW_l·x‖²) over all
    /// fitted modules.
    pub plain_error: f64,
    /// That of the calibrated fit.
    pub error: f64,
    /// What no tied adapter of these ranks, without v, is below.
    pub bound: f64,
    /// That of the best untied LoRA of each tie group's bytes.
    pub untied: f64,
}

/// A family that has something to fit.
struct Task {
    family: Family,
    problem: Problem,
    limit: Limit,
    basis: Mat<f64>,
}

/// Fits tied groups without v to an adapter twice: to its updates, as [`super::fit_adapter`] does, and
/// to the outputs of its modules.
///
/// `moments` is called once. A of the second fit is looked for in the span of Q. Its
/// error counts 1e-3 of each layer's mean moment in every direction besides, so that it does not
/// give up what the texts did not happen to visit; the errors told do not.
///
/// # Errors
/// Those of [`super::fit_adapter`] and of `moments`; [`Code::NonFinite`] for moments that are not
/// finite.
pub fn fit_outputs(
    tied: &Tied,
    options: &FitOptions,
    moments: &mut Moments<'_>,
) -> Result<OutputFit> {
    check(options)?;
    if options.core || options.quick {
        let message = "the fit to outputs has no cores, and no quick form";
        return Err(Error::new(Code::Usage, message).hint("fit to the updates"));
    }
    let plan = families(tied, options)?;
    let limits = limits(&plan, options.budget)?;
    let (mut rest, mut kept) = (plan.rest, plan.kept);
    let mut tasks = Vec::new();
    for (family, limit) in plan.families.into_iter().zip(limits) {
        match Problem::new(&family.updates()?)? {
            Some(problem) => tasks.push(Task {
                basis: problem.input_basis(),
                family,
                problem,
                limit,
            }),
            None => {
                kept.extend(family.module_paths());
                rest.groups.extend(family.sources);
            }
        }
    }
    if tasks.is_empty() {
        return Err(nothing_to_fit());
    }
    let wanted: Vec<LayerInputs<'_>> = tasks.iter().flat_map(Task::inputs).collect();
    let mut metrics = moments(&wanted)?.into_iter();
    let mut adapters = [rest.clone(), rest];
    let (mut groups, mut sums) = ([const { Vec::new() }; 2], [0.0; 5]);
    for task in &tasks {
        let own: Vec<Mat<f64>> = metrics.by_ref().take(task.problem.layers).collect();
        if own.len() != task.problem.layers {
            return Err(Error::new(Code::Usage, "a layer has no moments"));
        }
        let (found, squares) = task.fit(own)?;
        sums.iter_mut().zip(squares).for_each(|(sum, s)| *sum += s);
        for (side, (group, fit)) in found.into_iter().enumerate() {
            adapters[side].groups.push(group);
            groups[side].push(fit);
        }
    }
    let [first, second] = adapters;
    let [plain_groups, groups] = groups;
    let done = |mut adapter: Adapter, report| -> Result<(Adapter, FitReport)> {
        adapter.sort();
        adapter.validate()?;
        Ok((adapter, report))
    };
    let [square, squares @ ..] = sums;
    let share = |sum: f64| match square > 0.0 {
        true => (sum / square).sqrt(),
        false => 0.0,
    };
    let [plain_error, error, bound, untied] = squares.map(share);
    Ok(OutputFit {
        plain: done(first, report(plain_groups, kept.clone()))?,
        calibrated: done(second, report(groups, kept))?,
        plain_error,
        error,
        bound,
        untied,
    })
}

/// The fit to the updates and the one to the outputs; of the outputs, squared: their norm, the errors
/// of both, the bound and the error of an untied LoRA.
type Both = ([(TieGroup, GroupFit); 2], [f64; 5]);

impl Task {
    fn inputs(&self) -> impl Iterator<Item = LayerInputs<'_>> {
        let module = self.family.targets.first().map_or("", |t| &t.module);
        self.family.layers.iter().map(move |l| LayerInputs {
            module: module.replacen(LAYER_PLACE, &l.to_string(), 1),
            basis: &self.basis,
        })
    }

    fn fit(&self, metrics: Vec<Mat<f64>>) -> Result<Both> {
        let weighted = Weighted::new(&self.problem, metrics)?;
        let plain = plain(&self.problem, self.limit);
        let fitted = weighted.fit(&plain.model);
        let rank = plain.model.u.ncols();
        let outputs = weighted.outputs(rank);
        let bytes = NUMBER * (rank * self.family.numbers()) as u64;
        let squares = [
            outputs.square,
            weighted.outputs_error(&plain.model),
            weighted.outputs_error(&fitted.model),
            outputs.bound,
            weighted.untied_error(self.family.untied_terms(bytes)),
        ];
        let calibrated = Chosen {
            factors: Factors::plain(&self.problem, &fitted.model),
            start: Start::Outputs,
            sweeps: fitted.sweeps,
        };
        let plain = Chosen::plain(&self.problem, &plain);
        let finish = |found| finish(&self.family, &self.problem, found);
        Ok(([finish(plain)?, finish(calibrated)?], squares))
    }
}

/// `before`, with the errors of an adapter whose tie groups are those of the fit with other numbers.
///
/// # Errors
/// [`Code::Usage`] where they are not; those of [`super::fit_adapter`].
pub fn measure_again(
    tied: &Tied,
    options: &FitOptions,
    before: &FitReport,
    adapter: &Adapter,
) -> Result<FitReport> {
    let mut groups = Vec::new();
    for family in families(tied, options)?.families {
        let updates = family.updates()?;
        let Some(problem) = Problem::new(&updates)? else {
            continue;
        };
        let other = || Error::new(Code::Usage, "the adapter is not of this fit");
        let same = |g: &&TieGroup| {
            g.targets == family.targets && g.layers.as_ref() == Some(&family.layers)
        };
        let group = adapter.groups.iter().find(same).ok_or_else(other)?;
        let old = before.groups.iter().find(|f| f.describes(group));
        let old = old.ok_or_else(other)?;
        let errors = measure(&updates, group)?;
        let baseline = problem.triplet_error(group.rank);
        let fit = describe(&family, &problem, group, &errors, baseline)?;
        groups.push(GroupFit {
            start: old.start,
            sweeps: old.sweeps,
            ..fit
        });
    }
    Ok(report(groups, before.kept.clone()))
}
