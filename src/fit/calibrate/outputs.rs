//! The fit that loses least of the outputs, where it is known what the layers read.

use faer::Mat;

use crate::adapter::{Adapter, LAYER_PLACE, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::choose::{Origin, Solution, plain};
use crate::fit::factors::Factors;
use crate::fit::finish::finish;
use crate::fit::limit::{GroupLimit, limits};
use crate::fit::modules::ModuleSet;
use crate::fit::options::FitOptions;
use crate::fit::report::{FitReport, GroupFit, report};
use crate::fit::select::{nothing_to_fit, select};
use crate::fit::solver::problem::Problem;
use crate::fit::solver::starts::Start;
use crate::fit::solver::untied::NUMBER_BYTES;
use crate::fit::solver::weighted::Weighted;

/// One layer of a tie group in the making, whose inputs are asked for.
#[derive(Debug)]
pub(super) struct LayerInputs<'p> {
    /// Path of a module that reads them.
    pub(super) module: String,
    /// Q: orthonormal columns that span all rows of the group's updates, in × p.
    pub(super) basis: &'p Mat<f64>,
}

/// Answers for each layer Qᵀ·E\[x·xᵀ\]·Q (p × p), x being what the layer's modules read.
pub(super) type Moments<'m> = dyn FnMut(&[LayerInputs<'_>]) -> Result<Vec<Mat<f64>>> + 'm;

/// Two fits of the same ranks.
#[derive(Debug)]
pub(super) struct OutputFit {
    /// The fit to the updates.
    pub(super) plain: (Adapter, FitReport),
    /// The fit to the outputs.
    pub(super) calibrated: (Adapter, FitReport),
    /// Relative error of the plain fit's outputs: √(Σ E‖(ΔW_l − ΔW_l')·x‖² ÷ Σ E‖ΔW_l·x‖²) over all
    /// fitted modules.
    pub(super) plain_error: f64,
    /// That of the calibrated fit.
    pub(super) error: f64,
    /// What no tied adapter of these ranks, without v, is below.
    pub(super) bound: f64,
    /// That of the best untied LoRA of each tie group's bytes.
    pub(super) untied: f64,
}

/// A set of modules that has something to fit.
struct Task {
    set: ModuleSet,
    problem: Problem,
    limit: GroupLimit,
    basis: Mat<f64>,
}

/// The tasks of an adapter, and what stays.
struct Tasks {
    tasks: Vec<Task>,
    rest: Adapter,
    kept: Vec<String>,
}

/// Fits tied groups without v to an adapter twice: to its updates, as [`fit_adapter`](crate::fit::fit_adapter)
/// does, and to the outputs of its modules.
///
/// `moments` is called once. A of the second fit is looked for in the span of Q. Its
/// error counts 1e-3 of each layer's mean moment in every direction besides, so that it does not
/// give up what the texts did not happen to visit; the errors told do not.
///
/// # Errors
/// Those of [`fit_adapter`](crate::fit::fit_adapter) and of `moments`; [`Code::NonFinite`] for moments that
/// are not finite.
pub(super) fn fit_outputs(
    tied: &Tied,
    options: &FitOptions,
    moments: &mut Moments<'_>,
) -> Result<OutputFit> {
    let Tasks { tasks, rest, kept } = Tasks::of(tied, options)?;
    let wanted: Vec<LayerInputs<'_>> = tasks.iter().flat_map(Task::inputs).collect();
    let mut metrics = moments(&wanted)?.into_iter();
    let (mut plain, mut calibrated) = (Side::new(&rest), Side::new(&rest));
    let mut total = Squares::default();
    for task in &tasks {
        let own: Vec<Mat<f64>> = metrics.by_ref().take(task.problem.layers).collect();
        if own.len() != task.problem.layers {
            return Err(Error::new(Code::Usage, "a layer has no moments"));
        }
        let found = task.fit(own)?;
        total.add(found.squares);
        plain.push(found.plain);
        calibrated.push(found.calibrated);
    }
    let share = |square: f64| match total.norm > 0.0 {
        true => (square / total.norm).sqrt(),
        false => 0.0,
    };
    Ok(OutputFit {
        plain: plain.finish(kept.clone())?,
        calibrated: calibrated.finish(kept)?,
        plain_error: share(total.plain),
        error: share(total.calibrated),
        bound: share(total.bound),
        untied: share(total.untied),
    })
}

/// An adapter in the making, with what its groups came to.
struct Side {
    adapter: Adapter,
    groups: Vec<GroupFit>,
}

impl Side {
    fn new(rest: &Adapter) -> Self {
        Self {
            adapter: rest.clone(),
            groups: Vec::new(),
        }
    }

    fn push(&mut self, (group, fit): (TieGroup, GroupFit)) {
        self.adapter.groups.push(group);
        self.groups.push(fit);
    }

    fn finish(mut self, kept: Vec<String>) -> Result<(Adapter, FitReport)> {
        self.adapter.sort();
        self.adapter.validate()?;
        Ok((self.adapter, report(self.groups, kept)))
    }
}

/// Of outputs, squared.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    norm: f64,
    /// Error of the fit to the updates.
    plain: f64,
    /// Error of the fit to the outputs.
    calibrated: f64,
    bound: f64,
    /// Error of an untied LoRA.
    untied: f64,
}

impl Squares {
    fn add(&mut self, other: Self) {
        self.norm += other.norm;
        self.plain += other.plain;
        self.calibrated += other.calibrated;
        self.bound += other.bound;
        self.untied += other.untied;
    }
}

/// Both fits of one task.
struct Both {
    plain: (TieGroup, GroupFit),
    calibrated: (TieGroup, GroupFit),
    squares: Squares,
}

impl Tasks {
    fn of(tied: &Tied, options: &FitOptions) -> Result<Self> {
        options.check()?;
        if options.core || options.quick {
            let message = "the fit to outputs has no cores, and no quick form";
            return Err(Error::new(Code::Usage, message).hint("fit to the updates"));
        }
        let selection = select(tied, options)?;
        let limits = limits(&selection, options.budget)?;
        let (mut rest, mut kept) = (selection.rest, selection.kept);
        let mut tasks = Vec::new();
        for (set, limit) in selection.sets.into_iter().zip(limits) {
            match Problem::new(&set.updates()?)? {
                Some(problem) => tasks.push(Task {
                    basis: problem.input_basis(),
                    set,
                    problem,
                    limit,
                }),
                None => {
                    kept.extend(set.module_paths());
                    rest.groups.extend(set.sources);
                }
            }
        }
        match tasks.is_empty() {
            true => Err(nothing_to_fit()),
            false => Ok(Self { tasks, rest, kept }),
        }
    }
}

impl Task {
    fn inputs(&self) -> impl Iterator<Item = LayerInputs<'_>> {
        let module = self.set.targets.first().map_or("", |t| &t.module);
        self.set.layers.iter().map(move |l| LayerInputs {
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
        let bytes = NUMBER_BYTES * (rank * self.set.numbers()) as u64;
        let squares = Squares {
            norm: outputs.square,
            plain: weighted.outputs_error(&plain.model),
            calibrated: weighted.outputs_error(&fitted.model),
            bound: outputs.bound,
            untied: weighted.untied_error(self.set.untied_terms(bytes)),
        };
        let calibrated = Solution {
            factors: Factors::plain(&self.problem, &fitted.model),
            origin: Origin {
                start: Start::Outputs,
                sweeps: fitted.sweeps,
            },
        };
        let plain = Solution::plain(&self.problem, &plain);
        let finish = |found| finish(&self.set, &self.problem, found);
        Ok(Both {
            plain: finish(plain)?,
            calibrated: finish(calibrated)?,
            squares,
        })
    }
}
