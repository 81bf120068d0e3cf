//! The low-rank branches of a model, their gradients, and the modules that they are beside.

use super::family::Slot;
use super::layer::LayerBranches;
use crate::adapter::ModuleKind;
use crate::model::ops::{Branch, BranchGrads, Dropout};

/// The low-rank branches of a whole model.
#[derive(Debug, Default)]
pub struct Branches {
    pub(super) layers: Vec<LayerBranches>,
    /// Of what they read, where a backward follows.
    pub(super) dropout: Option<Dropout>,
}

/// Gradients in the places of the [`Branches`] they belong to.
#[derive(Debug)]
pub struct BranchGradients {
    pub(super) layers: Vec<[Vec<BranchGrads>; 4]>,
}

/// Where a linear module is.
#[derive(Debug, Clone)]
pub struct ModulePlace {
    /// Layer.
    pub layer: usize,
    /// Product within the layer.
    pub slot: Slot,
    /// Full path, such as `model.layers.3.self_attn.q_proj`.
    pub path: String,
    /// Rows of its weight.
    pub out: usize,
    /// Columns of its weight.
    pub in_features: usize,
    /// Whether its weight is stored so, or (in, out).
    pub kind: ModuleKind,
    /// Its rows among the product's columns.
    pub spans: Vec<super::ops::Span>,
}

impl Branches {
    /// No branches, for a model of so many layers.
    pub fn none(layers: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| LayerBranches::default()).collect(),
            dropout: None,
        }
    }

    /// Adds a branch to a product; the index of it there.
    pub fn push(&mut self, layer: usize, slot: Slot, branch: Branch) -> usize {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, LayerBranches::default);
        }
        let branches = &mut self.layers[layer][slot as usize];
        branches.push(branch);
        branches.len() - 1
    }

    /// Drops elements of what the branches read wherever a backward follows, or none.
    pub fn drop_inputs(&mut self, dropout: Option<Dropout>) {
        self.dropout = dropout;
    }

    /// Adds all branches of `others` behind those that are there.
    pub fn extend(&mut self, others: &Self) {
        for (layer, slots) in others.layers.iter().enumerate() {
            for slot in Slot::ALL {
                for branch in &slots[slot as usize] {
                    self.push(layer, slot, branch.clone());
                }
            }
        }
    }

    /// The lowest product that has a branch whose gradient is wanted.
    pub(super) fn lowest(&self) -> Option<(usize, Slot)> {
        let wanted = |branches: &Vec<Branch>| branches.iter().any(|b| b.wanted != [false; 2]);
        (self.layers.iter().enumerate()).find_map(|(l, slots)| {
            let slot = Slot::ALL
                .into_iter()
                .find(|s| wanted(&slots[*s as usize]))?;
            Some((l, slot))
        })
    }
}

impl BranchGradients {
    /// Takes the gradients of one branch; none where the branch was not reached.
    pub fn take(&mut self, layer: usize, slot: Slot, index: usize) -> BranchGrads {
        (self.layers.get_mut(layer))
            .and_then(|slots| slots[slot as usize].get_mut(index))
            .map(std::mem::take)
            .unwrap_or_default()
    }
}
