//! A model and the adapter that is trained on it, as the loop sees them.

use std::sync::Arc;

use super::adapter::TrainingAdapter;
use super::params::{Objective, Param};
use crate::error::Result;
use crate::model::LossSum;
use crate::model::ops::Dropout;
use crate::model::{Keep, Model};
use crate::text::Batch;

/// The loss of a frozen model as a function of an adapter's trained tensors.
#[derive(Debug)]
pub struct TrainingModel {
    model: Arc<Model>,
    adapter: TrainingAdapter,
    keep: Keep,
    dropout: Option<Dropout>,
    /// The step, and the batch within it.
    at: [u64; 2],
}

impl TrainingModel {
    /// With `recompute`, only each layer's input is kept for the backward, and memory is that and
    /// one layer's activations.
    pub fn new(model: impl Into<Arc<Model>>, adapter: TrainingAdapter, recompute: bool) -> Self {
        let keep = if recompute { Keep::Inputs } else { Keep::All };
        Self {
            model: model.into(),
            adapter,
            keep,
            dropout: None,
            at: [0; 2],
        }
    }

    /// The same, with elements of what adapters read dropped in training.
    #[must_use]
    pub fn with_dropout(self, probability: f64, seed: u64) -> Self {
        let dropout = Dropout {
            probability,
            key: seed,
        };
        Self {
            dropout: (probability > 0.0).then_some(dropout),
            ..self
        }
    }

    /// The frozen model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The adapter's layout.
    pub fn adapter(&self) -> &TrainingAdapter {
        &self.adapter
    }
}

impl Objective for TrainingModel {
    fn loss(&mut self, params: &[Param], batch: &Batch) -> Result<LossSum> {
        let branches = self.adapter.branches(params, &self.model)?;
        self.model.loss(&branches, batch)
    }

    fn begin(&mut self, step: u64, batch: u64) {
        self.at = [step, batch];
    }

    fn accumulate(
        &mut self,
        params: &[Param],
        batch: &Batch,
        grads: &mut [Vec<f32>],
    ) -> Result<LossSum> {
        let mut branches = self.adapter.branches(params, &self.model)?;
        branches.drop_inputs(self.dropout.map(|d| d.of(&self.at)));
        let (loss, mut gradients) = self.model.backward(&branches, batch, self.keep)?;
        self.adapter.pull_back(params, &mut gradients, grads)?;
        Ok(loss)
    }
}
