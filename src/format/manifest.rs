//! The manifest (spec §5): JSON of fixed shape in canonical form, whose SHA-256 is the root.
//!
//! Canonical form is RFC 8785 restricted to what the schema needs: no floats, ASCII keys. The
//! structs below list their fields in that order, so that serialising is canonicalising; reading
//! serialises again and compares.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, parse_hex};
use super::seeded::{GENERATOR, MAX_SEEDED_ELEMENTS};
use crate::adapter::{
    Adapter, BaseModel, Extra, ExtraRole, Factor, ModuleKind, Part, Scaling, ScalingRule, Seed,
    Target, TieGroup,
};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor, byte_len};

/// The version of the format.
pub const VERSION: u32 = 1;
/// The features that a manifest may require and this build knows.
pub const FEATURES: &[&str] = &[];
/// Longest manifest.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Most bytes of one tensor.
pub const MAX_TENSOR_BYTES: u64 = 4 << 30;
const MAX_TENSORS: usize = 65_536;
const MAX_PROVENANCE: usize = 1024;
const MAX_TEXT_BYTES: usize = 64 << 10;

/// A manifest as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<Base>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) extras: Vec<ManifestExtra>,
    pub(super) groups: Vec<Group>,
    pub(super) method: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) provenance: BTreeMap<String, String>,
    pub(super) requires: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<String>,
    pub(super) tensors: BTreeMap<String, ManifestTensor>,
    pub(super) tl: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Base {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestExtra {
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<Alpha>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<Rule>,
    tensor: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    AddBias,
    BaseLayer,
    Bias,
    Replace,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
pub(super) struct Group {
    A: String,
    B: String,
    alpha: Alpha,
    r#in: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<u32>>,
    rank: usize,
    scaling: Rule,
    targets: Vec<ManifestTarget>,
    trained: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    u: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestTarget {
    #[serde(default, skip_serializing_if = "Kind::is_linear")]
    kind: Kind,
    module: String,
    out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
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
enum Rule {
    #[serde(rename = "alpha/rank")]
    AlphaOverRank,
    #[serde(rename = "alpha/sqrt(rank)")]
    AlphaOverSqrtRank,
}

/// alpha: a JSON integer where it is one, else the bits of the f64 as `0x` and 16 hex digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Alpha {
    Integer(u64),
    Bits(String),
}

/// A tensor of a manifest: what its raw bytes are, wherever they lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTensor {
    pub(super) dtype: String,
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
    generator: String,
    key: String,
    step: String,
}

/// What every version of the manifest has; read first, so that a newer one is refused by name.
#[derive(Deserialize)]
struct Preamble {
    tl: u32,
    #[serde(default)]
    requires: Vec<String>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::ManifestInvalid, message)
}

impl Manifest {
    /// Parses canonical manifest bytes and checks every rule that needs no tensor bytes.
    ///
    /// # Errors
    /// The `TL02xx` codes of spec §17.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            let message = format!(
                "the manifest has {} bytes, the limit is {MAX_MANIFEST_BYTES}",
                bytes.len()
            );
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let preamble: Preamble =
            serde_json::from_slice(bytes).map_err(|e| invalid(format!("manifest: {e}")))?;
        if preamble.tl != VERSION {
            let message = format!(
                "format version {}, this build reads version {VERSION}",
                preamble.tl
            );
            return Err(Error::new(Code::TlVersion, message).hint("use a newer tlkit"));
        }
        if let Some(unknown) = preamble
            .requires
            .iter()
            .find(|f| !FEATURES.contains(&f.as_str()))
        {
            let message =
                format!("requires the feature `{unknown}`, which this build does not know");
            return Err(Error::new(Code::UnknownFeature, message).hint("use a newer tlkit"));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| invalid(format!("manifest: {e}")))?;
        if manifest.to_bytes() != bytes {
            return Err(Error::new(
                Code::ManifestNotCanonical,
                "the manifest is not in canonical form (key order, spaces, escapes or duplicate keys)",
            ));
        }
        manifest.adapter()?;
        Ok(manifest)
    }

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, integers and maps with string keys always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The root: SHA-256 of the canonical bytes.
    pub fn root(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, ManifestTensor> {
        &self.tensors
    }

    /// The adapter that this manifest describes, its tensors without bytes.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), for the rules of structure.
    pub fn adapter(&self) -> Result<Adapter> {
        self.check_limits()?;
        let mut hollow = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            hollow.insert(name.as_str(), tensor.hollow().map_err(|e| e.tensor(name))?);
        }
        let adapter = self.assemble(&hollow)?;
        adapter.validate()?;
        self.check_canonical_structure(&adapter)?;
        Ok(adapter)
    }

    /// The adapter over the given tensors, which have the manifest's dtypes and shapes.
    pub(super) fn assemble(&self, tensors: &BTreeMap<&str, Tensor>) -> Result<Adapter> {
        let get = |name: &str| {
            tensors.get(name).cloned().ok_or_else(|| {
                Error::new(
                    Code::TensorUndeclared,
                    "used, and not described under `tensors`",
                )
                .tensor(name)
            })
        };
        let factor = |name: &String, part: Part, trained: &[String]| -> Result<Factor> {
            let tensor = get(name)?;
            let seed = self.tensors.get(name).and_then(|t| t.seed.as_ref());
            let seed = seed
                .map(ManifestSeed::parse)
                .transpose()
                .map_err(|e| e.tensor(name))?;
            Ok(Factor {
                tensor,
                trained: trained.iter().any(|t| t == part.name()),
                seed,
            })
        };
        let mut adapter = Adapter {
            base: self.base.as_ref().map(Base::to_model),
            task: self.task.clone(),
            provenance: self.provenance.clone(),
            ..Adapter::default()
        };
        for group in &self.groups {
            let t = &group.trained;
            adapter.groups.push(TieGroup {
                layers: group.layers.clone(),
                rank: group.rank,
                in_features: group.r#in,
                scaling: scaling(&group.alpha, group.scaling)?,
                a: factor(&group.A, Part::A, t)?,
                b: factor(&group.B, Part::B, t)?,
                u: group
                    .u
                    .as_ref()
                    .map(|n| factor(n, Part::U, t))
                    .transpose()?,
                v: group
                    .v
                    .as_ref()
                    .map(|n| factor(n, Part::V, t))
                    .transpose()?,
                targets: group
                    .targets
                    .iter()
                    .map(ManifestTarget::to_target)
                    .collect(),
            });
        }
        for extra in &self.extras {
            let role = extra.role()?;
            adapter.extras.push(Extra {
                name: extra.name.clone(),
                role,
                tensor: get(&extra.tensor)?,
            });
        }
        Ok(adapter)
    }

    /// The manifest of an adapter whose distinct tensors have these names; see [`super::encode`].
    pub(super) fn describe(
        adapter: &Adapter,
        names: &Names,
        tensors: BTreeMap<String, ManifestTensor>,
    ) -> Self {
        let groups = adapter.groups.iter().zip(&names.groups);
        let extras = adapter.extras.iter().zip(&names.extras);
        Self {
            base: adapter
                .base
                .as_ref()
                .map(Base::of)
                .filter(|b| *b != Base::default()),
            extras: extras
                .map(|(extra, name)| ManifestExtra::of(extra, name))
                .collect(),
            groups: groups
                .map(|(group, names)| Group::of(group, names))
                .collect(),
            method: adapter.method().name().to_owned(),
            provenance: adapter.provenance.clone(),
            requires: Vec::new(),
            task: adapter.task.clone(),
            tensors,
            tl: VERSION,
        }
    }

    fn check_limits(&self) -> Result<()> {
        let limit = |what: &str, n: usize, max: usize| {
            Err(Error::new(
                Code::ManifestLimit,
                format!("{n} {what}, the limit is {max}"),
            ))
        };
        if self.tensors.len() > MAX_TENSORS {
            return limit("tensors", self.tensors.len(), MAX_TENSORS);
        }
        if self.provenance.len() > MAX_PROVENANCE {
            return limit("provenance entries", self.provenance.len(), MAX_PROVENANCE);
        }
        let base = self
            .base
            .iter()
            .flat_map(|b| b.name.iter().chain(&b.revision));
        let texts = self
            .provenance
            .iter()
            .flat_map(|(k, v)| [k, v])
            .chain(base)
            .chain(&self.task);
        match texts.map(String::len).max() {
            Some(n) if n > MAX_TEXT_BYTES => limit("bytes in one text", n, MAX_TEXT_BYTES),
            _ => Ok(()),
        }
    }

    /// The rules that make the manifest of an adapter unique: order, names, no double, no unused.
    fn check_canonical_structure(&self, adapter: &Adapter) -> Result<()> {
        let not_canonical = |m: String| Err(Error::new(Code::ManifestNotCanonical, m));
        // Validation refused equal ones, so ascending is the one order.
        let groups_ascend = adapter.groups.is_sorted_by(|a, b| a.order(b).is_lt());
        if !groups_ascend || !adapter.extras.is_sorted_by_key(|e| &e.name) {
            return not_canonical("groups or extras are not in canonical order".into());
        }
        if adapter.method().name() != self.method {
            return not_canonical(format!(
                "method `{}`, and the groups are those of `{}`",
                self.method,
                adapter.method()
            ));
        }
        if self.base == Some(Base::default()) {
            return not_canonical("`base` says nothing, and is there".into());
        }
        let factors = self.groups.iter().flat_map(Group::names);
        let factors: BTreeSet<&String> = factors.map(|(_, name)| name).collect();
        let seeded = self.tensors.iter().filter(|(_, t)| t.seed.is_some());
        if let Some((name, _)) = seeded.into_iter().find(|(n, _)| !factors.contains(n)) {
            return not_canonical(format!("tensor `{name}` has a seed, and is no factor"));
        }
        let mut seen = BTreeSet::new();
        let mut used = |name: &str, own: String| -> Result<()> {
            if seen.contains(name) || name == own {
                seen.insert(name.to_owned());
                return Ok(());
            }
            not_canonical(format!(
                "tensor `{name}` is first used where its name would be `{own}`"
            ))
        };
        for (i, group) in self.groups.iter().enumerate() {
            group.check_trained()?;
            for (part, name) in group.names() {
                used(name, format!("g{i}.{}", part.name()))?;
            }
        }
        for (i, extra) in self.extras.iter().enumerate() {
            used(&extra.tensor, format!("x{i}"))?;
        }
        if let Some(unused) = self.tensors.keys().find(|n| !seen.contains(*n)) {
            return Err(Error::new(
                Code::TensorUnused,
                "described, and used by no group or extra",
            )
            .tensor(unused));
        }
        let mut contents = BTreeSet::new();
        for (name, t) in &self.tensors {
            if !contents.insert((&t.dtype, &t.shape, t.sha256)) {
                return not_canonical(format!("tensor `{name}` has the content of another one"));
            }
        }
        Ok(())
    }
}

/// The names of an adapter's tensors: of each group's A, B, u, v, and of the extras.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) groups: Vec<BTreeMap<Part, String>>,
    pub(super) extras: Vec<String>,
}

impl Base {
    fn of(base: &BaseModel) -> Self {
        Self {
            name: base.name.clone(),
            revision: base.revision.clone(),
            weights: base.weights.as_ref().and_then(|w| w.parse().ok()),
        }
    }

    fn to_model(&self) -> BaseModel {
        BaseModel {
            name: self.name.clone(),
            revision: self.revision.clone(),
            weights: self.weights.map(|w| w.hex()),
        }
    }
}

impl Group {
    fn of(group: &TieGroup, names: &BTreeMap<Part, String>) -> Self {
        let name = |part| names.get(&part).cloned();
        Self {
            A: name(Part::A).unwrap_or_default(),
            B: name(Part::B).unwrap_or_default(),
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

    fn names(&self) -> impl Iterator<Item = (Part, &String)> {
        let u = self.u.iter().map(|n| (Part::U, n));
        let v = self.v.iter().map(|n| (Part::V, n));
        [(Part::A, &self.A), (Part::B, &self.B)]
            .into_iter()
            .chain(u)
            .chain(v)
    }

    fn check_trained(&self) -> Result<()> {
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
    fn of(target: &Target) -> Self {
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

    fn to_target(&self) -> Target {
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
    fn of(extra: &Extra, tensor: &str) -> Self {
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

    fn role(&self) -> Result<ExtraRole> {
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
    fn of(rule: ScalingRule) -> Self {
        match rule {
            ScalingRule::AlphaOverRank => Self::AlphaOverRank,
            ScalingRule::AlphaOverSqrtRank => Self::AlphaOverSqrtRank,
        }
    }
}

fn scaling(alpha: &Alpha, rule: Rule) -> Result<Scaling> {
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

    fn of(alpha: f64) -> Self {
        if alpha >= 0.0 && alpha.fract() == 0.0 && alpha <= Self::MAX_INTEGER as f64 {
            return Self::Integer(alpha as u64);
        }
        Self::Bits(format!("0x{:016x}", alpha.to_bits()))
    }

    fn value(&self) -> Result<f64> {
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
    pub(super) fn of(tensor: &Tensor, sha256: Digest, seed: Option<&Seed>) -> Self {
        let seed = seed.map(|seed| ManifestSeed {
            generator: GENERATOR.to_owned(),
            key: seed.key.iter().map(|b| format!("{b:02x}")).collect(),
            step: format!("{:08x}", seed.step.to_bits()),
        });
        Self {
            dtype: tensor.dtype().as_str().to_owned(),
            seed,
            sha256,
            shape: tensor.shape().to_vec(),
        }
    }

    /// Element type.
    ///
    /// # Errors
    /// [`Code::UnknownDtype`], [`Code::DtypeNotAllowed`].
    pub fn dtype(&self) -> Result<Dtype> {
        let dtype: Dtype = self.dtype.parse()?;
        if dtype.is_float() {
            Ok(dtype)
        } else {
            Err(crate::tensor::not_float(dtype))
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

    fn hollow(&self) -> Result<Tensor> {
        self.byte_len()?;
        if self.shape.contains(&0) {
            return Err(invalid("a tensor without elements"));
        }
        if self.seed()?.is_some() && self.shape.iter().product::<usize>() > MAX_SEEDED_ELEMENTS {
            let message =
                format!("more seeded elements than the {MAX_SEEDED_ELEMENTS} of the limit");
            return Err(Error::new(Code::SeedInvalid, message));
        }
        Tensor::hollow(self.dtype()?, self.shape.clone())
    }
}

impl ManifestSeed {
    fn parse(&self) -> Result<Seed> {
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
