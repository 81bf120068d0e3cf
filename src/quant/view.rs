//! A checkpoint by the names that it has once it is dequantised.

use std::collections::BTreeMap;
use std::path::Path;

use super::checkpoint::Quantised;
use crate::base::names::Known;
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Dtype;

/// The tensors of the model that a checkpoint stands for: a quantised weight is one, at the place of its codes,
/// and what belongs to it is none. Of a checkpoint that is not quantised, all its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'v, 'a> {
    base: &'a Checkpoint,
    quantised: Option<&'v Quantised<'a>>,
}

impl<'v, 'a> View<'v, 'a> {
    pub(crate) fn new(base: &'a Checkpoint, quantised: Option<&'v Quantised<'a>>) -> Self {
        Self { base, quantised }
    }

    pub(crate) fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// Element type of the tensor at a place; of a quantised weight, the one that it is made for.
    pub(crate) fn dtype(&self, place: Location) -> Dtype {
        match self.quantised.filter(|q| q.at(place).is_some()) {
            Some(quantised) => quantised.dtype(),
            None => self.base.at(place).1.dtype,
        }
    }

    /// Extents of the tensor at a place.
    pub(crate) fn shape(&self, place: Location) -> &'v [usize]
    where
        'a: 'v,
    {
        match self.quantised.and_then(|q| q.at(place)) {
            Some(weight) => &weight.shape,
            None => &self.base.at(place).1.shape,
        }
    }

    /// The dtype that most two-dimensional weights have.
    pub(crate) fn weight_dtype(&self) -> Option<Dtype> {
        let mut counts: BTreeMap<Dtype, usize> = BTreeMap::new();
        for (_, place) in self.tensors() {
            let dtype = self.dtype(place);
            if self.shape(place).len() == 2 && dtype.is_float() {
                *counts.entry(dtype).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d)
    }

    fn is_hidden(&self, place: Location) -> bool {
        let hides = |q: &Quantised<'_>| q.at(place).is_some() || q.companions().contains(&place);
        self.quantised.is_some_and(hides)
    }

    /// Every name with its place.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, Location)> {
        let stored = self.base.tensors().iter().map(|(n, l)| (n.as_str(), *l));
        let stored = stored.filter(|(_, l)| !self.is_hidden(*l));
        let weights = self.quantised.into_iter().flat_map(Quantised::weights);
        stored.chain(weights.map(|w| (w.name.as_str(), w.location)))
    }
}

impl Known for View<'_, '_> {
    type Place = Location;

    fn locate(&self, name: &str) -> Option<Location> {
        let weight = self.quantised.and_then(|q| q.named(name));
        weight.map(|w| w.location).or_else(|| {
            let stored = self.base.locate(name);
            stored.filter(|l| !self.is_hidden(*l))
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|(name, _)| name)
    }

    fn renames(&self) -> &[(String, String)] {
        self.base.renames()
    }

    fn path(&self) -> Option<&Path> {
        Some(self.base.path())
    }
}
