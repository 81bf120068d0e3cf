//! What came of a calibration.

use serde::Serialize;

use crate::text::DataStats;
use crate::train::distil::Nearness;

/// One adapter of a calibration, compared with the LoRA on texts that none was fitted on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stage {
    /// Relative Frobenius error of the updates.
    pub error: f64,
    /// Relative error of the outputs on the calibration texts; none for a distilled adapter.
    pub output_error: Option<f64>,
    /// KL(LoRA ‖ this) and loss.
    #[serde(flatten)]
    pub near: Nearness,
    /// The loss less that of the LoRA.
    pub loss_change: f64,
}

/// Which adapter of a calibration is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kept {
    /// The fit to the updates.
    Plain,
    /// The fit to the outputs.
    Calibrated,
    /// What was trained from the better of the two.
    Distilled,
}

/// What came of a calibration. Losses and divergences are nats per target token of the held-out texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CalibrateReport {
    /// What the file of texts held.
    pub text: DataStats,
    /// Texts that were fitted on.
    pub fitted_on: usize,
    /// Texts held out.
    pub held_out: usize,
    /// Their target tokens.
    pub held_out_targets: usize,
    /// Loss of the LoRA.
    pub lora_loss: f64,
    /// The base model without an adapter.
    pub base: Nearness,
    /// The fit to the updates.
    pub plain: Stage,
    /// The fit to the outputs.
    pub calibrated: Stage,
    /// No tied adapter of these ranks, without v, has a lower output error.
    pub output_bound: f64,
    /// Output error of the best untied LoRA of the same bytes.
    pub output_untied: f64,
    /// What was trained from the better one.
    pub distilled: Option<Stage>,
    /// What is written, where the factors of the one that is kept were coded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coded: Option<Stage>,
    /// The one with the lowest divergence.
    pub kept: Kept,
    /// What that one is worth, in one sentence for people.
    pub summary: String,
}

/// What came of comparing a coded adapter with its source on texts. Losses and divergences are nats per target token of
/// the held-out texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedTexts {
    /// What the file of texts held.
    pub text: DataStats,
    /// Texts that it was coded to; none where it was coded to the updates.
    pub fitted_on: usize,
    /// Texts held out.
    pub held_out: usize,
    /// Their target tokens.
    pub held_out_targets: usize,
    /// Loss of the adapter before.
    pub lora_loss: f64,
    /// The base model without an adapter.
    pub base: Nearness,
    /// Coded to the updates; beside one that is coded to the outputs, in no more bytes.
    pub plain: Stage,
    /// Coded to the outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<Stage>,
    /// The one that is written.
    pub kept: Kept,
    /// What that one is worth, in one sentence for people.
    pub summary: String,
}

/// What is left of the LoRA, as its predictions on other texts tell.
pub(super) fn summary(best: &Stage, r: &CalibrateReport) -> String {
    let name = match r.kept {
        Kept::Plain => "the fit to the updates",
        Kept::Calibrated => "the fit to the outputs",
        Kept::Distilled => "the distilled adapter",
    };
    worth(name, best, &r.base)
}

/// How far an adapter is from the LoRA beside the base.
pub(super) fn worth(name: &str, best: &Stage, base: &Nearness) -> String {
    let verdict = match best.near.kl < base.kl {
        true => format!(
            "the base alone is {:.2} times as far",
            base.kl / best.near.kl.max(f64::MIN_POSITIVE)
        ),
        false => "no nearer than the base alone: do not use it".to_owned(),
    };
    format!(
        "{name} is {:.4} nats a token from the LoRA's predictions on held-out texts; {verdict}",
        best.near.kl
    )
}
