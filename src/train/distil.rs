//! Training an adapter to predict what another one on the same model predicts.

use serde::Serialize;

use super::optim::{AdamWOptions, Schedule};
use super::params::{Objective, Param};
use super::training_loop::{Data, LoopConfig, train};
use crate::adapter::{Adapter, TieGroup};
use crate::error::{Code, Error, Result};
use crate::model::LossSum;
use crate::model::attach;
use crate::model::{Branches, Keep, Model};
use crate::progress::Progress;
use crate::tensor::Dtype;
use crate::text::{Batch, Example, batches};
use crate::train::adapter::TrainingAdapter;

/// How a distillation runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistilOptions {
    /// Optimiser steps.
    pub steps: u64,
    /// Highest learning rate; a tenth of the steps lead up to it.
    pub lr: f64,
    /// Examples of a step.
    pub batch_size: usize,
    /// Keep only each layer's input for the backward.
    pub recompute: bool,
    /// Seed of the order of examples.
    pub seed: u64,
}

impl Default for DistilOptions {
    fn default() -> Self {
        Self {
            steps: 200,
            lr: 1e-3,
            batch_size: 8,
            recompute: false,
            seed: 0,
        }
    }
}

impl DistilOptions {
    pub(crate) fn check(&self) -> Result<()> {
        if self.lr.is_finite() && self.lr > 0.0 {
            return Ok(());
        }
        let message = format!("a learning rate of {} is not positive", self.lr);
        Err(Error::new(Code::Usage, message))
    }
}

/// How near a student is to its teacher on texts neither was fitted on. Everything is a mean over
/// target tokens, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Nearness {
    /// KL(teacher ‖ student).
    pub kl: f64,
    /// Cross entropy of the student.
    pub loss: f64,
}

/// KL(teacher ‖ student) of a frozen model with two adapters, as a function of the student's trained
/// tensors.
struct Distillation<'m> {
    model: &'m Model,
    teacher: &'m Branches,
    student: TrainingAdapter,
    /// What of the student does not train.
    fixed: Branches,
    keep: Keep,
}

impl Distillation<'_> {
    fn branches(&self, params: &[Param]) -> Result<Branches> {
        // The trained ones first, where their gradients are looked for.
        let mut branches = self.student.branches(params, self.model)?;
        branches.extend(&self.fixed);
        Ok(branches)
    }
}

impl Objective for Distillation<'_> {
    fn loss(&mut self, params: &[Param], batch: &Batch) -> Result<LossSum> {
        let branches = self.branches(params)?;
        self.model.divergence(&branches, self.teacher, batch)
    }

    fn accumulate(
        &mut self,
        params: &[Param],
        batch: &Batch,
        grads: &mut [Vec<f32>],
    ) -> Result<LossSum> {
        let branches = self.branches(params)?;
        let (loss, mut gradients) =
            (self.model).divergence_backward(&branches, self.teacher, batch, self.keep)?;
        self.student.pull_back(params, &mut gradients, grads)?;
        Ok(loss)
    }
}

/// Trains the tie groups of `student` for which `trains` holds to predict what `teacher` predicts; the
/// others stay to the byte.
///
/// Returns the adapter with the lowest divergence on `data.valid`, which is `student` itself where
/// training found no better one. Trained tensors are f32. `progress` is that of [`train`].
///
/// # Errors
/// [`Code::Usage`] for a learning rate that is not positive; those of [`TrainingAdapter::of`], [`attach`] and
/// [`train`].
pub fn distil(
    model: &Model,
    teacher: &Branches,
    student: &Adapter,
    trains: &dyn Fn(&TieGroup) -> bool,
    data: Data<'_>,
    options: &DistilOptions,
    progress: Progress<'_>,
) -> Result<Adapter> {
    options.check()?;
    let (trained, fixed): (Vec<TieGroup>, _) = student.groups.iter().cloned().partition(trains);
    let of = |groups: Vec<TieGroup>| Adapter {
        groups,
        ..student.clone()
    };
    let in_training = TrainingAdapter::of(&of(trained), model)?;
    let start = in_training.start()?;
    let mut objective = Distillation {
        model,
        teacher,
        student: in_training,
        fixed: attach(&of(fixed.clone()), model)?,
        keep: if options.recompute {
            Keep::Inputs
        } else {
            Keep::All
        },
    };
    let config = LoopConfig {
        schedule: Schedule {
            peak: options.lr,
            min: options.lr / 100.0,
            warmup: options.steps / 10,
            total: options.steps,
        },
        rates: Vec::new(),
        adamw: AdamWOptions {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        },
        clip: 1.0,
        batch_size: options.batch_size,
        global_batch: options.batch_size,
        eval_every: (options.steps / 10).max(1),
        patience: 0,
        min_delta: 0.0,
        seed: options.seed,
        checkpoint_every: options.steps,
    };
    let trained = train(
        &mut objective,
        start,
        data,
        &config,
        None,
        &mut (),
        progress,
    )?;
    let found = objective.student.adapter(&trained.params, Dtype::F32)?;
    let mut adapter = of([fixed, found.groups].concat());
    adapter.sort();
    Ok(adapter)
}

/// How near `student` is to `teacher` on `texts`, which have a target each.
///
/// # Errors
/// [`Code::NoExamples`] without texts; [`Code::Diverged`] for predictions that are not finite; those of
/// [`Model::divergence`]; that of `progress`, which counts the batches.
pub fn nearness(
    model: &Model,
    teacher: &Branches,
    student: &Branches,
    texts: &[Example],
    progress: Progress<'_>,
) -> Result<Nearness> {
    let (mut kl, mut loss) = (LossSum::default(), LossSum::default());
    for batch in batches(texts) {
        kl += model.divergence(student, teacher, &batch)?;
        loss += model.loss(student, &batch)?;
        progress.advance(1)?;
    }
    if kl.tokens == 0 {
        return Err(Error::new(Code::NoExamples, "no text to compare on"));
    }
    let near = Nearness {
        kl: kl.mean(),
        loss: loss.mean(),
    };
    // No comparison with what is not a number chooses anything.
    match near.kl.is_finite() && near.loss.is_finite() {
        true => Ok(near),
        false => Err(Error::new(
            Code::Diverged,
            "the predictions on the held-out texts are not finite",
        )),
    }
}

/// As [`nearness`], of an adapter.
///
/// # Errors
/// Those of [`attach`] and [`nearness`].
pub fn nearness_of(
    model: &Model,
    teacher: &Branches,
    student: &Adapter,
    texts: &[Example],
    progress: Progress<'_>,
) -> Result<Nearness> {
    nearness(model, teacher, &attach(student, model)?, texts, progress)
}
