//! What differs from layer to layer.

/// One layer of a decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerPlan {
    /// A query sees so many keys; None for all.
    pub window: Option<usize>,
    /// Which of the model's rotary embeddings rotates queries and keys.
    pub rotary: Option<usize>,
    /// What scores are multiplied by.
    pub scale: f64,
}
