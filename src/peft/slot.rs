//! What the end of a tensor's name says in a PEFT adapter.

/// The tensors of modules of PEFT: a parameter `weight` or `bias` in a module of that name.
const MODULES: [(&str, &str, Slot); 4] = [
    (".lora_A", ".weight", Slot::A),
    (".lora_B", ".weight", Slot::B),
    (".lora_B", ".bias", Slot::Bias),
    (".lora_magnitude_vector", ".weight", Slot::Magnitude),
];

/// The tensors that are parameters themselves.
const PARAMETERS: [(&str, Slot); 4] = [
    (".lora_embedding_A", Slot::EmbeddingA),
    (".lora_embedding_B", Slot::EmbeddingB),
    (".vera_lambda_d", Slot::LambdaD),
    (".vera_lambda_b", Slot::LambdaB),
];

/// How PEFT writes the magnitudes, a module's parameter, since they were a parameter themselves.
const MAGNITUDE: &str = ".lora_magnitude_vector";

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

/// A tensor's name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named<'n> {
    /// The module that is adapted.
    pub(crate) module: &'n str,
    /// What the tensor is to it.
    pub(crate) slot: Slot,
    /// The adapter's own name, where it was left in the tensor's: the state of a model has it, and
    /// PEFT takes it out when it saves. What it loads has either form.
    pub(crate) adapter: Option<&'n str>,
}

impl Slot {
    /// Takes a name without PEFT's prefix apart; `None` where it is none of an adapter's.
    pub(crate) fn split(name: &str) -> Option<Named<'_>> {
        let plain = |module, slot| Named {
            module,
            slot,
            adapter: None,
        };
        if let Some(module) = name.strip_suffix(MAGNITUDE) {
            return Some(plain(module, Self::Magnitude));
        }
        for (part, parameter, slot) in MODULES {
            let Some(rest) = name.strip_suffix(parameter) else {
                continue;
            };
            if let Some(module) = rest.strip_suffix(part) {
                return Some(plain(module, slot));
            }
            if let Some(named) = with_adapter(rest, part, slot) {
                return Some(named);
            }
        }
        for (part, slot) in PARAMETERS {
            if let Some(module) = name.strip_suffix(part) {
                return Some(plain(module, slot));
            }
            if let Some(named) = with_adapter(name, part, slot) {
                return Some(named);
            }
        }
        None
    }
}

/// `<module><part>.<adapter>`.
fn with_adapter<'n>(name: &'n str, part: &str, slot: Slot) -> Option<Named<'n>> {
    let (rest, adapter) = name.rsplit_once('.')?;
    // A parameter `weight` of what is a parameter itself is nobody's form.
    if adapter.is_empty() || matches!(adapter, "weight" | "bias") {
        return None;
    }
    Some(Named {
        module: rest.strip_suffix(part)?,
        slot,
        adapter: Some(adapter),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a form that PEFT 0.21 loads is not known, or one that it passes over is taken.
    #[test]
    fn names_are_taken_apart_with_and_without_the_adapters() {
        let some = |name, module, slot, adapter| {
            let named = Named {
                module,
                slot,
                adapter,
            };
            assert_eq!(Slot::split(name), Some(named), "{name}");
        };
        some("l.0.q.lora_A.weight", "l.0.q", Slot::A, None);
        some(
            "l.0.q.lora_B.default.weight",
            "l.0.q",
            Slot::B,
            Some("default"),
        );
        some(
            "l.0.q.lora_B.my-task.bias",
            "l.0.q",
            Slot::Bias,
            Some("my-task"),
        );
        some("e.lora_embedding_A", "e", Slot::EmbeddingA, None);
        some(
            "e.lora_embedding_B.default",
            "e",
            Slot::EmbeddingB,
            Some("default"),
        );
        some("q.lora_magnitude_vector", "q", Slot::Magnitude, None);
        some("q.lora_magnitude_vector.weight", "q", Slot::Magnitude, None);
        some(
            "q.lora_magnitude_vector.default.weight",
            "q",
            Slot::Magnitude,
            Some("default"),
        );
        some("q.vera_lambda_d", "q", Slot::LambdaD, None);
        some(
            "q.vera_lambda_b.default",
            "q",
            Slot::LambdaB,
            Some("default"),
        );
        for name in [
            "q.lora_magnitude_vector.default",
            "e.lora_embedding_A.weight",
            "e.lora_embedding_A.default.weight",
            "q.lora_A",
            "q.lora_A.default",
            "q.lora_A..weight",
            "q.weight",
            "",
        ] {
            assert_eq!(Slot::split(name), None, "{name}");
        }
    }
}
