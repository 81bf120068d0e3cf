//! Coding to the outputs of modules on texts, in place of their updates.
//!
//! What is searched with is a model of the inputs (`inputs`); what is told is measured on the texts themselves, of the numbers
//! that a reader gets.

use faer::Mat;

use super::assemble::{Assembled, assemble};
use super::inputs::InputMoments;
use super::lost::{Lost, share};
use super::module::{gram, inner};
use super::plan::{At, Found, Place, Plan};
use super::report::{CodedReport, report};
use super::search::CodeTarget;
use crate::adapter::Adapter;
use crate::error::{Code, Error, Result};

/// One module's inputs in some directions.
#[derive(Debug)]
pub(in crate::fit) struct Reading {
    /// Path of a module that reads them.
    pub(in crate::fit) module: String,
    /// The directions F, in × p.
    pub(in crate::fit) basis: Mat<f64>,
}

/// Texts that run through the base, x being what a module reads there.
pub(in crate::fit) trait Texts {
    /// Fᵀ·E\[x·xᵀ\]·F of each.
    fn moments(&mut self, of: &[Reading]) -> Result<Vec<Mat<f64>>>;

    /// Fᵀ·E\[x·xᵀ\] of each, and the diagonal of E\[x·xᵀ\].
    fn inputs(&mut self, of: &[Reading]) -> Result<Vec<InputMoments>>;
}

/// An adapter coded to the outputs, and to the updates in no more bytes.
#[derive(Debug)]
pub(in crate::fit) struct OutputCode {
    pub(in crate::fit) adapter: Adapter,
    pub(in crate::fit) report: CodedReport,
    pub(in crate::fit) plain: Adapter,
    pub(in crate::fit) plain_report: CodedReport,
}

/// [`code`](super::code), where the relative error that is chosen, and shared out between modules, is that of the outputs on
/// texts: √(Σ E‖(ΔW − ΔW')·x‖² ÷ Σ E‖ΔW·x‖²).
///
/// # Errors
/// Those of [`code`](super::code) and of `texts`; [`Code::Usage`] for tied groups.
pub(in crate::fit) fn code_outputs(
    adapter: &Adapter,
    target: CodeTarget,
    texts: &mut dyn Texts,
) -> Result<OutputCode> {
    target.check()?;
    let adapters = [adapter];
    let plan = Plan::of(&adapters)?;
    if !plan.ties.is_empty() {
        let message = "tied groups are coded to their updates, not to outputs";
        return Err(Error::new(Code::Usage, message).hint("leave the texts out"));
    }
    let plan = plan.weighed(texts)?;
    let mut found = match target {
        CodeTarget::Error(error) => plan.for_output_error(error, texts)?,
        CodeTarget::Bytes(bytes) => plan.for_bytes(bytes)?,
        CodeTarget::Bits(bits) => plan.for_bytes((bits * plan.numbers as f64 / 8.0) as u64)?,
    };
    if found.lost.is_none() {
        found.lost = Some(plan.lost(&found, texts)?);
    }
    let made = assemble(&plan, &found)?;
    let calibrated = report(&plan, &found, &made);
    // What the same bytes hold where the updates count.
    let plan = Plan::of(&adapters)?;
    let mut found = plan.for_bytes(made.total())?;
    found.lost = Some(plan.lost(&found, texts)?);
    let beside = assemble(&plan, &found)?;
    let plain = report(&plan, &found, &beside);
    Ok(OutputCode {
        adapter: only(made)?,
        report: CodedReport::of(calibrated),
        plain: only(beside)?,
        plain_report: CodedReport::of(plain),
    })
}

fn only(made: Assembled) -> Result<Adapter> {
    let first = made.adapters.into_iter().next();
    first.ok_or_else(|| Error::new(Code::Usage, "nothing to code"))
}

impl Plan<'_> {
    /// The same with each update as terms of its outputs.
    fn weighed(mut self, texts: &mut dyn Texts) -> Result<Self> {
        let changing = self.places.iter().filter(|p| !p.module.sigma.is_empty());
        let of: Vec<Reading> = changing
            .map(|p| self.reading(p.at, p.instance, p.module.basis()))
            .collect();
        let mut moments = texts.inputs(&of)?.into_iter();
        let mut places = Vec::with_capacity(self.places.len());
        for mut place in self.places {
            if !place.module.sigma.is_empty() {
                let own = moments
                    .next()
                    .ok_or_else(|| Error::new(Code::Usage, "a module has no moments"))?;
                place.module = place.module.weighed(own)?;
            }
            places.push(place);
        }
        self.places = places;
        self.terms = self.places.iter().flat_map(|p| p.module.terms()).collect();
        self.square = self.places.iter().map(|p| p.module.square()).sum();
        match self.square > 0.0 {
            true => Ok(self),
            false => Err(Error::new(
                Code::Usage,
                "nothing to code: the updates change no output on these texts",
            )),
        }
    }

    fn reading(&self, at: At, instance: usize, basis: Mat<f64>) -> Reading {
        let group = self.group(at);
        let module = group.targets.first();
        Reading {
            module: module.map_or_else(String::new, |t| group.module_path(t, instance)),
            basis,
        }
    }

    /// The highest price at which the error on the texts is no more than asked for: that of the model of the inputs is
    /// near it, and is corrected by what was measured.
    fn for_output_error(&self, error: f64, texts: &mut dyn Texts) -> Result<Found> {
        const MOST_TRIES: usize = 4;
        const NEAR: f64 = 0.985;
        let mut goal = error;
        let mut best: Option<Found> = None;
        for _ in 0..MOST_TRIES {
            let mut found = self.for_error(goal.clamp(1e-4, 0.9))?;
            let lost = self.lost(&found, texts)?;
            let reached = share(&lost, |l| l.outputs);
            found.lost = Some(lost);
            let fits = reached <= error;
            let better = best.as_ref().and_then(|b| b.lost.as_ref());
            let better = better.is_none_or(|b| reached > share(b, |l| l.outputs));
            if fits && better {
                best = Some(found);
            }
            if fits && reached >= NEAR * error {
                break;
            }
            goal *= error * (1.0 + NEAR) / 2.0 / reached.max(1e-9);
        }
        best.ok_or_else(|| {
            let message = format!("no code reaches an error of {error} of the outputs");
            Error::new(Code::Usage, message).hint("store it as int8, or in floats")
        })
    }

    /// What every module loses of its update, and of its outputs on the texts.
    fn lost(&self, found: &Found, texts: &mut dyn Texts) -> Result<Vec<Lost>> {
        let (mut readings, mut sides) = (Vec::new(), Vec::new());
        let changing = |p: &&Place| !p.module.sigma.is_empty();
        let all = self.places.iter().zip(&found.coded);
        for (place, coded) in all.filter(|(p, _)| changing(p)) {
            let before = &place.module.sides;
            let after = place.module.values(coded, found.steps);
            let rows: Vec<&Vec<f32>> = before[1].iter().chain(&after[1]).collect();
            let n = rows.first().map_or(0, |r| r.len());
            let basis = Mat::from_fn(n, rows.len(), |j, k| f64::from(rows[k][j]));
            readings.push(self.reading(place.at, place.instance, basis));
            let columns: Vec<&Vec<f32>> = before[0].iter().chain(&after[0]).collect();
            let signs = |k: usize| if k < before[0].len() { 1.0 } else { -1.0 };
            let (own, plain) = (gram(&columns, &columns), gram(&rows, &rows));
            let own = Mat::from_fn(columns.len(), columns.len(), |i, j| {
                signs(i) * signs(j) * own[(i, j)]
            });
            sides.push((own, plain, before[0].len()));
        }
        let moments = texts.moments(&readings)?;
        let mut each = sides.iter().zip(&moments);
        let lost = self.places.iter().map(|place| {
            let measured = changing(&place).then(|| each.next()).flatten();
            let Some(((own, plain, rank), seen)) = measured else {
                return Lost {
                    updates: [0.0; 2],
                    outputs: [0.0; 2],
                };
            };
            let squares = |of: &Mat<f64>| {
                let first = |m: &Mat<f64>| m.submatrix(0, 0, *rank, *rank).to_owned();
                [inner(own, of).max(0.0), inner(&first(own), &first(of))]
            };
            Lost {
                updates: squares(plain),
                outputs: squares(seen),
            }
        });
        Ok(lost.collect())
    }
}
