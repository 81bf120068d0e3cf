//! A tie group in training, and where its factors' values lie.

use std::ops::Range;

use crate::adapter::{Factor, FactorName, Target, TieGroup};
use crate::model::Slot;
use crate::model::ops::Span;

/// A tie group, and where it meets the model.
#[derive(Debug)]
pub(super) struct Group {
    /// Start values; trained factors are replaced when the adapter is made.
    pub(super) shape: TieGroup,
    pub(super) slot: Slot,
    /// Layers of the model, in the order of the factors' layers.
    pub(super) layers: Vec<u32>,
    pub(super) spans: Vec<Span>,
    /// A and B at their start.
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
}

impl Group {
    pub(super) fn factor(&self, name: FactorName) -> Option<&Factor> {
        let mut factors = self.shape.factors();
        factors.find(|(n, _)| *n == name).map(|(_, f)| f)
    }

    /// Rows and columns of one layer's factor; a diagonal has one column.
    pub(super) fn size(&self, name: FactorName) -> [usize; 2] {
        let (r, out) = (self.shape.rank, self.shape.total_out());
        match name {
            FactorName::A => [r, self.shape.in_features],
            FactorName::B => [out, r],
            FactorName::C => [r, r],
            FactorName::U => [r, 1],
            FactorName::V => [out, 1],
        }
    }

    /// Where the values of layer `i` lie in a factor's tensor: all of them in one that serves every
    /// layer.
    pub(super) fn range(&self, name: FactorName, i: usize) -> Range<usize> {
        let axes = match name {
            FactorName::A | FactorName::B | FactorName::C => 2,
            FactorName::U | FactorName::V => 1,
        };
        let stacked = |f: &Factor| f.tensor.shape().len() > axes;
        let [rows, cols] = self.size(name);
        let len = rows * cols;
        match self.factor(name).is_some_and(stacked) {
            true => i * len..(i + 1) * len,
            false => 0..len,
        }
    }

    /// What multiplies A or B from the left, where the group has it.
    pub(super) fn left_of(&self, name: FactorName) -> FactorName {
        match (name, &self.shape.core) {
            (FactorName::A, Some(_)) => FactorName::C,
            (FactorName::A, None) => FactorName::U,
            _ => FactorName::V,
        }
    }

    /// The last `parts` parts of the targets' names: `q_proj+k_proj+v_proj` of one.
    pub(super) fn name(&self, parts: usize) -> String {
        let short = |t: &Target| {
            let dots = t.module.rmatch_indices('.').nth(parts - 1);
            t.module[dots.map_or(0, |(at, _)| at + 1)..].to_owned()
        };
        let names = self.shape.targets.iter().map(short);
        names.collect::<Vec<_>>().join("+")
    }
}
