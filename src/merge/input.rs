//! An adapter as a merge takes it, and the rules that follow from where it came from.

use std::collections::BTreeMap;
use std::path::Path;

use crate::adapter::{Adapter, Method};
use crate::digest::Digest;
use crate::error::Result;
use crate::format::BlobSource;
use crate::open::{Source, open_adapter};
use crate::peft::import::PeftKind;
use crate::safetensors::Checkpoint;
use crate::tensor::Tensor;

/// One adapter to merge.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergeInput {
    /// What messages and reports call it: usually the path.
    pub label: String,
    /// The adapter.
    pub adapter: Adapter,
    /// Multiplies the scaling of every update, before it becomes f32. 1 changes nothing.
    pub weight: f64,
    /// DoRA's magnitudes by module path, one for each output feature; empty for other adapters.
    pub magnitudes: BTreeMap<String, Tensor>,
    /// The update is rounded once under [`Rounding::PeftSafe`](super::Rounding::PeftSafe) too, as PEFT
    /// does for VeRA.
    pub single_rounding: bool,
    /// Tells this adapter from others when an interrupted merge is resumed: a `.tl`'s root, or a
    /// digest over the files of a PEFT directory.
    pub identity: Digest,
    /// Whether a weight is stored (out, in) or (in, out) is decided by the base (PEFT directories,
    /// whose `fan_in_fan_out` is not reliable). Without it the base must fit what the adapter says.
    pub lenient_layout: bool,
    /// What was noticed when the adapter was opened. Reports do not repeat it.
    pub notes: Vec<String>,
}

impl MergeInput {
    /// An adapter with weight 1, laid out as it says and rounded as asked for: what is not read from
    /// files. [`open`](Self::open) knows what files of a kind need.
    pub fn new(label: impl Into<String>, adapter: Adapter, identity: Digest) -> Self {
        Self {
            label: label.into(),
            adapter,
            weight: 1.0,
            magnitudes: BTreeMap::new(),
            single_rounding: false,
            identity,
            lenient_layout: false,
            notes: Vec::new(),
        }
    }

    /// Opens a `.tl` file or a PEFT adapter directory, whichever `path` is, to be merged into `base`
    /// with weight 1. `blobs` answers what a thin `.tl` leaves out.
    ///
    /// A VeRA is rounded once, as PEFT does. Of a PEFT directory the base decides how weights are
    /// stored.
    ///
    /// # Errors
    /// Those of [`open_adapter`].
    pub fn open(path: &Path, base: &Checkpoint, blobs: &dyn BlobSource) -> Result<Self> {
        let opened = open_adapter(path, Some(base), blobs)?;
        let vera_directory = matches!(
            opened.source,
            Source::Peft(PeftKind::Vera | PeftKind::VeraRegenerated)
        );
        Ok(Self {
            label: path.display().to_string(),
            weight: 1.0,
            magnitudes: opened.magnitudes,
            single_rounding: vera_directory || opened.adapter.method() == Method::Vera,
            identity: opened.identity,
            lenient_layout: opened.source != Source::Tl,
            adapter: opened.adapter,
            notes: opened.notes,
        })
    }
}
