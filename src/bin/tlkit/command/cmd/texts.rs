//! A model and texts that adapters are fitted to, coded to, and compared on.

use std::path::Path;

use tlkit::Result;
use tlkit::fit::calibrate::{CalibrateOptions, Calibration, CodedTexts, Kept, Stage};
use tlkit::model::device;
use tlkit::train::distil::Nearness;

use crate::command::args::OnTexts;
use crate::command::output::{number, plural, relative_error, table};

/// What the texts are; none where no model is given.
pub(super) fn open(
    calibrate: Option<&Path>,
    texts: &OnTexts,
    renames: &[(String, String)],
) -> Result<Option<Calibration>> {
    let Some(model) = texts.model.as_deref() else {
        return Ok(None);
    };
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let device = device(Some(&texts.device))?;
    let mut reading = match (calibrate, texts.valid.as_deref()) {
        (Some(text), valid) => {
            let mut reading = CalibrateOptions::new(model, text, &device);
            reading.valid = valid;
            reading
        }
        (None, Some(valid)) => CalibrateOptions::held_out(model, valid, &device),
        (None, None) => return Ok(None),
    };
    reading.seq_len = number(texts.seq_len);
    reading.renames = renames;
    reading.limit = texts.limit.map(number);
    Calibration::open(&reading).map(Some)
}

/// How near an adapter is on texts held out, and whether it is the one that is written.
pub(super) struct StageRow<'a> {
    pub(super) name: &'a str,
    pub(super) stage: &'a Stage,
    pub(super) written: bool,
}

/// A table of stages, below the base model without an adapter.
pub(super) fn stages(base: &Nearness, lora_loss: f64, stages: &[StageRow<'_>]) -> String {
    let none = || "-".to_owned();
    let mut rows = vec![vec![
        "no adapter".to_owned(),
        none(),
        none(),
        number(base.kl),
        number(base.loss),
        number(base.loss - lora_loss),
    ]];
    rows.extend(stages.iter().map(|row| {
        let mark = if row.written { " (written)" } else { "" };
        let stage = row.stage;
        vec![
            format!("{}{mark}", row.name),
            relative_error(stage.error),
            stage.output_error.map_or_else(none, relative_error),
            number(stage.near.kl),
            number(stage.near.loss),
            number(stage.loss_change),
        ]
    }));
    let header = ["", "updates", "outputs", "KL", "loss", "change"];
    table(&header, &[1, 2, 3, 4, 5], rows)
}

/// How near coded adapters are on texts held out.
pub(super) fn coded_text(r: &CodedTexts) -> String {
    let row = |name, stage, kept: Kept| StageRow {
        name,
        stage,
        written: r.kept == kept,
    };
    let mut rows = vec![row("coded to the updates", &r.plain, Kept::Plain)];
    rows.extend((r.calibrated.as_ref()).map(|s| row("coded to the outputs", s, Kept::Calibrated)));
    let table = stages(&r.base, r.lora_loss, &rows);
    let outputs = match r.calibrated {
        Some(_) => format!(
            "updates, outputs: relative errors, outputs on {}; both take the same bytes\n",
            plural(r.fitted_on, "text")
        ),
        None => String::new(),
    };
    format!(
        "{table}\n\n{outputs}\
         KL, loss, change: divergence from the LoRA's predictions, loss, and that less the LoRA's ({}),\n\
         in nats a token on {} held out ({} tokens)",
        number(r.lora_loss),
        plural(r.held_out, "text"),
        r.held_out_targets
    )
}
