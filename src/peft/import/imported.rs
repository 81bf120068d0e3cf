//! What an import is told, and what it gives.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::base::shapes::BaseShapes;
use crate::digest::Digest;
use crate::peft::projection::Fma;
use crate::tensor::{Dtype, Tensor};

/// What kind of adapter was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftKind {
    /// LoRA, with or without rsLoRA and patterns.
    Lora,
    /// LoRA with magnitudes.
    Dora,
    /// VeRA with its projections.
    Vera,
    /// VeRA without projections, which were regenerated from the key.
    VeraRegenerated,
}

/// An adapter read from a PEFT directory.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// Groups of one layer each; nothing is tied yet but VeRA's shared pair.
    pub adapter: Adapter,
    /// What it was.
    pub kind: PeftKind,
    /// DoRA's magnitudes by module path; (out) each.
    pub magnitudes: BTreeMap<String, Tensor>,
    /// What a careful user should know: assumptions made, keys without effect.
    pub notes: Vec<String>,
    /// Modules that config and base say are adapted, and that have no tensors in the file; empty
    /// without the base.
    pub missing: Vec<String>,
    /// Bytes of the adapter's files.
    pub bytes: u64,
    /// SHA-256 over config and weights.
    pub identity: Digest,
}

/// How to read.
#[derive(Default)]
#[non_exhaustive]
pub struct ImportOptions<'a> {
    /// The base model, where it is at hand.
    pub base: Option<&'a dyn BaseShapes>,
    /// How torch rounded when it made VeRA's projections.
    pub fma: Fma,
    /// The dtype that VeRA's regenerated projections were used in: that of the base.
    pub projection_dtype: Option<Dtype>,
}
