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
    /// Modules that should have tensors, and have none: see [`Attached::missing`].
    pub missing: Vec<String>,
}

/// An adapter on a model.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attached {
    /// Its updates, where they run.
    pub branches: Branches,
    /// What is unusual about it: see [`Session::notes`].
    pub notes: Vec<String>,
    /// Modules that its config and the model say are adapted, and that have no tensors in its file;
    /// [`check_complete`](crate::open::check_complete) refuses them.
    pub missing: Vec<String>,
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
        Self::with(vocabulary, model, adapter, blobs)
    }

    /// The same of a model that is open, such as one [whose modules adapters call
    /// otherwise](Model::with_renames).
    ///
    /// # Errors
    /// Those of [`branches_of`].
    pub fn with(
        vocabulary: Vocabulary,
        model: Model,
        adapter: Option<&Path>,
        blobs: &dyn BlobSource,
    ) -> Result<Self> {
        let attached = match adapter {
            Some(adapter) => branches_of(adapter, &model, blobs)?,
            None => Attached {
                branches: Branches::none(model.config().layers),
                notes: Vec::new(),
                missing: Vec::new(),
            },
        };
        let Attached {
            branches,
            notes,
            missing,
        } = attached;
        Ok(Self {
            model,
            vocabulary,
            branches,
            notes,
            missing,
        })
    }
}

/// Puts an adapter on the model, by the names that the model's checkpoint is [told of](Model::with_renames).
///
/// # Errors
/// Those of [`open_adapter`] and [`attach`]; [`Code::UnsupportedAdapter`] for DoRA.
pub fn branches_of(adapter: &Path, model: &Model, blobs: &dyn BlobSource) -> Result<Attached> {
    let opened = open_adapter(adapter, Some(model.checkpoint()), blobs)?;
    if !opened.magnitudes.is_empty() {
        let message = "the adapter is DoRA, whose magnitudes depend on the merged weights";
        return Err(Error::new(Code::UnsupportedAdapter, message)
            .file(adapter)
            .hint("merge it, and run the result"));
    }
    Ok(Attached {
        branches: attach(&opened.adapter, model).map_err(|e| e.file(adapter))?,
        notes: opened.notes,
        missing: opened.missing,
    })
}
