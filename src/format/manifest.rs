//! The manifest (spec §5): JSON of fixed shape in canonical form, whose SHA-256 is the root.
//!
//! Canonical form is RFC 8785 restricted to what the schema needs: no floats, ASCII keys. The
//! structs below list their fields in that order, so that serialising is canonicalising; reading
//! serialises again and compares. The objects inside are in [`super::parts`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::described::ManifestTensor;
use super::invalid::invalid;
use super::limits::MAX_MANIFEST_BYTES;
use super::parts::{Base, Group, ManifestExtra, Role};
use crate::adapter::{Adapter, FactorName};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// The version of the format.
pub const VERSION: u32 = 1;
/// The features that a manifest may require and this build knows (spec §14), ascending.
pub const FEATURES: &[&str] = &[CODED, CORE, EXPERTS, I8_ROWS, ROWS];
/// Factors of coded integers.
const CODED: &str = "coded";
/// A full matrix C in place of diag(u).
const CORE: &str = "core";
/// Parameters as targets, and groups whose parameters have an axis of experts.
const EXPERTS: &str = "experts";
/// Factors of 8-bit integers, with a scale for each row.
const I8_ROWS: &str = "i8-rows";
/// Extras that replace rows of an embedding.
const ROWS: &str = "rows";
/// What the name of a tensor with scales has after that of the use it belongs to.
pub(super) const SCALES: &str = ".scales";
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

    /// The manifest of an adapter whose distinct tensors have these names; see [`super::encode`].
    pub(super) fn describe(
        adapter: &Adapter,
        base: Option<Base>,
        names: &Names,
        tensors: BTreeMap<String, ManifestTensor>,
    ) -> Self {
        let groups = adapter.groups.iter().zip(&names.groups);
        let extras = adapter.extras.iter().zip(&names.extras);
        let mut manifest = Self {
            base: base.filter(|b| *b != Base::default()),
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
    pub(super) fn features(&self) -> Vec<&'static str> {
        let coded = self.tensors.values().any(|t| t.coded.is_some());
        let core = self.groups.iter().any(|g| g.C.is_some());
        let i8_rows = self.tensors.values().any(|t| t.scales.is_some());
        let rows = self.extras.iter().any(|x| x.role == Role::Rows);
        let experts = self.groups.iter().any(Group::has_parameters);
        let used = [
            coded.then_some(CODED),
            core.then_some(CORE),
            experts.then_some(EXPERTS),
            i8_rows.then_some(I8_ROWS),
            rows.then_some(ROWS),
        ];
        used.into_iter().flatten().collect()
    }
}

/// The names of an adapter's tensors: of each group's factors, and of the extras.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) groups: Vec<BTreeMap<FactorName, String>>,
    pub(super) extras: Vec<String>,
}
