//! The loop: steps, validations and saves, one after the other.

use std::time::Instant;

use super::config::{Data, LoopConfig};
use super::event::{Event, Observer};
use super::outcome::{StopReason, Trained};
use super::run_dir::{Files, RunDir};
use crate::error::{Code, Error, Result};
use crate::model::LossSum;
use crate::progress::Progress;
use crate::text::{Batch, Example};
use crate::train::checkpoint::{Best, State};
use crate::train::log::{Line, StepLine, ValidLine};
use crate::train::optim::{clip, scale};
use crate::train::params::{Objective, Param};
use crate::train::sampler::Sampler;

/// A loss that is this many times that of the first step, and [`RUNAWAY_NATS`] above it, has run
/// away. Guessing evenly among 100,000 tokens costs 11.5 nats: no batch, however odd, costs a
/// working model so much more than its first one, and no run comes back from there.
pub(super) const RUNAWAY_FACTOR: f64 = 10.0;
/// See [`RUNAWAY_FACTOR`]; in nats per token.
pub(super) const RUNAWAY_NATS: f64 = 12.0;

/// Trains `params` on `data`. With `dir`, the run leaves its state, metrics and loss curve there,
/// and can be resumed; a run that had ended is not gone on with, and returns the same again.
/// `progress` counts the micro-batches of training and validation, and is asked before each whether
/// the run may go on.
///
/// # Errors
/// - [`Code::NoExamples`], [`Code::BadExample`]: there is nothing to learn from, or an example has
///   nothing to predict; [`Code::Usage`] where two parameters have one name.
/// - [`Code::Diverged`]: a loss or gradient is not finite, or the loss ran away
///   (to ten times the first one, and by 12 nats). The step was not taken.
/// - [`Code::Interrupted`]: `progress` was stopped.
/// - [`Code::OutputExists`], [`Code::NotFound`]: a new run in a folder that has one, or the
///   contrary; [`Code::Busy`] where another process works there; a damaged state.
/// - What `objective` fails with, and what writing the files can fail with.
///
/// Whatever it is that ends the run, the state before it is saved if it can be.
pub fn train(
    objective: &mut dyn Objective,
    params: Vec<Param>,
    data: Data<'_>,
    config: &LoopConfig,
    dir: Option<&RunDir<'_>>,
    observer: &mut dyn Observer,
    progress: Progress<'_>,
) -> Result<Trained> {
    check(&params, data)?;
    let lengths: Vec<usize> = data.train.iter().map(|e| e.tokens.len()).collect();
    let (batch, global) = (config.batch_size, config.global_batch);
    let state = State::new(params, config.adamw);
    let (state, files) = match dir {
        None => (state, None),
        Some(dir) => {
            let (state, files) = Files::open(dir, state)?;
            (state, Some(files))
        }
    };
    let mut run = Loop {
        grads: state
            .params
            .iter()
            .map(|p| vec![0.0; p.values.len()])
            .collect(),
        sampler: Sampler::new(&lengths, batch, global, config.seed),
        earlier: state.counters.seconds.unwrap_or(0.0),
        begun: Instant::now(),
        objective,
        data,
        config,
        state,
        files,
        observer,
        progress,
    };
    match run.run_on() {
        Ok(stopped) => Ok(run.outcome(stopped)),
        Err(error) => Err(run.save_after(error)),
    }
}

fn check(params: &[Param], data: Data<'_>) -> Result<()> {
    if data.train.is_empty() {
        return Err(Error::new(
            Code::NoExamples,
            "there are no training examples",
        ));
    }
    for (examples, which) in [(data.train, "training"), (data.valid, "validation")] {
        let useful = |e: &Example| e.tokens.len() > 1 && e.predicted.iter().skip(1).any(|p| *p);
        if let Some(at) = examples.iter().position(|e| !useful(e)) {
            let message = format!("{which} example {} has nothing to predict", at + 1);
            return Err(Error::new(Code::BadExample, message));
        }
    }
    let mut names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => {
            Err(Error::new(Code::Usage, "two parameters have this name").tensor(twice[0]))
        }
        None => Ok(()),
    }
}

struct Loop<'a> {
    objective: &'a mut dyn Objective,
    data: Data<'a>,
    config: &'a LoopConfig,
    sampler: Sampler,
    state: State,
    /// Reused by every step.
    grads: Vec<Vec<f32>>,
    files: Option<Files<'a>>,
    observer: &'a mut dyn Observer,
    progress: Progress<'a>,
    /// Seconds of earlier sessions.
    earlier: f64,
    begun: Instant,
}

impl Loop<'_> {
    fn run_on(&mut self) -> Result<StopReason> {
        let (step, total) = (self.step_number(), self.config.schedule.total);
        self.observer.event(&Event::Started { step, total });
        loop {
            if self.validation_is_due() {
                self.validate()?;
            }
            let stop = self.stop_reason();
            let every = self.config.checkpoint_every.max(1);
            if stop.is_some() || self.step_number().is_multiple_of(every) {
                self.save()?;
            }
            if let Some(reason) = stop {
                return Ok(reason);
            }
            self.step()?;
        }
    }

    fn step_number(&self) -> u64 {
        self.state.optimiser.step
    }

    /// Before the first step, every so often, and after the last one.
    fn validation_is_due(&self) -> bool {
        let step = self.step_number();
        let on_time = step.is_multiple_of(self.config.eval_every.max(1));
        !self.data.valid.is_empty()
            && self.state.counters.validated != Some(step)
            && (on_time || step >= self.config.schedule.total)
    }

    fn stop_reason(&self) -> Option<StopReason> {
        let patience = self.config.patience;
        if patience > 0 && self.state.counters.without_improvement >= patience {
            return Some(StopReason::Patience);
        }
        (self.step_number() >= self.config.schedule.total).then_some(StopReason::MaxSteps)
    }

    fn validate(&mut self) -> Result<()> {
        let step = self.step_number();
        let mut sum = LossSum::default();
        for examples in self.data.valid.chunks(self.config.batch_size.max(1)) {
            self.begin_batch()?;
            sum += self
                .objective
                .loss(&self.state.params, &Batch::new(examples))?;
        }
        let loss = sum.mean();
        if !loss.is_finite() {
            return Err(diverged(format!(
                "the validation loss after step {step} is {loss}"
            )));
        }
        let best = self.state.best.as_ref().is_none_or(|b| loss < b.loss);
        if best {
            let params = self.state.params.clone();
            self.state.best = Some(Best { step, loss, params });
        }
        let counters = &mut self.state.counters;
        counters.validated = Some(step);
        counters.initial_valid_loss.get_or_insert(loss);
        // Many small gains that add up to `min_delta` count; for the best state, any gain does.
        match counters.patience_loss {
            Some(before) if loss >= before - self.config.min_delta => {
                counters.without_improvement += 1;
            }
            _ => {
                counters.patience_loss = Some(loss);
                counters.without_improvement = 0;
            }
        }
        let line = ValidLine {
            step,
            valid_loss: loss,
            best,
        };
        self.observer.event(&Event::Validation(&line));
        self.log(Line::Valid(line))
    }

    /// One optimiser step; where it fails, the state is that before it.
    fn step(&mut self) -> Result<()> {
        let begun = Instant::now();
        let number = self.step_number() + 1;
        let (loss, tokens) = self.gradients(number)?;
        let targets = loss.tokens as f64;
        let loss = loss.mean();
        // The gradients are of summed losses, and are divided once, by all targets of the step.
        // Means of micro-batches would give a token in a short one more weight than one in a long
        // one, and the result would depend on how the step was cut up.
        scale(&mut self.grads, 1.0 / targets);
        let grad_norm = clip(&mut self.grads, self.config.clip);
        self.check_step(number, loss, grad_norm)?;
        let lr = self.config.schedule.lr(number);
        let state = &mut self.state;
        let rates = &self.config.rates;
        state
            .optimiser
            .step_at(&mut state.params, &self.grads, lr, rates);
        let counters = &mut state.counters;
        counters.initial_loss.get_or_insert(loss);
        counters.loss = Some(loss);
        counters.tokens += tokens;
        let line = StepLine {
            step: number,
            loss,
            lr,
            grad_norm,
            tokens,
            tokens_per_s: tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9),
            seconds: self.seconds(),
        };
        self.observer.event(&Event::Step(&line));
        self.log(Line::Step(line))
    }

    /// The summed loss of a step and the positions it took; its gradient is left in `grads`.
    fn gradients(&mut self, step: u64) -> Result<(LossSum, u64)> {
        for grad in &mut self.grads {
            grad.fill(0.0);
        }
        let (mut sum, mut tokens) = (LossSum::default(), 0);
        for (number, micro) in self.sampler.step(step).into_iter().enumerate() {
            self.begin_batch()?;
            self.objective.begin(step, number as u64);
            let batch = Batch::new(micro.iter().filter_map(|at| self.data.train.get(*at)));
            tokens += batch.tokens.len() as u64;
            sum += self
                .objective
                .accumulate(&self.state.params, &batch, &mut self.grads)?;
            // Looked at for each: the rest of a step that is lost need not be computed.
            if !sum.nats.is_finite() {
                return Err(diverged(format!("the loss of step {step} is {}", sum.nats)));
            }
        }
        Ok((sum, tokens))
    }

    /// Refuses what must not be stepped along. That a gradient is zero is no fault: with v = 0 at
    /// the start, those of A, B and u are.
    fn check_step(&self, step: u64, loss: f64, grad_norm: f64) -> Result<()> {
        if !loss.is_finite() {
            return Err(diverged(format!("the loss of step {step} is {loss}")));
        }
        if !grad_norm.is_finite() {
            let params = self.state.params.iter().zip(&self.grads);
            let bad = params
                .flat_map(|(p, g)| g.iter().map(move |g| (p, g)))
                .find(|(_, g)| !g.is_finite());
            let value = bad.map_or(grad_norm, |(_, g)| f64::from(*g));
            let error = diverged(format!("a gradient of step {step} is {value}"));
            return Err(match bad {
                Some((param, _)) => error.tensor(&param.name),
                None => error,
            });
        }
        let initial = self.state.counters.initial_loss.unwrap_or(loss);
        if loss > (initial * RUNAWAY_FACTOR).max(initial + RUNAWAY_NATS) {
            let message =
                format!("the loss ran away: {loss:.4} at step {step}, {initial:.4} at first");
            return Err(diverged(message));
        }
        Ok(())
    }

    /// Counts a micro-batch, unless the run is to end before it.
    fn begin_batch(&self) -> Result<()> {
        self.progress.count(1);
        match self.progress.is_stopped() {
            true => Err(Error::new(
                Code::Interrupted,
                format!("the run was interrupted after step {}", self.step_number()),
            )),
            false => Ok(()),
        }
    }

    fn log(&mut self, line: Line) -> Result<()> {
        match &mut self.files {
            Some(files) => files.log(line),
            None => Ok(()),
        }
    }

    fn seconds(&self) -> f64 {
        self.earlier + self.begun.elapsed().as_secs_f64()
    }

    fn save(&mut self) -> Result<()> {
        self.state.counters.seconds = Some(self.seconds());
        let step = self.step_number();
        if let Some(files) = &mut self.files
            && files.save(&self.state)?
        {
            let path = &files.state_path();
            self.observer.event(&Event::Saved { step, path });
        }
        Ok(())
    }

    /// Saves what there is, and says with `error` where it can be found.
    fn save_after(&mut self, error: Error) -> Error {
        const REMEDY: &str = "try a lower learning rate, a longer warm-up or a smaller clip";
        let saved = self.save();
        let files = self.files.as_ref();
        let paths = files.map(|f| (f.folder().display(), f.state_path()));
        match (error.code(), saved, paths) {
            // Whoever interrupts a run counts on going on with it.
            (Code::Interrupted, Err(not_saved), _) => not_saved,
            (Code::Interrupted, Ok(()), Some((folder, _))) => {
                error.hint(format!("resume the run in {folder}"))
            }
            (Code::Interrupted, Ok(()), None) => {
                error.hint("the run has no folder, and starts anew the next time")
            }
            (Code::Diverged, Ok(()), Some((_, state))) => error.hint(format!(
                "{REMEDY} in a new run; the state before it is in {}",
                state.display()
            )),
            (Code::Diverged, ..) => error.hint(REMEDY),
            _ => error,
        }
    }

    fn outcome(self, stopped: StopReason) -> Trained {
        let seconds = self.seconds();
        let State {
            params,
            optimiser,
            best,
            counters,
        } = self.state;
        Trained {
            best_step: best.as_ref().map(|b| b.step),
            valid_loss: best.as_ref().map(|b| b.loss),
            params: best.map_or(params, |b| b.params),
            steps: optimiser.step,
            train_loss: counters.loss,
            initial_valid_loss: counters.initial_valid_loss,
            stopped,
            seconds,
            tokens: counters.tokens,
        }
    }
}

fn diverged(message: String) -> Error {
    Error::new(Code::Diverged, message)
}
