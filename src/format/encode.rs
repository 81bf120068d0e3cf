//! Adapters in canonical form (spec §5, §8).

use std::collections::BTreeMap;

use super::described::ManifestTensor;
use super::finite::check_finite;
use super::manifest::{Manifest, Names, SCALES};
use super::parts::Base;
use crate::adapter::{Adapter, Seed};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// An adapter in canonical form: manifest, and the distinct tensors it names.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The manifest; its root is the adapter's identity.
    pub manifest: Manifest,
    /// Each distinct tensor once, by name.
    pub tensors: BTreeMap<String, EncodedTensor>,
}

/// A distinct tensor of an adapter.
#[derive(Debug, Clone)]
pub struct EncodedTensor {
    /// Its bytes as they are stored: of a coded tensor, U8 with one axis.
    pub tensor: Tensor,
    /// SHA-256 of them.
    pub digest: Digest,
    /// Whether the manifest has a recipe for it.
    pub seeded: bool,
    /// Whether it is an A or a B, or the scales of one: what adapters of one base may share.
    pub is_projection: bool,
}

/// Brings an adapter into canonical form (spec §5, §8): groups sorted, equal tensors stored once,
/// tensors named after their first use (`g0.A`, `g0.u`, `x0`).
///
/// # Errors
/// Those of [`Adapter::validate`]; [`Code::NonFinite`] naming the tensor; [`Code::SizeMismatch`]
/// where a tensor has no bytes, as those of [`Manifest::adapter`].
pub fn encode(adapter: &Adapter) -> Result<Encoded> {
    let mut adapter = adapter.clone();
    adapter.sort();
    adapter.validate()?;
    let base = adapter.base.as_ref().map(Base::of).transpose()?;
    let mut builder = Builder::default();
    let mut names = Names::default();
    for (i, group) in adapter.groups.iter().enumerate() {
        let mut own = BTreeMap::new();
        for (part, factor) in group.factors() {
            let fallback = format!("g{i}.{}", part.name());
            let is_projection = part.name().starts_with(['A', 'B']);
            let name = builder.add(
                &factor.tensor,
                factor.seed.as_ref(),
                fallback,
                is_projection,
            )?;
            own.insert(part, name);
        }
        names.groups.push(own);
    }
    for (i, extra) in adapter.extras.iter().enumerate() {
        names
            .extras
            .push(builder.add(&extra.tensor, None, format!("x{i}"), false)?);
    }
    let manifest = Manifest::describe(&adapter, base, &names, builder.described);
    // The writer is held to the reader's rules, so that no file is written that cannot be read.
    let manifest = Manifest::parse(&manifest.to_bytes())?;
    Ok(Encoded {
        manifest,
        tensors: builder.tensors,
    })
}

/// Dtype, shape, digest, the name of the scales and the length of the code: equal for tensors of one content.
type Content = (
    &'static str,
    Vec<usize>,
    Digest,
    Option<String>,
    Option<usize>,
);

#[derive(Default)]
struct Builder {
    by_content: BTreeMap<Content, String>,
    described: BTreeMap<String, ManifestTensor>,
    tensors: BTreeMap<String, EncodedTensor>,
}

impl Builder {
    fn add(
        &mut self,
        tensor: &Tensor,
        seed: Option<&Seed>,
        fallback: String,
        is_projection: bool,
    ) -> Result<String> {
        let scales = match tensor.scales() {
            Some(scales) => {
                let own = format!("{fallback}{SCALES}");
                Some(self.add(&scales, None, own, is_projection)?)
            }
            None => None,
        };
        check_finite(tensor).map_err(|e| e.tensor(&fallback))?;
        let stored = tensor.codes();
        if stored.data().len() as u64 != stored.byte_len() {
            let message = "known by its shape only, its bytes were not loaded";
            return Err(Error::new(Code::SizeMismatch, message).tensor(fallback));
        }
        let digest = Digest::of(stored.data());
        let (dtype, shape) = (tensor.dtype().as_str(), tensor.shape().to_vec());
        let code = tensor.coded_bytes().map(|b| b.len());
        let content = (dtype, shape, digest, scales.clone(), code);
        let name = self.by_content.entry(content).or_insert(fallback).clone();
        if let Some(known) = self.tensors.get_mut(&name) {
            known.is_projection |= is_projection;
            if let (Some(seed), false) = (seed, known.seeded) {
                known.seeded = true;
                let described = ManifestTensor::of(tensor, digest, scales, Some(seed));
                self.described.insert(name.clone(), described);
            }
            return Ok(name);
        }
        let described = ManifestTensor::of(tensor, digest, scales, seed);
        self.described.insert(name.clone(), described);
        let entry = EncodedTensor {
            tensor: stored,
            digest,
            seeded: seed.is_some(),
            is_projection,
        };
        self.tensors.insert(name.clone(), entry);
        Ok(name)
    }
}
