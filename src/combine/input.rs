//! One adapter of a combination.

use std::path::Path;

use crate::adapter::Adapter;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::BlobSource;
use crate::open::open_adapter;
use crate::safetensors::Checkpoint;

/// One adapter of a combination.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CombineInput {
    /// What messages and reports call it: usually the path.
    pub label: String,
    /// The adapter.
    pub adapter: Adapter,
    /// What its ΔW is multiplied by; finite, negative to subtract.
    pub weight: f64,
    /// A `.tl`'s root, or a digest over the files of a PEFT directory.
    pub identity: Digest,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was noticed when the adapter was opened.
    pub notes: Vec<String>,
    /// Modules that config and base say are adapted, and that the adapter has no tensors of.
    pub missing: Vec<String>,
}

impl CombineInput {
    /// An adapter that was not read from files.
    pub fn new(label: impl Into<String>, adapter: Adapter, weight: f64, identity: Digest) -> Self {
        Self {
            label: label.into(),
            bytes: adapter.tensor_bytes(),
            adapter,
            weight,
            identity,
            notes: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Opens a `.tl` file or a PEFT adapter directory, whichever `path` is.
    ///
    /// # Errors
    /// Those of [`open_adapter`]; [`Code::UnsupportedDora`], as magnitudes do not add.
    pub fn open(
        path: &Path,
        weight: f64,
        base: Option<&Checkpoint>,
        blobs: &dyn BlobSource,
    ) -> Result<Self> {
        let opened = open_adapter(path, base, blobs).map_err(|e| e.file(path))?;
        if let Some((module, _)) = opened.magnitudes.first_key_value() {
            let message = "DoRA sets the length of the merged weight, and lengths of several adapters do not add";
            return Err(Error::new(Code::UnsupportedDora, message)
                .file(path)
                .tensor(module)
                .hint("merge the adapters one after the other"));
        }
        Ok(Self {
            label: path.display().to_string(),
            adapter: opened.adapter,
            weight,
            identity: opened.identity,
            bytes: opened.bytes,
            notes: opened.notes,
            missing: opened.missing,
        })
    }
}
