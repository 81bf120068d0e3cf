//! A model that is ready to run: weights, tokenizer and adapter.

use std::path::Path;

use candle_core::Device;

use super::attach;
use crate::error::{Code, Error, Result};
use crate::format::BlobSource;
use crate::model::{Branches, Model};
use crate::open::open_adapter;
use crate::tensor::Dtype;
use crate::text::Vocabulary;

/// A model, what its tokens mean, and the adapter that runs on it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Session {
    /// The frozen weights.
    pub model: Model,
    /// The tokenizer beside them.
    pub vocabulary: Vocabulary,
    /// The adapter; none without one.
    pub branches: Branches,
    /// What is unusual about the adapter, a line each: what reading it passed over, or does not carry.
    pub notes: Vec<String>,
}

impl Session {
    /// Opens the model directory `dir`, and the `.tl` or PEFT directory `adapter`; computes in
    /// `dtype` as [`Model::open`] says.
    ///
    /// # Errors
    /// Those of [`Model::open`], [`Vocabulary::open`] and [`branches_of`].
    pub fn open(
        dir: &Path,
        adapter: Option<&Path>,
        blobs: &dyn BlobSource,
        device: &Device,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let vocabulary = Vocabulary::open(dir)?;
        let model = Model::open(dir, device, dtype)?;
        let (branches, notes) = match adapter {
            Some(adapter) => branches_of(adapter, &model, blobs)?,
            None => (Branches::none(model.config().layers), Vec::new()),
        };
        Ok(Self {
            model,
            vocabulary,
            branches,
            notes,
        })
    }
}

/// The branches of an adapter for the model, and notes on it as in [`Session::notes`].
///
/// # Errors
/// Those of [`open_adapter`] and [`attach`]; [`Code::UnsupportedAdapter`] for DoRA.
pub fn branches_of(
    adapter: &Path,
    model: &Model,
    blobs: &dyn BlobSource,
) -> Result<(Branches, Vec<String>)> {
    let opened = open_adapter(adapter, Some(model.checkpoint()), blobs)?;
    if !opened.magnitudes.is_empty() {
        let message = "the adapter is DoRA, whose magnitudes depend on the merged weights";
        return Err(Error::new(Code::UnsupportedAdapter, message)
            .file(adapter)
            .hint("merge it, and run the result"));
    }
    let branches = attach(&opened.adapter, model).map_err(|e| e.file(adapter))?;
    Ok((branches, opened.notes))
}
