//! What a caller asks of a merge: adapters, how they are matched and written, where it is computed, how it
//! is watched and stopped.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::method::MergeMethod;
use crate::adapter::{Adapter, Method};
use crate::compute::{Gpu, Rounding};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::BlobSource;
use crate::fs::Existing;
use crate::open::{Opened, Source, open_adapter};
use crate::peft::import::PeftKind;
use crate::progress::Progress;
use crate::safetensors::Checkpoint;
use crate::tensor::{Dtype, Tensor};

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
    /// The share of elements of each of its updates that stays in a merge by a method, where it is not the one
    /// that [`MergeMethod`](super::MergeMethod) gives.
    pub density: Option<f64>,
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
    /// The folder that the adapter was read from, where it is one: a tokenizer may lie in it.
    pub folder: Option<PathBuf>,
    /// What was noticed when the adapter was opened.
    pub notes: Vec<String>,
    /// Modules that config and base say are adapted, and that the adapter has no tensors of.
    pub missing: Vec<String>,
}

impl MergeInput {
    /// An adapter with weight 1, laid out as it says and rounded as asked for: what is not read from
    /// files. [`open`](Self::open) knows what files of a kind need.
    pub fn new(label: impl Into<String>, adapter: Adapter, identity: Digest) -> Self {
        Self {
            label: label.into(),
            adapter,
            weight: 1.0,
            density: None,
            magnitudes: BTreeMap::new(),
            single_rounding: false,
            identity,
            lenient_layout: false,
            folder: None,
            notes: Vec::new(),
            missing: Vec::new(),
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
        Ok(Self::opened(path, open_adapter(path, Some(base), blobs)?))
    }

    /// As [`open`](Self::open), of what was opened at `path`, over the base that it is merged into.
    pub(crate) fn opened(path: &Path, opened: Opened) -> Self {
        let vera_directory = matches!(
            opened.source,
            Source::Peft(PeftKind::Vera | PeftKind::VeraRegenerated)
        );
        Self {
            label: path.display().to_string(),
            weight: 1.0,
            density: None,
            magnitudes: opened.magnitudes,
            single_rounding: vera_directory || opened.adapter.method() == Method::Vera,
            identity: opened.identity,
            lenient_layout: opened.source != Source::Tl,
            folder: path.is_dir().then(|| path.to_owned()),
            adapter: opened.adapter,
            notes: opened.notes,
            missing: opened.missing,
        }
    }
}

/// What to do where the adapter changes a tensor that input and output embedding share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TiedPolicy {
    /// Fail with [`Code::TiedEmbedding`].
    #[default]
    Refuse,
    /// Give the output a tensor of its own, so that only the adapted one changes. Adds
    /// `lm_head.weight` to the shard of the embedding and turns `tie_word_embeddings` off.
    Untie,
    /// Change the shared tensor, and so both, as PEFT does.
    Shared,
}

impl TiedPolicy {
    /// Every policy there is.
    pub const ALL: [Self; 3] = [Self::Refuse, Self::Untie, Self::Shared];

    /// `refuse`, `untie` or `shared`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Untie => "untie",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for TiedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TiedPolicy {
    type Err = Error;

    /// The inverse of [`as_str`](Self::as_str).
    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|p| p.as_str() == name);
        known.ok_or_else(|| {
            let message = format!("there is no policy `{name}` for tied embeddings");
            Error::new(Code::Usage, message)
                .hint(format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

impl Serialize for TiedPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Whose tokenizer goes into an output directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TokenizerFrom {
    /// The base's, copied with its other files.
    #[default]
    Base,
    /// The adapter's: the files of a tokenizer in its folder take the place of the base's.
    Adapter,
}

impl TokenizerFrom {
    /// Every choice there is.
    pub const ALL: [Self; 2] = [Self::Base, Self::Adapter];

    /// `base` or `adapter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Adapter => "adapter",
        }
    }
}

impl fmt::Display for TokenizerFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TokenizerFrom {
    type Err = Error;

    /// The inverse of [`as_str`](Self::as_str).
    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|t| t.as_str() == name);
        known.ok_or_else(|| {
            let message = format!("`{name}` has no tokenizer: base or adapter");
            Error::new(Code::Usage, message)
        })
    }
}

/// How adapters are matched to the base and added to it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PlanOptions {
    /// The rounding of updates. Replaced tensors, biases and DoRA are rounded once either way, and an
    /// embedding's update is rounded before it is added, as PEFT does either way.
    pub rounding: Rounding,
    /// What to do about tied embeddings.
    pub tied: TiedPolicy,
    /// Whose tokenizer goes into an output directory.
    pub tokenizer: TokenizerFrom,
    /// Prefixes of adapter names and what stands for them in the base (`backbone` → `model`). The
    /// first that fits a name is applied; an empty first part adds a prefix, an empty second one
    /// removes it.
    pub renames: Vec<(String, String)>,
    /// Refuse an adapter that lacks tensors of modules which it should have ([`MergeInput::missing`]).
    pub strict: bool,
    /// The dtype (F32, F16, BF16) that the weights of a quantised base are written in; by default the one
    /// that they are made for ([`Quantised::dtype`](crate::quant::Quantised::dtype)).
    pub dtype: Option<Dtype>,
    /// The method by which the adapters' updates become one; without it they are added.
    pub method: Option<MergeMethod>,
}

/// How an output is written.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ExecOptions {
    /// What to do where the output exists. A directory is replaced only if it holds a model.
    pub existing: Existing,
    /// Sync every file before it gets its name, and the folder after it.
    pub durable: bool,
    /// Accept that not one element changes, instead of failing with [`Code::NothingChanged`].
    pub allow_unchanged: bool,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self {
            existing: Existing::Refuse,
            durable: true,
            allow_unchanged: false,
        }
    }
}

/// How a base is changed in place; always durably.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct InPlaceOptions {
    /// Accept that not one element changes, instead of failing with [`Code::NothingChanged`].
    pub allow_unchanged: bool,
}

/// What [`unmerge_with`](super::unmerge_with) accepts.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct UnmergeOptions {
    /// An undo file of version 1, which has no digest of what it says.
    pub undigested: bool,
}

/// How a caller runs, watches and stops a merge or a verification; by default on the processor,
/// unwatched.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Control<'a> {
    /// Where low-rank updates are computed; without it, on the processor. The bytes are the same.
    pub gpu: Option<&'a Gpu>,
    /// Counts bytes, and may stop the work at the next block. The bytes add up to
    /// [`MergePlan::bytes_out`](super::MergePlan::bytes_out) for [`execute`](super::execute()), to
    /// [`EachTotals::bytes_out`](super::EachTotals::bytes_out) for
    /// [`execute_each`](super::execute_each()), to twice the merged bytes for
    /// [`merge_in_place`](super::merge_in_place), to
    /// [`UnmergeReport::bytes`](super::UnmergeReport::bytes) for [`unmerge`](super::unmerge).
    pub progress: Progress<'a>,
}

impl<'a> Control<'a> {
    /// The same, on `gpu` where there is one.
    #[must_use]
    pub fn on(self, gpu: Option<&'a Gpu>) -> Self {
        Self { gpu, ..self }
    }

    /// Fails with [`Code::Interrupted`](crate::Code::Interrupted) where the caller wants an end.
    pub(crate) fn check(&self) -> Result<()> {
        self.progress.check()
    }

    /// Tells the caller of `bytes` more that are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.progress.count(bytes);
    }

    /// What computes, for reports.
    pub(crate) fn device(&self) -> String {
        self.gpu.map_or_else(|| "cpu".to_owned(), Gpu::label)
    }
}

impl<'a> From<Progress<'a>> for Control<'a> {
    /// On the processor.
    fn from(progress: Progress<'a>) -> Self {
        Self {
            gpu: None,
            progress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where reports and arguments call a policy by different names.
    #[test]
    fn names_of_policies() {
        for policy in TiedPolicy::ALL {
            assert_eq!(policy.to_string().parse().ok(), Some(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        for from in TokenizerFrom::ALL {
            assert_eq!(from.to_string().parse().ok(), Some(from));
        }
        let unknown = "split".parse::<TokenizerFrom>().unwrap_err();
        assert_eq!(unknown.code(), Code::Usage);
        let unknown = "split".parse::<TiedPolicy>().unwrap_err();
        assert_eq!(unknown.code(), Code::Usage);
    }
}
