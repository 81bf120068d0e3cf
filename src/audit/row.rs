//! One adapter of the fleet: what it is, what it takes, what of that is waste.

use serde::{Serialize, Serializer};

use super::facts::Facts;
use super::problem::Problem;
use super::scenario::Scenario;
use super::sum::add;
use crate::adapter::Method;

/// In which form an adapter is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// A PEFT directory, or what looks like one.
    Peft,
    /// An MLX adapter's folder.
    Mlx,
    /// A `.nemo` file.
    Nemo,
    /// A `.tl` file.
    Tl,
    /// An adapter in a store.
    Store,
}

impl Format {
    /// `peft`, `mlx`, `nemo`, `tl` or `store`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Peft => "peft",
            Format::Mlx => "mlx",
            Format::Nemo => "nemo",
            Format::Tl => "tl",
            Format::Store => "store",
        }
    }
}

/// What kind of adapter one is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// A method: PEFT's LoRA or VeRA, or that of a `.tl`.
    Method(Method),
    /// Another type of PEFT's, in lower case (`ia3`, …).
    Other(String),
}

impl Kind {
    /// The method's name, or the PEFT type in lower case.
    pub fn name(&self) -> &str {
        match self {
            Self::Method(method) => method.name(),
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for Kind {
    fn from(name: &str) -> Self {
        match name.parse() {
            Ok(method) => Self::Method(method),
            Err(_) => Self::Other(name.to_owned()),
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
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
#[non_exhaustive]
pub struct Row {
    /// Where it is, as reached from the path that was audited.
    pub path: String,
    /// In which form.
    pub format: Format,
    /// What kind of adapter it is.
    pub kind: Option<Kind>,
    /// Whose it is.
    pub user: Option<String>,
    /// What it is for.
    pub task: Option<String>,
    /// Name of the base model.
    pub base: Option<String>,
    /// How the base that it was trained over is quantised, as far as the base's name says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_kind: Option<&'static str>,
    /// How the base's weights are stored, where it is one of those given: `plain`, or how they are quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_stored: Option<String>,
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

impl Row {
    /// The row of an adapter of which nothing is known but where it is.
    pub fn new(path: impl Into<String>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            kind: None,
            user: None,
            task: None,
            base: None,
            base_kind: None,
            base_stored: None,
            base_fingerprint: None,
            rank: None,
            alpha: None,
            dtype: None,
            modules: None,
            layers: None,
            parameters: None,
            trained_parameters: None,
            files: 0,
            bytes: 0,
            disk_bytes: 0,
            linked_bytes: 0,
            adapter_bytes: 0,
            waste: Waste::default(),
            what_if: Vec::new(),
            error: None,
            facts: Facts::default(),
        }
    }
}
