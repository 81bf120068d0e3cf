//! A merged model against its base with the adapter beside it, by what they predict.

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::model::{Branches, Model};
use crate::progress::Progress;
use crate::safetensors::Checkpoint;
use crate::tensor::worst::{at_least_zero, is_within, largest};
use crate::tensor::{Dtype, larger};
use crate::text::{Batch, IGNORE};

/// How far two models are apart on some texts. Sums are in f64.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LogitsReport {
    /// Number of texts.
    pub texts: usize,
    /// Number of positions whose logits were compared.
    pub tokens: usize,
    /// Largest absolute difference of two logits.
    pub max_abs_diff: f64,
    /// Largest absolute logit of the base with the adapter.
    pub max_abs_logit: f64,
    /// Mean of KL(base with adapter ‖ merged), in nats per token.
    pub mean_kl: f64,
    /// Share of positions with the same likeliest token, from 0 to 1.
    pub top1_agreement: f64,
}

impl LogitsReport {
    /// Whether no logit differs by more than `max_diff`, nor the mean divergence is above `max_kl`.
    pub fn is_within(&self, max_diff: f64, max_kl: Option<f64>) -> bool {
        is_within(self.max_abs_diff, max_diff)
            && max_kl.map_or(self.mean_kl.is_finite(), |most| {
                is_within(self.mean_kl, most)
            })
    }
}

/// The difference of logits that rounding alone explains, as a share of the largest logit: 1e-3
/// for a model in F32, and 8 units of its coarsest weights otherwise (2⁻⁵ in BF16, 2⁻⁸ in F16), as
/// each weight of a merge is rounded once.
pub fn rounding_share(merged: &Checkpoint) -> f64 {
    let dtypes = merged.tensors().values().map(|l| merged.at(*l).1.dtype);
    dtypes.fold(1e-3, |share: f64, dtype| match dtype {
        Dtype::BF16 => share.max(1.0 / 32.0),
        Dtype::F16 => share.max(1.0 / 256.0),
        _ => share,
    })
}

/// Compares `base` and its `branches` with `merged` on `texts`, one at a time, as tokens × vocabulary
/// logits of both are held. `progress` counts the texts.
///
/// # Errors
/// [`Code::BaseShape`] for models of different vocabularies; [`Code::NoExamples`] without a token;
/// [`Code::Diverged`] for logits that are not finite; those of [`Model::logits`] and `progress`.
pub fn compare_logits(
    (base, branches): (&Model, &Branches),
    merged: &Model,
    texts: &[Vec<u32>],
    progress: Progress<'_>,
) -> Result<LogitsReport> {
    let (n, m) = (base.config().vocabulary, merged.config().vocabulary);
    if n != m {
        let message = format!("the base has {n} tokens, and the merged model {m}");
        return Err(Error::new(Code::BaseShape, message));
    }
    let none = Branches::none(merged.config().layers);
    let mut report = LogitsReport::default();
    let (mut kl, mut agreed) = (0.0, 0usize);
    for text in texts.iter().filter(|t| !t.is_empty()) {
        let batch = Batch {
            tokens: text.clone(),
            targets: vec![IGNORE; text.len()],
            sequences: std::iter::once(0..text.len()).collect(),
        };
        let ours = rows(&base.logits(branches, &batch)?)?;
        let theirs = rows(&merged.logits(&none, &batch)?)?;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let row = Row::of(ours, theirs)?;
            report.max_abs_diff = larger(report.max_abs_diff, row.max_abs_diff);
            report.max_abs_logit = larger(report.max_abs_logit, row.max_abs_logit);
            kl += row.kl;
            agreed += usize::from(row.agree);
        }
        report.texts += 1;
        report.tokens += ours.len();
        progress.advance(1)?;
    }
    if report.tokens == 0 {
        return Err(Error::new(Code::NoExamples, "no text to compare on"));
    }
    report.mean_kl = kl / report.tokens as f64;
    report.top1_agreement = agreed as f64 / report.tokens as f64;
    Ok(report)
}

fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(logits.to_dtype(DType::F32)?.to_vec2::<f32>()?)
}

struct Row {
    max_abs_diff: f64,
    max_abs_logit: f64,
    kl: f64,
    agree: bool,
}

impl Row {
    fn of(p: &[f32], q: &[f32]) -> Result<Self> {
        if p.iter().chain(q).any(|x| !x.is_finite()) {
            let message = "a model's logits are not finite";
            return Err(Error::new(Code::Diverged, message));
        }
        let pairs = || p.iter().zip(q).map(|(p, q)| (f64::from(*p), f64::from(*q)));
        let (log_p, log_q) = (log_sum_exp(p), log_sum_exp(q));
        let kl: f64 = pairs()
            .map(|(p, q)| (p - log_p).exp() * ((p - log_p) - (q - log_q)))
            .sum();
        Ok(Self {
            max_abs_diff: largest(pairs().map(|(p, q)| (p - q).abs())),
            max_abs_logit: largest(pairs().map(|(p, _)| p.abs())),
            // Not below zero but for rounding.
            kl: at_least_zero(kl),
            agree: top(p) == top(q),
        })
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row
        .iter()
        .map(|x| (f64::from(*x) - max).exp())
        .sum::<f64>()
        .ln()
}

/// The lowest of the greatest.
fn top(row: &[f32]) -> Option<usize> {
    let best = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 { b } else { a };
    let numbered = row.iter().copied().enumerate();
    numbered.reduce(best).map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::format::NoBlobs;
    use crate::merge::{self, Control, ExecOptions, MergeInput, PlanOptions};
    use crate::model::branches_of;
    use crate::open::open_adapter;

    /// Breaks where a correct merge is called wrong, or a wrong one correct.
    #[test]
    fn a_merge_is_within_the_bound_and_its_base_is_not() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let dir = fixtures.join("llama-tiny");
        let adapter = fixtures.join("adapters/style-tl6.tl");
        let base = Model::open(&dir, &Device::Cpu, None).unwrap();
        let branches = branches_of(&adapter, &base, &NoBlobs).unwrap().branches;
        let texts = [vec![1, 5, 9, 77, 3, 20], (0..40).collect()];
        let compare = |merged: &Model| {
            compare_logits((&base, &branches), merged, &texts, Progress::new()).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merged");
        merge_into(&dir, &adapter, &path);
        let right = compare(&Model::open(&path, &Device::Cpu, None).unwrap());
        let share = rounding_share(&Checkpoint::open(&path).unwrap());
        assert!(
            right.is_within(share * right.max_abs_logit, None),
            "{right:?}"
        );
        assert_eq!((right.texts, right.tokens), (2, 46));
        let wrong = compare(&base);
        assert!(
            !wrong.is_within(share * wrong.max_abs_logit, None),
            "{wrong:?}"
        );
        assert!(wrong.mean_kl > 10.0 * right.mean_kl, "{wrong:?} {right:?}");
        assert!(!right.is_within(f64::INFINITY, Some(right.mean_kl / 2.0)));
    }

    fn merge_into(dir: &Path, adapter: &Path, path: &Path) {
        let base = Checkpoint::open(dir).unwrap();
        let opened = open_adapter(adapter, Some(&base), &NoBlobs).unwrap();
        let input = MergeInput::new("a", opened.adapter, opened.identity);
        let inputs = [input];
        let options = PlanOptions {
            rounding: merge::Rounding::Peft,
            tied: merge::TiedPolicy::Refuse,
            renames: Vec::new(),
            ..PlanOptions::default()
        };
        let plan = merge::plan(&base, &inputs, &options).unwrap();
        let exec = ExecOptions {
            existing: crate::fs::Existing::Refuse,
            durable: false,
            allow_unchanged: false,
        };
        merge::execute(&plan, path, &exec, &Control::default()).unwrap();
    }

    #[test]
    fn divergence_of_known_distributions() {
        let half = [0.5f32.ln(); 2];
        let row = Row::of(&half, &[0.25f32.ln(), 0.75f32.ln()]).unwrap();
        let right = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((row.kl - right).abs() < 1e-7);
        assert!(!row.agree);
        // A constant added to all logits changes no distribution.
        let row = Row::of(&half, &[3.0, 3.0]).unwrap();
        assert!(row.kl < 1e-12 && row.agree && row.max_abs_diff > 3.0);
        assert!(Row::of(&half, &[f32::NAN, 0.0]).is_err());
    }
}
