//! The parts of a manifest: one struct for each kind of JSON object, its fields in canonical order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hasher, parse_hex};
use super::encode::check_finite;
use super::manifest::MAX_TENSOR_BYTES;
use super::seeded::{GENERATOR, MAX_SEEDED_ELEMENTS, seeded_tensor};
use crate::adapter::{
    BaseModel, Extra, ExtraRole, ModuleKind, Part, Scaling, ScalingRule, Seed, Target, TieGroup,
};
use crate::error::{Code, Error, Result};
use crate::tensor::{Bytes, Dtype, Tensor, byte_len};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Base {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestExtra {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alpha: Option<Alpha>,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rank: Option<usize>,
    pub(super) role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scaling: Option<Rule>,
    pub(super) tensor: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    AddBias,
    BaseLayer,
    Bias,
    Replace,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
pub(super) struct Group {
    pub(super) A: String,
    pub(super) B: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) C: Option<String>,
    pub(super) alpha: Alpha,
    pub(super) r#in: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) layers: Option<Vec<u32>>,
    pub(super) rank: usize,
    pub(super) scaling: Rule,
    pub(super) targets: Vec<ManifestTarget>,
    pub(super) trained: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) u: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) v: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestTarget {
    #[serde(default, skip_serializing_if = "Kind::is_linear")]
    pub(super) kind: Kind,
    pub(super) module: String,
    pub(super) out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Linear,
    Conv1d,
    Embedding,
}

impl Kind {
    fn is_linear(&self) -> bool {
        *self == Kind::Linear
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Rule {
    #[serde(rename = "alpha/rank")]
    AlphaOverRank,
    #[serde(rename = "alpha/sqrt(rank)")]
    AlphaOverSqrtRank,
}

/// alpha: a JSON integer where it is one, else the bits of the f64 as `0x` and 16 hex digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Alpha {
    Integer(u64),
    Bits(String),
}

/// A tensor of a manifest: what its raw bytes are, wherever they lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTensor {
    pub(super) dtype: String,
    /// The name of the tensor with the scales of an I8 one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scales: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<ManifestSeed>,
    /// SHA-256 of the raw little-endian bytes.
    pub sha256: Digest,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestSeed {
    pub(super) generator: String,
    pub(super) key: String,
    pub(super) step: String,
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::ManifestInvalid, message)
}

impl Base {
    pub(super) fn of(base: &BaseModel) -> Self {
        Self {
            name: base.name.clone(),
            revision: base.revision.clone(),
            weights: base.weights.as_ref().and_then(|w| w.parse().ok()),
        }
    }

    pub(super) fn to_model(&self) -> BaseModel {
        BaseModel {
            name: self.name.clone(),
            revision: self.revision.clone(),
            weights: self.weights.map(|w| w.hex()),
        }
    }
}

impl Group {
    pub(super) fn of(group: &TieGroup, names: &BTreeMap<Part, String>) -> Self {
        let name = |part| names.get(&part).cloned();
        Self {
            A: name(Part::A).unwrap_or_default(),
            B: name(Part::B).unwrap_or_default(),
            C: name(Part::C),
            alpha: Alpha::of(group.scaling.alpha),
            r#in: group.in_features,
            layers: group.layers.clone(),
            rank: group.rank,
            scaling: Rule::of(group.scaling.rule),
            targets: group.targets.iter().map(ManifestTarget::of).collect(),
            trained: group
                .factors()
                .filter(|(_, f)| f.trained)
                .map(|(p, _)| p.name().to_owned())
                .collect(),
            u: name(Part::U),
            v: name(Part::V),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (Part, &String)> {
        let core = self.C.iter().map(|n| (Part::C, n));
        let u = self.u.iter().map(|n| (Part::U, n));
        let v = self.v.iter().map(|n| (Part::V, n));
        [(Part::A, &self.A), (Part::B, &self.B)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    pub(super) fn check_trained(&self) -> Result<()> {
        let present: Vec<&str> = self.names().map(|(p, _)| p.name()).collect();
        let mut places = self
            .trained
            .iter()
            .map(|t| present.iter().position(|p| p == t));
        let mut last = None;
        if places.all(|place| {
            let ascends = place.is_some() && place > last;
            last = place;
            ascends
        }) {
            return Ok(());
        }
        Err(invalid(format!(
            "`trained` {:?} is not a sub-list of {present:?}",
            self.trained
        )))
    }
}

impl ManifestTarget {
    pub(super) fn of(target: &Target) -> Self {
        let kind = match target.kind {
            ModuleKind::Linear => Kind::Linear,
            ModuleKind::Conv1d => Kind::Conv1d,
            ModuleKind::Embedding => Kind::Embedding,
        };
        Self {
            kind,
            module: target.module.clone(),
            out: target.out,
        }
    }

    pub(super) fn to_target(&self) -> Target {
        let kind = match self.kind {
            Kind::Linear => ModuleKind::Linear,
            Kind::Conv1d => ModuleKind::Conv1d,
            Kind::Embedding => ModuleKind::Embedding,
        };
        Target {
            module: self.module.clone(),
            out: self.out,
            kind,
        }
    }
}

impl ManifestExtra {
    pub(super) fn of(extra: &Extra, tensor: &str) -> Self {
        let (role, scaled) = match extra.role {
            ExtraRole::Replace => (Role::Replace, None),
            ExtraRole::Bias => (Role::Bias, None),
            ExtraRole::BaseLayer => (Role::BaseLayer, None),
            ExtraRole::AddBias(scaling, rank) => (Role::AddBias, Some((scaling, rank))),
        };
        Self {
            alpha: scaled.map(|(s, _)| Alpha::of(s.alpha)),
            name: extra.name.clone(),
            rank: scaled.map(|(_, rank)| rank),
            role,
            scaling: scaled.map(|(s, _)| Rule::of(s.rule)),
            tensor: tensor.to_owned(),
        }
    }

    pub(super) fn role(&self) -> Result<ExtraRole> {
        match (self.role, &self.alpha, self.rank, self.scaling) {
            (Role::Replace, None, None, None) => Ok(ExtraRole::Replace),
            (Role::Bias, None, None, None) => Ok(ExtraRole::Bias),
            (Role::BaseLayer, None, None, None) => Ok(ExtraRole::BaseLayer),
            (Role::AddBias, Some(alpha), Some(rank), Some(rule)) if rank > 0 => {
                let scaling = scaling(alpha, rule)?;
                scaling.validate(rank)?;
                Ok(ExtraRole::AddBias(scaling, rank))
            }
            _ => Err(invalid(format!(
                "extra `{}`: alpha, rank and scaling go with add_bias, and only with it",
                self.name
            ))),
        }
    }
}

impl Rule {
    pub(super) fn of(rule: ScalingRule) -> Self {
        match rule {
            ScalingRule::AlphaOverRank => Self::AlphaOverRank,
            ScalingRule::AlphaOverSqrtRank => Self::AlphaOverSqrtRank,
        }
    }
}

pub(super) fn scaling(alpha: &Alpha, rule: Rule) -> Result<Scaling> {
    let rule = match rule {
        Rule::AlphaOverRank => ScalingRule::AlphaOverRank,
        Rule::AlphaOverSqrtRank => ScalingRule::AlphaOverSqrtRank,
    };
    Ok(Scaling {
        alpha: alpha.value()?,
        rule,
    })
}

impl Alpha {
    const MAX_INTEGER: u64 = (1 << 53) - 1;

    pub(super) fn of(alpha: f64) -> Self {
        if alpha >= 0.0 && alpha.fract() == 0.0 && alpha <= Self::MAX_INTEGER as f64 {
            return Self::Integer(alpha as u64);
        }
        Self::Bits(format!("0x{:016x}", alpha.to_bits()))
    }

    pub(super) fn value(&self) -> Result<f64> {
        let value = match self {
            Self::Integer(n) => *n as f64,
            Self::Bits(text) => text
                .strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .map_or(f64::NAN, f64::from_bits),
        };
        // One value, one spelling: an integer must not hide in bits, nor bits in upper case.
        if value.is_nan() || Self::of(value) != *self {
            return Err(invalid(format!(
                "alpha {self:?} is not in its canonical form"
            )));
        }
        Ok(value)
    }
}

impl ManifestTensor {
    pub(super) fn of(
        tensor: &Tensor,
        sha256: Digest,
        scales: Option<String>,
        seed: Option<&Seed>,
    ) -> Self {
        let seed = seed.map(|seed| ManifestSeed {
            generator: GENERATOR.to_owned(),
            key: seed.key.iter().map(|b| format!("{b:02x}")).collect(),
            step: format!("{:08x}", seed.step.to_bits()),
        });
        Self {
            dtype: tensor.dtype().as_str().to_owned(),
            scales,
            seed,
            sha256,
            shape: tensor.shape().to_vec(),
        }
    }

    /// Element type.
    ///
    /// # Errors
    /// [`Code::UnknownDtype`], [`Code::DtypeNotAllowed`]; [`Code::ManifestInvalid`] for scales of
    /// another tensor than an I8 one.
    pub fn dtype(&self) -> Result<Dtype> {
        let dtype: Dtype = self.dtype.parse()?;
        match (dtype, &self.scales) {
            (Dtype::I8, Some(_)) => Ok(dtype),
            (_, None) if dtype.is_float() => Ok(dtype),
            (_, Some(_)) if dtype.is_float() => Err(invalid(format!("{dtype} with `scales`"))),
            _ => Err(crate::tensor::not_float(dtype)),
        }
    }

    /// Bytes of the raw tensor.
    ///
    /// # Errors
    /// As [`dtype`](Self::dtype); [`Code::ShapeOverflow`]; [`Code::ManifestLimit`].
    pub fn byte_len(&self) -> Result<u64> {
        let len = byte_len(self.dtype()?, &self.shape)?;
        if len > MAX_TENSOR_BYTES {
            let message = format!("{len} bytes, the limit for one tensor is {MAX_TENSOR_BYTES}");
            return Err(Error::new(Code::ManifestLimit, message));
        }
        Ok(len)
    }

    /// The recipe, where the tensor is seeded.
    ///
    /// # Errors
    /// [`Code::SeedInvalid`].
    pub fn seed(&self) -> Result<Option<Seed>> {
        self.seed.as_ref().map(ManifestSeed::parse).transpose()
    }

    /// The tensor that `bytes` are, if they are this one's.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`], [`Code::SizeMismatch`], [`Code::NonFinite`].
    pub(super) fn verified(&self, bytes: Bytes) -> Result<Tensor> {
        self.compare(Digest::of(&bytes))?;
        let tensor = Tensor::new(self.dtype()?, self.shape.clone(), bytes)?;
        check_finite(&tensor)?;
        Ok(tensor)
    }

    /// Refuses bytes of another digest than this one's.
    pub(super) fn compare(&self, actual: Digest) -> Result<()> {
        if actual == self.sha256 {
            return Ok(());
        }
        let message = format!(
            "the bytes have {actual}, the manifest says sha256:{}",
            self.sha256.hex()
        );
        Err(Error::new(Code::DigestMismatch, message)
            .hint("the file or blob is damaged; get it again"))
    }

    /// Makes the tensor from its seed, where it has one, piece by piece, and compares the digests.
    /// Whether the bytes are stored or left out, a recipe that makes others describes no adapter (spec §7).
    ///
    /// # Errors
    /// [`Code::SeedInvalid`] where the seed makes other values.
    pub fn check_seed(&self) -> Result<()> {
        if self.seed.is_none() {
            return Ok(());
        }
        let mut hasher = Hasher::default();
        self.made(&mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        if hasher.finish() != self.sha256 {
            let message = "its seed makes other values than its digest is of";
            return Err(Error::new(Code::SeedInvalid, message));
        }
        Ok(())
    }

    /// The bytes that the seed makes, where there is one.
    pub(super) fn regenerate(&self) -> Result<Option<Bytes>> {
        let Some(seed) = self.seed()? else {
            return Ok(None);
        };
        let made = seeded_tensor(&seed, self.dtype()?, &self.shape)?;
        Ok(Some(made.data().clone()))
    }

    pub(super) fn shape_only(&self) -> Result<Tensor> {
        self.byte_len()?;
        if self.shape.contains(&0) {
            return Err(invalid("a tensor without elements"));
        }
        if self.seed()?.is_some() && self.scales.is_some() {
            let message = "seeds make floats, and this tensor is I8";
            return Err(Error::new(Code::SeedInvalid, message));
        }
        if self.seed()?.is_some() && self.shape.iter().product::<usize>() > MAX_SEEDED_ELEMENTS {
            let message =
                format!("more seeded elements than the {MAX_SEEDED_ELEMENTS} of the limit");
            return Err(Error::new(Code::SeedInvalid, message));
        }
        Tensor::shape_only(self.dtype()?, self.shape.clone())
    }
}

impl ManifestSeed {
    pub(super) fn parse(&self) -> Result<Seed> {
        let bad = |m: String| Error::new(Code::SeedInvalid, m);
        if self.generator != GENERATOR {
            return Err(bad(format!("unknown generator `{}`", self.generator)));
        }
        let key = parse_hex(&self.key)
            .ok_or_else(|| bad("the key is not 64 lower-case hex digits".into()))?;
        let bits = u32::from_str_radix(&self.step, 16).ok();
        match bits
            .filter(|b| format!("{b:08x}") == self.step)
            .map(f32::from_bits)
        {
            Some(step) if step > 0.0 && (step * (1 << 23) as f32).is_finite() => {
                Ok(Seed { key, step })
            }
            _ => Err(bad(format!(
                "step `{}` is not 8 hex digits of a usable positive f32",
                self.step
            ))),
        }
    }
}
