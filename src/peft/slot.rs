//! What the end of a tensor's name says in a PEFT adapter.

/// What follows the module's path in the name of an adapter's tensor.
const SUFFIXES: [(&str, Slot); 9] = [
    (".lora_A.weight", Slot::A),
    (".lora_B.weight", Slot::B),
    (".lora_B.bias", Slot::Bias),
    (".lora_embedding_A", Slot::EmbeddingA),
    (".lora_embedding_B", Slot::EmbeddingB),
    (".lora_magnitude_vector", Slot::Magnitude),
    (".lora_magnitude_vector.weight", Slot::Magnitude),
    (".vera_lambda_d", Slot::LambdaD),
    (".vera_lambda_b", Slot::LambdaB),
];

/// The same in a state that was saved with the adapter's name in it.
const WITH_ADAPTER_NAME: [(&str, Slot); 2] = [
    (".lora_A.default.weight", Slot::A),
    (".lora_B.default.weight", Slot::B),
];

/// What a tensor is to the module that it adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// `lora_A`, (r, in).
    A,
    /// `lora_B`, (out, r).
    B,
    /// `lora_bias`, (out).
    Bias,
    /// `lora_A` of an embedding, (r, number of embeddings).
    EmbeddingA,
    /// `lora_B` of an embedding, (dimension, r).
    EmbeddingB,
    /// DoRA's magnitudes, (out).
    Magnitude,
    /// VeRA's vector on the side of the rank, (r).
    LambdaD,
    /// VeRA's vector on the side of the outputs, (out).
    LambdaB,
}

impl Slot {
    /// The module's path and the slot, of a name without PEFT's prefix; `None` where no suffix fits.
    pub(crate) fn split(name: &str) -> Option<(&str, Self)> {
        split_by(&SUFFIXES, name)
    }

    /// As [`split`](Self::split), also of a name in which the adapter's own name, `default`, was left.
    pub(crate) fn split_saved(name: &str) -> Option<(&str, Self)> {
        Self::split(name).or_else(|| split_by(&WITH_ADAPTER_NAME, name))
    }
}

fn split_by<'n>(suffixes: &[(&str, Slot)], name: &'n str) -> Option<(&'n str, Slot)> {
    suffixes
        .iter()
        .find_map(|(suffix, slot)| Some((name.strip_suffix(suffix)?, *slot)))
}
