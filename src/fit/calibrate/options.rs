//! What a calibration reads.

use std::path::Path;

use candle_core::Device;

/// The model and the texts of a calibration, and how much of them is read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CalibrateOptions<'a> {
    /// Directory of the base model, with its tokenizer.
    pub model: &'a Path,
    /// JSONL as for training, to fit on; prompts count like all else. Without it there is nothing but a comparison.
    pub text: Option<&'a Path>,
    /// JSONL to compare on; without it, every tenth example of `text` is held out.
    pub valid: Option<&'a Path>,
    /// Most tokens of an example; no more than the model has positions.
    pub seq_len: usize,
    /// Most examples to read of each file; all without it.
    pub limit: Option<usize>,
    /// The device that runs the model.
    pub device: &'a Device,
    /// How the adapter calls the model's modules: see [`Model::with_renames`](crate::model::Model::with_renames).
    pub renames: &'a [(String, String)],
}

impl<'a> CalibrateOptions<'a> {
    /// All texts, up to 512 tokens of each, a tenth of them held out.
    pub fn new(model: &'a Path, text: &'a Path, device: &'a Device) -> Self {
        Self {
            model,
            text: Some(text),
            valid: None,
            seq_len: 512,
            limit: None,
            device,
            renames: &[],
        }
    }

    /// To compare on these texts alone.
    pub fn held_out(model: &'a Path, valid: &'a Path, device: &'a Device) -> Self {
        Self {
            text: None,
            valid: Some(valid),
            ..Self::new(model, valid, device)
        }
    }
}
