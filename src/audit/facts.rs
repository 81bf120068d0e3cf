//! What of an adapter its waste and its scenarios are computed from.

use super::problem::Problem;
use super::scenario::Form;
use crate::digest::Digest;
use crate::tensor::Dtype;

/// One tie group that a retrained adapter would have: a target module over its layers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetModule {
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
pub struct HashedTensor {
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
        /// Element type.
        dtype: Dtype,
        /// Whether this is B.
        is_b: bool,
    },
    /// A seeded tensor of a `.tl`, whose digest pins what the seed makes.
    Seeded(Digest),
}

/// What the waste and the scenarios of a row are computed from. The default is a row of which
/// nothing is known but its bytes.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Facts {
    /// Whole models among its files, in bytes.
    pub full_weights: u64,
    /// Leftovers of training among its files, in bytes.
    pub optimizer: u64,
    /// Bytes of files that would stay beside a new adapter: not weights, config or waste.
    pub kept: u64,
    /// Tie groups of a LoRA; empty for all else.
    pub targets: Vec<TargetModule>,
    /// Bits of a LoRA factor's number.
    pub bits: u64,
    /// Bytes of tensors in a LoRA's weights that are no factors (biases, replaced modules).
    pub extra_bytes: u64,
    /// What a 16-bit form would save of stored floats, projections left aside.
    pub wide: u64,
    /// Frozen random tensors stored beside their seed.
    pub projections: Vec<Projection>,
    /// All other stored tensors, where digests are known.
    pub hashed: Vec<HashedTensor>,
    /// Bytes of the weights' tensors, and what they take packed with zstd, where measured.
    pub packed: Option<(u64, u64)>,
    /// Whether other forms were made of it in memory, or it could have none.
    pub is_measured: bool,
    /// Other forms that were made of it in memory.
    pub measured: Vec<Measured>,
    /// The closest tied adapters, where they were looked for.
    pub fits: Vec<Fit>,
    /// Why some could not be made.
    pub unfitted: Option<Problem>,
}

/// A form that was made in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Which.
    pub form: Form,
    /// Bytes of the `.tl`, to the byte.
    pub bytes: u64,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules that it changes.
    pub error: f64,
    /// Bytes that no code of Gaussian components needs less than at this error; of coded forms.
    pub bound: Option<u64>,
}

/// A measured conversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Whether query, key and value shared A and u.
    pub joint: bool,
    /// Bytes of the `.tl`, to the byte.
    pub bytes: u64,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules that were fitted.
    pub error: f64,
}
