use tlkit::Result;
use tlkit::fs::check_inputs;
use tlkit::model::{device, device_name};
use tlkit::train::job::{Job, JobOptions, JobReport};
use tlkit::train::settings::Settings;

use super::{existing, show};
use crate::args::Train;
use crate::ending;
use crate::output::{Outcome, Output, bytes, count, fields, plural};
use crate::progress::{TrainBar, unseen};

pub(crate) fn train(args: &Train, output: &Output) -> Result<Outcome> {
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let config = settings(args).over(file).resolve()?;
    if let (true, Some(file)) = (args.force, &args.config) {
        check_inputs(&config.output, &[file])?;
    }
    let device = device(Some(&config.device))?;
    if config.device == "auto" {
        output.note(&format!("auto: computing on {}", device_name(&device)));
    }
    let mut run_dir = config.output.clone().into_os_string();
    run_dir.push(".run");
    let options = JobOptions {
        run_dir: match (&args.resume, &args.run_dir) {
            (Some(dir), _) | (None, Some(dir)) => dir.clone(),
            (None, None) => run_dir.into(),
        },
        resume: args.resume.is_some(),
        peft: args.peft.clone(),
        existing: existing(args.force),
        device,
    };
    let run_dir = options.run_dir.clone();
    let job = Job::open(config, options)?;
    let data = job.data();
    if data.truncated > 0 {
        output.note(&format!(
            "{} of {} examples were cut to {} tokens",
            data.truncated,
            data.examples,
            job.config().seq_len
        ));
    }
    if data.dropped > 0 {
        let examples = plural(data.dropped, "example");
        output.note(&format!(
            "{examples} had no target left after the cut and were left out"
        ));
    }
    ending::remedy(format!(
        "go on from the last checkpoint, where there is one, with --resume {}",
        run_dir.display()
    ));
    let report = TrainBar::during("train", |bar| job.run(bar, unseen()))?;
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn settings(args: &Train) -> Settings {
    let a = args.clone();
    Settings {
        model: a.model,
        data: a.data,
        valid: a.valid,
        output: a.output,
        method: a.method,
        train: (!a.train.is_empty()).then_some(a.train),
        tie: a.tie,
        layers: a.layers,
        targets: (!a.targets.is_empty()).then_some(a.targets),
        joint: a.joint,
        rank: a.rank,
        alpha: a.alpha,
        max_steps: a.max_steps,
        epochs: a.epochs,
        lr: a.lr,
        min_lr: a.min_lr,
        warmup: a.warmup,
        weight_decay: a.weight_decay,
        beta1: a.beta1,
        beta2: a.beta2,
        clip: a.clip,
        batch_size: a.batch_size,
        global_batch: a.global_batch,
        seq_len: a.seq_len,
        loss_on_prompt: a.loss_on_prompt.then_some(true),
        eval_every: a.eval_every,
        patience: a.patience,
        min_delta: a.min_delta,
        seed: a.seed,
        recompute: a.recompute.then_some(true),
        device: a.device,
        compute_dtype: a.compute_dtype,
        dtype: a.dtype,
        checkpoint_every: a.checkpoint_every,
    }
}

fn text(r: &JobReport) -> String {
    let loss = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    let valid = match (r.initial_valid_loss, r.valid_loss) {
        (None, _) => "not validated: give --valid".to_owned(),
        (before, after) => format!(
            "{} → {} nats per token (best after step {})",
            loss(before),
            loss(after),
            r.best_step.unwrap_or_default()
        ),
    };
    let mut rows = vec![
        ("method", format!("{}, rank {}", r.method, r.rank)),
        ("trained", format!("{} parameters", count(r.parameters))),
        (
            "steps",
            format!(
                "{} in {:.1} s, stopped by {}",
                r.steps, r.seconds, r.stopped
            ),
        ),
        (
            "train loss",
            format!("{} nats per token", loss(r.train_loss)),
        ),
        ("valid loss", valid),
        ("root", r.root.clone()),
        ("bytes", bytes(r.bytes)),
        ("output", show(&r.output)),
    ];
    if let Some(peft) = &r.peft {
        let form = r.peft_form.unwrap_or_default();
        rows.push(("PEFT", format!("{} ({form})", show(peft))));
    }
    rows.push(("run", show(&r.run_dir)));
    fields(&rows)
}
