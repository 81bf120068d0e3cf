use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::error::{Code, Error, Result};
use crate::model::LossSum;
use crate::progress::Progress;
use crate::text::{Batch, Example, IGNORE};
use crate::train::checkpoint::{Fingerprint, State};
use crate::train::log::{Line, StepLine};
use crate::train::optim::{AdamWOptions, Schedule};
use crate::train::params::{Objective, Param};

const VOCABULARY: usize = 5;

/// A softmax over the next token, given the token: a matrix of logits, and a bias that every row
/// shares as layers share a tied tensor.
#[derive(Default)]
struct Bigram {
    /// Calls of `accumulate` so far, and the one that goes wrong.
    calls: usize,
    fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy)]
enum Fault {
    Loss(f64),
    Gradient(f32),
    Error,
}

impl Bigram {
    fn pass(params: &[Param], batch: &Batch, mut grads: Option<&mut [Vec<f32>]>) -> LossSum {
        let mut sum = LossSum::default();
        for (token, target) in batch.tokens.iter().zip(&batch.targets) {
            if *target == IGNORE {
                continue;
            }
            let (row, target) = (*token as usize * VOCABULARY, *target as usize);
            let logit = |i: usize| f64::from(params[0].values[row + i] + params[1].values[i]);
            let exps: Vec<f64> = (0..VOCABULARY).map(|i| logit(i).exp()).collect();
            let total: f64 = exps.iter().sum();
            sum.nats += total.ln() - logit(target);
            sum.tokens += 1;
            for (i, exp) in exps.iter().enumerate() {
                let grad = (exp / total - f64::from(i == target)) as f32;
                if let Some(grads) = grads.as_deref_mut() {
                    grads[0][row + i] += grad;
                    grads[1][i] += grad;
                }
            }
        }
        sum
    }
}

impl Objective for Bigram {
    fn loss(&mut self, params: &[Param], batch: &Batch) -> Result<LossSum> {
        Ok(Self::pass(params, batch, None))
    }

    fn accumulate(
        &mut self,
        params: &[Param],
        batch: &Batch,
        grads: &mut [Vec<f32>],
    ) -> Result<LossSum> {
        let mut sum = Self::pass(params, batch, Some(grads));
        self.calls += 1;
        match self.fault {
            Some((call, fault)) if call == self.calls => match fault {
                Fault::Loss(mean) => sum.nats = mean * sum.tokens as f64,
                Fault::Gradient(value) => grads[1][2] = value,
                Fault::Error => return Err(Error::new(Code::Backend, "out of memory")),
            },
            _ => {}
        }
        Ok(sum)
    }
}

fn params() -> Vec<Param> {
    let param = |name: &str, shape: &[usize]| Param {
        name: name.into(),
        shape: shape.into(),
        values: vec![0.0; shape.iter().product()],
    };
    vec![
        param("w", &[VOCABULARY, VOCABULARY]),
        param("b", &[VOCABULARY]),
    ]
}

/// Sequences that mostly count upwards.
fn examples(n: u32, salt: u32) -> Vec<Example> {
    let sequence = |e: u32| {
        let token = |i: u32| (e + i + u32::from((e * 7 + i * 3 + salt).is_multiple_of(5))) % 5;
        let tokens: Vec<u32> = (0..3 + (e * 5 + salt) % 6).map(token).collect();
        Example {
            predicted: (0..tokens.len()).map(|i| i > (e % 2) as usize).collect(),
            tokens,
        }
    };
    (0..n).map(sequence).collect()
}

fn config() -> LoopConfig {
    LoopConfig {
        schedule: Schedule {
            peak: 0.1,
            min: 0.01,
            warmup: 2,
            total: 12,
        },
        rates: Vec::new(),
        adamw: AdamWOptions {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        clip: 1.0,
        batch_size: 3,
        global_batch: 8,
        eval_every: 5,
        patience: 0,
        min_delta: 0.0,
        seed: 1,
        checkpoint_every: 4,
    }
}

/// A config that patience ends: the rate is too high to get better for long.
fn impatient() -> LoopConfig {
    let mut config = config();
    config.schedule.peak = 2.0;
    config.schedule.total = 60;
    (config.eval_every, config.patience, config.min_delta) = (2, 3, 0.01);
    config
}

struct Fixture {
    train: Vec<Example>,
    valid: Vec<Example>,
    config: LoopConfig,
    folder: tempfile::TempDir,
    fingerprint: Fingerprint,
}

impl Fixture {
    fn new(config: LoopConfig) -> Self {
        Self {
            train: examples(21, 0),
            valid: examples(7, 3),
            config,
            folder: tempfile::tempdir().unwrap(),
            fingerprint: [("lr".to_owned(), "0.1".to_owned())].into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(
        &self,
        bigram: &mut Bigram,
        watch: &mut Watch,
        dir: &str,
        resume: bool,
    ) -> Result<Trained> {
        let path = self.path(dir);
        let dir = RunDir {
            path: &path,
            resume,
            fingerprint: &self.fingerprint,
        };
        let Watch {
            cancel_at,
            asked,
            stop,
            events,
        } = watch;
        let count = |n| {
            let asked = asked.fetch_add(n, Ordering::Relaxed) + n;
            if Some(asked) == *cancel_at {
                stop.store(true, Ordering::Relaxed);
            }
        };
        train(
            bigram,
            params(),
            self.data(),
            &self.config,
            Some(&dir),
            events,
            Progress::new().stopped_by(stop).counted_by(&count),
        )
    }

    fn plain(&self) -> Trained {
        let mut bigram = Bigram::default();
        train(
            &mut bigram,
            params(),
            self.data(),
            &self.config,
            None,
            &mut (),
            Progress::new(),
        )
        .unwrap()
    }

    fn data(&self) -> Data<'_> {
        Data {
            train: &self.train,
            valid: &self.valid,
        }
    }

    fn state(&self, dir: &str) -> State {
        let path = self.path(dir).join(STATE_FILE);
        State::load(&path, &self.fingerprint, &params(), self.config.adamw).unwrap()
    }
}

/// Cancels at the given question.
#[derive(Default)]
struct Watch {
    cancel_at: Option<u64>,
    asked: AtomicU64,
    stop: AtomicBool,
    events: Events,
}

/// Copies what a killed process would leave after each event.
#[derive(Default)]
struct Events {
    copy: Option<(PathBuf, PathBuf)>,
    copies: usize,
    saved: Vec<u64>,
}

impl Observer for Events {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Saved { step, .. } = event {
            self.saved.push(*step);
        }
        if let Some((from, to)) = &self.copy {
            let to = to.join(self.copies.to_string());
            fs::create_dir_all(&to).unwrap();
            for name in [STATE_FILE, METRICS_FILE] {
                fs::copy(from.join(name), to.join(name)).unwrap();
            }
            self.copies += 1;
        }
    }
}

/// All of a result but its time.
fn timeless(trained: Trained) -> Trained {
    Trained {
        seconds: 0.0,
        ..trained
    }
}

/// The lines of a log without their times.
fn metrics(folder: &Path) -> Vec<Line> {
    let lines = crate::train::log::read(&folder.join(METRICS_FILE), u64::MAX, Some(u64::MAX));
    let timeless = |line| match line {
        Line::Step(line) => Line::Step(StepLine {
            seconds: 0.0,
            tokens_per_s: 0.0,
            ..line
        }),
        valid => valid,
    };
    lines.unwrap().into_iter().map(timeless).collect()
}

#[test]
fn a_run_learns_and_returns_its_best_state() {
    let f = Fixture::new(config());
    let mut watch = Watch::default();
    let trained = f
        .run(&mut Bigram::default(), &mut watch, "run", false)
        .unwrap();
    // Logits of zero: every token costs ln 5.
    assert!((trained.initial_valid_loss.unwrap() - 5f64.ln()).abs() < 1e-12);
    assert!(trained.valid_loss.unwrap() < 1.4 && trained.train_loss.unwrap() < 1.4);
    assert_eq!((trained.steps, trained.stopped), (12, StopReason::MaxSteps));
    assert_eq!(trained.best_step, Some(12));
    assert_eq!(watch.events.saved, [0, 4, 8, 12]);
    let validated = |line: &Line| match line {
        Line::Valid(line) => Some(line.step),
        Line::Step(_) => None,
    };
    let lines = metrics(&f.path("run"));
    let steps: Vec<u64> = lines.iter().filter_map(validated).collect();
    assert_eq!((steps, lines.len()), (vec![0, 5, 10, 12], 16));
    let svg = fs::read_to_string(f.path("run").join(CURVE_FILE)).unwrap();
    assert!(svg.contains("validation"));
    // The files change nothing, and nothing is validated without examples for it.
    assert_eq!(timeless(f.plain()), timeless(trained.clone()));
    let unseen = Fixture {
        valid: Vec::new(),
        ..f
    };
    let last = unseen.plain();
    assert_eq!((last.best_step, last.valid_loss), (None, None));
    assert_eq!(last.params, trained.params);
}

#[test]
fn a_run_interrupted_anywhere_goes_on_to_the_same_bytes() {
    for config in [config(), impatient()] {
        let f = Fixture::new(config);
        let mut watch = Watch::default();
        let whole = timeless(
            f.run(&mut Bigram::default(), &mut watch, "whole", false)
                .unwrap(),
        );
        let questions = watch.asked.into_inner();
        assert!(questions > 40);
        for cancel_at in 1..=questions {
            let name = cancel_at.to_string();
            let mut watch = Watch {
                cancel_at: Some(cancel_at),
                ..Watch::default()
            };
            let e = f
                .run(&mut Bigram::default(), &mut watch, &name, false)
                .unwrap_err();
            assert_eq!(e.code(), Code::Interrupted);
            assert!(e.hint_text().unwrap().contains("resume the run in"));
            let mut watch = Watch::default();
            let resumed = f
                .run(&mut Bigram::default(), &mut watch, &name, true)
                .unwrap();
            assert_eq!(timeless(resumed), whole, "at question {cancel_at}");
            assert_eq!(metrics(&f.path(&name)), metrics(&f.path("whole")));
            let seconds = Some(0.0);
            let (mut a, mut b) = (f.state(&name), f.state("whole"));
            (a.counters.seconds, b.counters.seconds) = (seconds, seconds);
            assert_eq!(a, b);
        }
    }
}

#[test]
fn a_run_killed_after_any_event_goes_on_to_the_same_bytes() {
    // Nothing is saved on the way out here: the state is behind, and the log ahead of it.
    for config in [config(), impatient()] {
        let f = Fixture::new(config);
        let mut watch = Watch {
            events: Events {
                copy: Some((f.path("whole"), f.path("killed"))),
                ..Events::default()
            },
            ..Watch::default()
        };
        let whole = timeless(
            f.run(&mut Bigram::default(), &mut watch, "whole", false)
                .unwrap(),
        );
        for n in 0..watch.events.copies {
            let name = format!("killed/{n}");
            let log = f.path(&name).join(METRICS_FILE);
            let torn = [fs::read(&log).unwrap(), b"{\"step\":".to_vec()].concat();
            fs::write(&log, torn).unwrap();
            let mut watch = Watch::default();
            let resumed = f
                .run(&mut Bigram::default(), &mut watch, &name, true)
                .unwrap();
            assert_eq!(timeless(resumed), whole, "after event {n}");
            assert_eq!(metrics(&f.path(&name)), metrics(&f.path("whole")));
        }
    }
}

#[test]
fn a_run_that_ended_returns_the_same_again() {
    let f = Fixture::new(impatient());
    let mut watch = Watch::default();
    let whole = f
        .run(&mut Bigram::default(), &mut watch, "run", false)
        .unwrap();
    let mut bigram = Bigram::default();
    let again = f.run(&mut bigram, &mut watch, "run", true).unwrap();
    assert_eq!((timeless(again), bigram.calls), (timeless(whole), 0));
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    // Divided each by its own targets, unequal micro-batches would pull the result elsewhere.
    let mut f = Fixture::new(config());
    f.config.batch_size = 2;
    let parts = f.plain();
    f.config.batch_size = 8;
    let whole = f.plain();
    for (a, b) in parts.params.iter().zip(&whole.params) {
        for (a, b) in a.values.iter().zip(&b.values) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
    assert!((parts.valid_loss.unwrap() - whole.valid_loss.unwrap()).abs() < 1e-6);
}

#[test]
fn patience_stops_and_the_best_state_is_returned() {
    let f = Fixture::new(impatient());
    let trained = f.plain();
    assert_eq!(trained.stopped, StopReason::Patience);
    let best = trained.best_step.unwrap();
    assert!(best > 0 && best < trained.steps && trained.steps < 60);
    // The loss that is reported is that of the parameters that are returned.
    let mut objective = Bigram::default();
    let batch = Batch::new(&f.valid);
    let loss = objective.loss(&trained.params, &batch).unwrap().mean();
    assert!((loss - trained.valid_loss.unwrap()).abs() < 1e-9);
    // Gains below `min_delta` are none.
    let mut f = Fixture::new(config());
    (f.config.patience, f.config.min_delta) = (1, 100.0);
    assert_eq!(f.plain().steps, 5);
    f.config.patience = 0;
    assert_eq!(f.plain().steps, 12);
}

#[test]
fn divergence_stops_before_the_step_and_keeps_the_state_before_it() {
    for (fault, want) in [
        (Fault::Loss(f64::NAN), "the loss of step 7 is NaN"),
        (Fault::Loss(f64::INFINITY), "the loss of step 7 is inf"),
        (Fault::Gradient(f32::NAN), "a gradient of step 7 is NaN"),
        (
            Fault::Gradient(f32::NEG_INFINITY),
            "a gradient of step 7 is -inf",
        ),
        (Fault::Loss(60.0), "the loss ran away"),
    ] {
        let f = Fixture::new(config());
        // Three micro-batches to a step, two in the last one of an epoch of 21 examples: step 7
        // has calls 17 to 19.
        let fault = Some((18, fault));
        let mut bigram = Bigram { calls: 0, fault };
        let e = f
            .run(&mut bigram, &mut Watch::default(), "run", false)
            .unwrap_err();
        assert_eq!(e.code(), Code::Diverged);
        assert!(e.message().contains(want), "{e}");
        assert!(e.hint_text().unwrap().contains(STATE_FILE));
        if matches!(fault, Some((_, Fault::Gradient(_)))) {
            assert_eq!(e.tensor_name(), Some("b"));
        }
        // What was kept is the state after step 6 of a run without the fault: it leads on to its end.
        assert_eq!(f.state("run").optimiser.step, 6);
        let went_on = f.run(&mut Bigram::default(), &mut Watch::default(), "run", true);
        assert_eq!(timeless(went_on.unwrap()), timeless(f.plain()));
    }
    // A batch that is merely hard is no divergence.
    let f = Fixture::new(config());
    let fault = Some((18, Fault::Loss(13.0)));
    let mut bigram = Bigram { calls: 0, fault };
    assert!(
        f.run(&mut bigram, &mut Watch::default(), "run", false)
            .is_ok()
    );
}

#[test]
fn a_failing_device_costs_no_step_that_was_taken() {
    let f = Fixture::new(config());
    let fault = Some((19, Fault::Error));
    let mut bigram = Bigram { calls: 0, fault };
    let e = f
        .run(&mut bigram, &mut Watch::default(), "run", false)
        .unwrap_err();
    assert_eq!(e.code(), Code::Backend);
    assert_eq!(f.state("run").optimiser.step, 6);
}

#[test]
fn folders_of_other_runs_are_left_alone() {
    let mut f = Fixture::new(config());
    let run = |f: &Fixture, dir: &str, resume| {
        let code = f.run(&mut Bigram::default(), &mut Watch::default(), dir, resume);
        code.map(drop).map_err(|e| e.code())
    };
    assert_eq!(run(&f, "run", true), Err(Code::NotFound));
    assert!(!f.path("run").exists());
    assert_eq!(run(&f, "run", false), Ok(()));
    let state = fs::read(f.path("run").join(STATE_FILE)).unwrap();
    assert_eq!(run(&f, "run", false), Err(Code::OutputExists));
    let lock = fs::File::open(f.path("run")).unwrap();
    lock.lock().unwrap();
    assert_eq!(run(&f, "run", true), Err(Code::Busy));
    drop(lock);
    f.fingerprint.insert("seed".into(), "2".into());
    assert_eq!(run(&f, "run", true), Err(Code::CheckpointMismatch));
    assert_eq!(fs::read(f.path("run").join(STATE_FILE)).unwrap(), state);
    assert_eq!(metrics(&f.path("run")).len(), 16);
}

#[test]
fn data_that_cannot_be_trained_on_is_refused() {
    let f = Fixture::new(config());
    let run = |train: &[Example], valid: &[Example], params: Vec<Param>| {
        let data = Data { train, valid };
        let result = super::train(
            &mut Bigram::default(),
            params,
            data,
            &f.config,
            None,
            &mut (),
            Progress::new(),
        );
        result.unwrap_err().code()
    };
    assert_eq!(run(&[], &f.valid, params()), Code::NoExamples);
    let mut dumb = f.train.clone();
    dumb[3].predicted.fill(false);
    // Its first token is never predicted, whatever is said of it.
    dumb[3].predicted[0] = true;
    assert_eq!(run(&dumb, &f.valid, params()), Code::BadExample);
    assert_eq!(run(&f.train, &dumb, params()), Code::BadExample);
    let twice = [params(), params()].concat();
    assert_eq!(run(&f.train, &f.valid, twice), Code::Usage);
}
