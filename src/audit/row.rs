//! One adapter of the fleet: what it is, what it takes, what of that is waste.

use serde::Serialize;

use super::fitted::Fit;
use super::whatif::Scenario;
use crate::digest::Digest;
use crate::error::Error;

/// Adds, and stays at the end of the type: sparse files may claim any length.
pub(super) fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// In which form an adapter is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Form {
    /// A PEFT directory, or what looks like one.
    Peft,
    /// A `.tl` file.
    Tl,
    /// An adapter in a store.
    Store,
}

impl Form {
    /// `peft`, `tl` or `store`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Peft => "peft",
            Form::Tl => "tl",
            Form::Store => "store",
        }
    }
}

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The stable code, such as `TL0102`.
    pub code: &'static str,
    /// One line: what is wrong, and in which file.
    pub message: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code().as_str(),
            message: error.to_string(),
        }
    }
}

/// Bytes that could go, by reason. The reasons are looked at in the order of the fields, and a
/// byte counts for the first that fits: the fields add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Waste {
    /// Whole models in an adapter's folder (`model*.safetensors`, `*.gguf`, …).
    pub full_weights: u64,
    /// What training left (`optimizer.pt`, `rng_state*.pth`, `global_step*/`, …).
    pub optimizer: u64,
    /// Frozen random tensors that are stored though their seed is stored too.
    pub projections: u64,
    /// Tensors equal, byte for byte, to one counted before, in this or another adapter.
    pub duplicates: u64,
    /// What remains of floats beyond 16 bits a number.
    pub dtype: u64,
    /// Of `projections`, what rests on the presumption that they are what their seed makes.
    pub presumed: u64,
    /// Of `projections`, copies beyond the first of an equal seed, shape and dtype.
    pub projection_copies: u64,
}

impl Waste {
    /// What can go without changing a number: all but `dtype`.
    pub fn lossless(&self) -> u64 {
        [self.optimizer, self.projections, self.duplicates]
            .into_iter()
            .fold(self.full_weights, u64::saturating_add)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.lossless().saturating_add(self.dtype)
    }

    /// Adds another row's.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.full_weights, other.full_weights);
        add(&mut self.optimizer, other.optimizer);
        add(&mut self.projections, other.projections);
        add(&mut self.duplicates, other.duplicates);
        add(&mut self.dtype, other.dtype);
        add(&mut self.presumed, other.presumed);
        add(&mut self.projection_copies, other.projection_copies);
    }
}

/// One adapter. What is not known is `None`; a broken adapter has an `error` and its bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Where it is, as reached from the path that was audited.
    pub path: String,
    /// In which form.
    pub format: Form,
    /// The PEFT type in lower case (`lora`, `vera`, `ia3`, …), or the method of a `.tl`.
    pub kind: Option<String>,
    /// Whose it is.
    pub user: Option<String>,
    /// What it is for.
    pub task: Option<String>,
    /// Name of the base model.
    pub base: Option<String>,
    /// Fingerprint of the base's weights (`.tl` only).
    pub base_fingerprint: Option<String>,
    /// Largest rank.
    pub rank: Option<u64>,
    /// Alpha of the config, or of the first tie group.
    pub alpha: Option<f64>,
    /// Element types, the one with most bytes first: `F32`, `F32+BF16`.
    pub dtype: Option<String>,
    /// Adapted modules.
    pub modules: Option<u64>,
    /// Layers with an adapted module.
    pub layers: Option<u64>,
    /// Numbers stored.
    pub parameters: Option<u64>,
    /// Of those, and of what is left out, the numbers that were trained.
    pub trained_parameters: Option<u64>,
    /// Files that belong to it.
    pub files: u64,
    /// Bytes of these files (`st_size`), each inode once in the whole audit.
    pub bytes: u64,
    /// What they take on the disk (`st_blocks` × 512).
    pub disk_bytes: u64,
    /// Bytes of its files that are counted elsewhere, being links to the same inode.
    pub linked_bytes: u64,
    /// Bytes of the file with the weights.
    pub adapter_bytes: u64,
    /// What of `bytes` could go.
    pub waste: Waste,
    /// What the adapter would take in other forms.
    pub what_if: Vec<Scenario>,
    /// Why it could not be read, or not whole.
    pub error: Option<Problem>,
    /// What the waste and the scenarios are computed from.
    #[serde(skip)]
    pub facts: Facts,
}

/// One tie group that a retrained adapter would have: a target module over its layers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Module path with `{}` for the layer's number.
    pub module: String,
    /// Input features.
    pub input: u64,
    /// Output features.
    pub out: u64,
    /// Largest rank over the layers.
    pub rank: u64,
    /// Layers that have it.
    pub layers: u64,
}

/// A stored tensor whose digest is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// SHA-256 of its raw bytes.
    pub digest: Digest,
    /// Bytes as stored.
    pub bytes: u64,
    /// What a 16-bit form would save of them.
    pub wide: u64,
}

/// A frozen random tensor, stored beside the seed that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// What it is by its seed: equal recipes are presumed to give equal tensors.
    pub recipe: Recipe,
    /// As a stored tensor; the digest is there where its bytes were read or are vouched for.
    pub digest: Option<Digest>,
    /// Bytes as stored.
    pub bytes: u64,
    /// What a 16-bit form would save of them.
    pub wide: u64,
}

/// What makes a projection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// PEFT's VeRA pair: both come from one generator, A first.
    Vera {
        /// `projection_prng_key`.
        key: u64,
        /// Rank.
        rank: usize,
        /// Input features of A.
        input: usize,
        /// Output features of B.
        out: usize,
        /// Element type by name.
        dtype: &'static str,
        /// Whether this is B.
        is_b: bool,
    },
    /// A seeded tensor of a `.tl`, whose digest pins what the seed makes.
    Seeded(Digest),
}

/// What the waste and the scenarios of a row are computed from. The default is a row of which
/// nothing is known but its bytes.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whole models among its files, in bytes.
    pub full_weights: u64,
    /// Leftovers of training among its files, in bytes.
    pub optimizer: u64,
    /// Bytes of files that would stay beside a new adapter: not weights, config or waste.
    pub kept: u64,
    /// Tie groups of a LoRA; empty for all else.
    pub targets: Vec<Target>,
    /// Bits of a LoRA factor's number.
    pub bits: u64,
    /// Bytes of tensors in a LoRA's weights that are no factors (biases, replaced modules).
    pub extra_bytes: u64,
    /// What a 16-bit form would save of stored floats, projections left aside.
    pub wide: u64,
    /// Frozen random tensors stored beside their seed.
    pub projections: Vec<Projection>,
    /// All other stored tensors, where digests are known.
    pub pieces: Vec<Piece>,
    /// Bytes of the weights' tensors, and what they take packed with zstd, where measured.
    pub packed: Option<(u64, u64)>,
    /// The closest tied adapters, where they were looked for.
    pub fits: Vec<Fit>,
    /// Why none could be found.
    pub unfitted: Option<Problem>,
}
