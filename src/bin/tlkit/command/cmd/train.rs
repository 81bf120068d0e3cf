use tlkit::Result;
use tlkit::compute::DeviceChoice;
use tlkit::fs::check_inputs;
use tlkit::model::{device, device_name};
use tlkit::train::{RunOptions, RunReport, Settings, TrainingRun};

use super::{existing, show};
use crate::command::args::Train;
use crate::command::ending;
use crate::command::output::{Outcome, Output, bytes, count, fields, plural};
use crate::command::progress::TrainBar;
use crate::command::watch::Stop;

pub(crate) fn train(args: &Train, output: &Output) -> Result<Outcome> {
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let config = args.settings().over(file).resolve()?;
    if let (true, Some(file)) = (args.force, &args.config) {
        check_inputs(&config.output, &[file])?;
    }
    let device = device(Some(config.device.as_str()))?;
    if config.device.choice() == DeviceChoice::Auto {
        output.note(&format!("auto: computing on {}", device_name(&device)));
    }
    let mut run_dir = config.output.clone().into_os_string();
    run_dir.push(".run");
    let run_dir = match args.resume.as_ref().or(args.run_dir.as_ref()) {
        Some(dir) => dir.clone(),
        None => run_dir.into(),
    };
    let mut options = RunOptions::new(&run_dir);
    options.resume = args.resume.is_some();
    options.peft = args.peft.clone();
    options.existing = existing(args.force);
    let run = TrainingRun::open(config, options, &device)?;
    let data = run.data();
    if data.truncated > 0 {
        output.note(&format!(
            "{} of {} examples were cut to {} tokens",
            data.truncated,
            data.examples,
            run.config().seq_len
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
    let stop = Stop::here();
    let report = TrainBar::during("train", |bar| run.run(bar, stop.progress()))?;
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn text(r: &RunReport) -> String {
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
                "{} in {:.1} s, in {}, stopped by {}",
                r.steps, r.seconds, r.compute_dtype, r.stopped
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
