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
    /// Whether experts take the place of the MLP.
    pub sparse: bool,
}

/// The experts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertPlan {
    /// How many a layer has.
    pub count: usize,
    /// How many a token goes through.
    pub chosen: usize,
    /// Width of an expert.
    pub width: usize,
    /// Whether the probabilities of the chosen are divided by their sum.
    pub normalised: bool,
}
