//! A base that is quantised, in a plan: all its weights are written dequantised, and what belongs to them is left
//! out.

use std::collections::BTreeSet;

use super::dequantised::Dequantised;
use super::plan::{Origin, TensorPlan};
use crate::safetensors::Location;

impl Dequantised<'_> {
    /// The plan of a quantised weight to which nothing happens but that it is dequantised.
    pub(super) fn tensor(&self, place: Location) -> Option<TensorPlan> {
        let weight = self.weights().at(place)?;
        Some(TensorPlan {
            name: weight.name.clone(),
            source: place,
            origin: Origin::Quantised,
            appended: false,
            dtype: self.dtype(),
            shape: weight.shape.clone(),
            replace: None,
            row_replacements: Vec::new(),
            additions: Vec::new(),
        })
    }

    /// Adds the plans of the weights that no adapter touches. Gives the places that have none in the output.
    pub(super) fn complete(&self, tensors: &mut Vec<TensorPlan>) -> BTreeSet<Location> {
        let planned = tensors.iter().filter(|t| !t.appended);
        let planned: BTreeSet<Location> = planned.map(|t| t.source).collect();
        let places = self.weights().weights().iter().map(|w| w.location);
        let rest = places.filter(|place| !planned.contains(place));
        tensors.extend(rest.filter_map(|place| self.tensor(place)));
        self.weights().companions().clone()
    }
}
