//! The manifest (spec §5): JSON of fixed shape in canonical form, whose SHA-256 is the root.
//!
//! Canonical form is RFC 8785 restricted to what the schema needs: no floats, ASCII keys. The
//! structs below list their fields in that order, so that serialising is canonicalising; reading
//! serialises again and compares. The objects inside are in [`super::parts`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::encode::check_finite;
use super::parts::{
    Base, Group, ManifestExtra, ManifestSeed, ManifestTarget, ManifestTensor, invalid, scaling,
};
use super::read::{BlobSource, MAX_MADE_BYTES, external_missing, most_held};
use crate::adapter::{Adapter, Extra, Factor, Part, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The version of the format.
pub const VERSION: u32 = 1;
/// The features that a manifest may require and this build knows (spec §14), ascending.
pub const FEATURES: &[&str] = &[CORE, I8_ROWS];
/// A full matrix C in place of diag(u).
const CORE: &str = "core";
/// Factors of 8-bit integers, with a scale for each row.
const I8_ROWS: &str = "i8-rows";
/// Longest manifest.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Most bytes of one tensor.
pub const MAX_TENSOR_BYTES: u64 = 4 << 30;
/// What the name of a tensor with scales has after that of the use it belongs to.
pub(super) const SCALES: &str = ".scales";
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

/// What every version of the manifest has; read first, so that a newer one is refused by name.
#[derive(Deserialize)]
struct Preamble {
    tl: u32,
    #[serde(default)]
    requires: Vec<String>,
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

    /// The names of the tensors that are an A or a B, or the scales of one: what adapters of one base
    /// may share.
    pub(crate) fn projections(&self) -> BTreeSet<&str> {
        let ab = self.groups.iter().flat_map(|g| [&g.A, &g.B]);
        ab.flat_map(|name| {
            let scales = self.tensors.get(name).and_then(|t| t.scales.as_deref());
            [Some(name.as_str()), scales].into_iter().flatten()
        })
        .collect()
    }

    /// What the method is called.
    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    /// What the base model is called.
    pub(crate) fn base_name(&self) -> Option<&str> {
        self.base.as_ref()?.name.as_deref()
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
        let mut described = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            described.insert(
                name.as_str(),
                tensor.shape_only().map_err(|e| e.tensor(name))?,
            );
        }
        let adapter = self.assemble(&described)?;
        adapter.validate()?;
        self.check_canonical_structure(&adapter)?;
        Ok(adapter)
    }

    /// The adapter with every tensor from `blobs`, or made from its seed where they do not have
    /// it; each digest is verified.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`], [`Code::ExternalMissing`], [`Code::NonFinite`],
    /// [`Code::SeedInvalid`]; those of `blobs`;
    /// [`Code::ManifestLimit`] beyond [`MAX_MADE_BYTES`](super::MAX_MADE_BYTES).
    /// What seeds make is held to [`most_held`](super::most_held) of the blobs.
    pub fn load(&self, blobs: &dyn BlobSource) -> Result<Adapter> {
        let (mut kept, mut made) = (0u64, 0u64);
        for entry in self.tensors.values() {
            let sum = match entry.seed {
                Some(_) => &mut made,
                None => &mut kept,
            };
            *sum = sum.saturating_add(entry.byte_len()?);
        }
        let total = kept.saturating_add(made);
        if total > MAX_MADE_BYTES || made > most_held(kept) {
            let message = format!(
                "its tensors take {total} bytes, {made} of them made of seeds; the limits are \
                 {MAX_MADE_BYTES} and {}",
                most_held(kept)
            );
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let mut tensors = BTreeMap::new();
        for (name, entry) in &self.tensors {
            let stored = blobs.get(&entry.sha256, entry.byte_len()?)?;
            let is_stored = stored.is_some();
            let bytes = match stored {
                Some(bytes) => bytes,
                None => entry.regenerate()?.ok_or_else(|| external_missing(entry))?,
            };
            let tensor = entry.verified(bytes).map_err(|e| e.tensor(name))?;
            if is_stored {
                entry.check_seed().map_err(|e| e.tensor(name))?;
            }
            tensors.insert(name.as_str(), tensor);
        }
        self.assemble(&tensors)
    }

    /// The adapter over the given tensors, which have the manifest's dtypes and shapes.
    pub(super) fn assemble(&self, tensors: &BTreeMap<&str, Tensor>) -> Result<Adapter> {
        let quantised = self.with_scales(tensors)?;
        let get = |name: &str| {
            let tensor = quantised.get(name).or_else(|| tensors.get(name));
            tensor.cloned().ok_or_else(|| undeclared(name))
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
        let optional = |name: &Option<String>, part, trained: &[String]| {
            let factor = name.as_ref().map(|name| factor(name, part, trained));
            factor.transpose()
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
                core: optional(&group.C, Part::C, t)?,
                u: optional(&group.u, Part::U, t)?,
                v: optional(&group.v, Part::V, t)?,
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

    /// The I8 tensors with their scales. Each is looked at once, however many groups use it.
    pub(super) fn with_scales<'a>(
        &'a self,
        tensors: &BTreeMap<&str, Tensor>,
    ) -> Result<BTreeMap<&'a str, Tensor>> {
        let get = |name: &str| tensors.get(name).ok_or_else(|| undeclared(name));
        let mut quantised = BTreeMap::new();
        for (name, entry) in &self.tensors {
            let Some(scales) = &entry.scales else {
                continue;
            };
            let tensor = get(name)?.clone().with_scales(get(scales)?);
            let tensor = tensor.map_err(|e| e.tensor(name))?;
            check_finite(&tensor).map_err(|e| e.tensor(name))?;
            quantised.insert(name.as_str(), tensor);
        }
        Ok(quantised)
    }

    /// The manifest of an adapter whose distinct tensors have these names; see [`super::encode`].
    pub(super) fn describe(
        adapter: &Adapter,
        names: &Names,
        tensors: BTreeMap<String, ManifestTensor>,
    ) -> Self {
        let groups = adapter.groups.iter().zip(&names.groups);
        let extras = adapter.extras.iter().zip(&names.extras);
        let mut manifest = Self {
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
        };
        let used = manifest.features().into_iter().map(str::to_owned);
        manifest.requires = used.collect();
        manifest
    }

    /// The features that this manifest uses, ascending.
    fn features(&self) -> Vec<&'static str> {
        let core = self.groups.iter().any(|g| g.C.is_some());
        let i8_rows = self.tensors.values().any(|t| t.scales.is_some());
        let used = [core.then_some(CORE), i8_rows.then_some(I8_ROWS)];
        used.into_iter().flatten().collect()
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
        let features = self.features();
        if self.requires != features {
            return not_canonical(format!(
                "requires {:?}, and uses {features:?}",
                self.requires
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
                let own = format!("g{i}.{}", part.name());
                if let Some(scales) = self.tensors.get(name).and_then(|t| t.scales.as_ref()) {
                    used(scales, format!("{own}{SCALES}"))?;
                }
                used(name, own)?;
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
            if !contents.insert((&t.dtype, &t.shape, t.sha256, &t.scales)) {
                return not_canonical(format!("tensor `{name}` has the content of another one"));
            }
        }
        Ok(())
    }
}

fn undeclared(name: &str) -> Error {
    let message = "used, and not described under `tensors`";
    Error::new(Code::TensorUndeclared, message).tensor(name)
}

/// The names of an adapter's tensors: of each group's factors, and of the extras.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) groups: Vec<BTreeMap<Part, String>>,
    pub(super) extras: Vec<String>,
}
