//! Groups of one module each, as an adapter's tensors give them.

use std::collections::{BTreeMap, BTreeSet};

use super::imported::ImportOptions;
use crate::adapter::{Adapter, Factor, ModuleKind, Scaling, Target, TieGroup, split_layer};
use crate::base::modules::is_conv1d;
use crate::error::{Code, Error, Result};
use crate::peft::names::TargetRules;
use crate::tensor::Tensor;

/// An adapter in the making, with what is told of it.
pub(super) struct Importer<'a> {
    pub(super) options: &'a ImportOptions<'a>,
    pub(super) adapter: Adapter,
    pub(super) notes: Vec<String>,
    /// Modules of rank 0.
    pub(super) rank_zero: Vec<String>,
    pub(super) magnitudes: BTreeMap<String, Tensor>,
    /// Parameters by the paths of their wrappers.
    pub(super) parameters: BTreeMap<String, String>,
    /// Modules of single experts that are in the file as tensors of all.
    pub(super) of_stacks: BTreeSet<String>,
    /// Modules that should have tensors, and have none.
    pub(super) missing: Vec<String>,
}

/// The update of one module.
pub(super) struct Update<'t> {
    pub(super) kind: ModuleKind,
    /// Number of experts of a parameter.
    pub(super) experts: Option<usize>,
    pub(super) rank: usize,
    pub(super) in_features: usize,
    pub(super) out: usize,
    pub(super) scaling: Scaling,
    pub(super) a: Factor,
    pub(super) b: Factor,
    /// VeRA's `lambda_d` and `lambda_b`.
    pub(super) vectors: Option<(&'t Tensor, &'t Tensor)>,
}

impl Importer<'_> {
    /// How the base stores this module. PEFT decides by the module's class and corrects the
    /// config's flag; without the base, names decide where the flag is set.
    pub(super) fn kind(&mut self, path: &str, embedding: bool, flag: bool) -> ModuleKind {
        if embedding {
            return ModuleKind::Embedding;
        }
        match self.options.base.and_then(|base| base.is_conv1d(path)) {
            Some(true) => return ModuleKind::Conv1d,
            Some(false) => return ModuleKind::Linear,
            None => (),
        }
        if flag && is_conv1d(path) {
            return ModuleKind::Conv1d;
        }
        let note = "fan_in_fan_out is true, and the modules are not GPT-2's Conv1D: stored as nn.Linear, as PEFT corrects it";
        if flag && !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.into());
        }
        ModuleKind::Linear
    }

    /// Adds the update of one module.
    pub(super) fn push_group(&mut self, path: &str, update: Update<'_>) -> Result<()> {
        let (module, layer) = split_layer(path);
        let vector = |t: &Tensor| -> Result<Factor> {
            let mut shape = t.shape().to_vec();
            if layer.is_some() {
                shape.insert(0, 1);
            }
            Tensor::new(t.dtype(), shape, t.data().clone()).map(Factor::trained)
        };
        let (u, v) = match update.vectors {
            Some((d, b)) => (Some(vector(d)?), Some(vector(b)?)),
            None => (None, None),
        };
        self.adapter.groups.push(TieGroup {
            layers: layer.map(|l| vec![l]),
            experts: update.experts,
            rank: update.rank,
            in_features: update.in_features,
            scaling: update.scaling,
            a: update.a,
            b: update.b,
            core: None,
            u,
            v,
            targets: vec![Target {
                module,
                out: update.out,
                kind: update.kind,
            }],
        });
        Ok(())
    }
}

/// Refuses a module that the config does not select.
pub(super) fn check_target(rules: &TargetRules, path: &str) -> Result<()> {
    if rules.matches(path)? {
        return Ok(());
    }
    let message = format!("`{path}` has tensors, and the config's target rules leave it out");
    Err(Error::new(Code::TargetMismatch, message).hint(
        "target_modules, exclude_modules and layers_to_transform must be those of the training run",
    ))
}
