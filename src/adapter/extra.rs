//! Full tensors that go with an adapter's low-rank updates.

use super::scaling::Scaling;
use crate::tensor::Tensor;

/// What an [`Extra`] does to its base tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtraRole {
    /// Replaces the tensor: PEFT's `modules_to_save`.
    Replace,
    /// Replaces a bias: PEFT's `bias="all"` and `"lora_only"` (`base_layer.bias`).
    Bias,
    /// Replaces the weight under an update: PEFT's saved `base_layer.weight` of embeddings.
    BaseLayer,
    /// Is added to the bias of an adapted module, scaled like it: PEFT's `lora_bias`.
    AddBias(Scaling, usize),
}

/// A full tensor that an adapter carries besides its tie groups.
#[derive(Debug, Clone)]
pub struct Extra {
    /// The base tensor's name, such as `lm_head.weight`.
    pub name: String,
    /// What it does to it.
    pub role: ExtraRole,
    /// The values; same shape as the base tensor.
    pub tensor: Tensor,
}
