//! Adapters over the tensors that a manifest names.

use std::collections::BTreeMap;

use super::blobs::BlobSource;
use super::described::{ManifestSeed, external_missing};
use super::finite::check_finite;
use super::limits::{MAX_MADE_BYTES, most_held};
use super::manifest::Manifest;
use super::parts::{Base, ManifestTarget, scaling};
use crate::adapter::{Adapter, Extra, Factor, FactorName, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

impl Manifest {
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
            made = made.saturating_add(entry.decoded_len()?);
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
        let factor = |name: &String, part: FactorName, trained: &[String]| -> Result<Factor> {
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
                experts: group.experts,
                rank: group.rank,
                in_features: group.r#in,
                scaling: scaling(&group.alpha, group.scaling)?,
                a: factor(&group.A, FactorName::A, t)?,
                b: factor(&group.B, FactorName::B, t)?,
                core: optional(&group.C, FactorName::C, t)?,
                u: optional(&group.u, FactorName::U, t)?,
                v: optional(&group.v, FactorName::V, t)?,
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
                rows: extra.rows.clone(),
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
}

fn undeclared(name: &str) -> Error {
    let message = "used, and not described under `tensors`";
    Error::new(Code::TensorUndeclared, message).tensor(name)
}
