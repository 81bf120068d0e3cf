//! LoRA variants whose update is not `s·B·A` on the stored base, and why each is refused.

use super::json::{Fields, Json, cut, wrong};
use crate::error::{Code, Error, Result};

/// A key of the config that is set, and that a plain low-rank update cannot represent.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// The key in `adapter_config.json`.
    pub key: &'static str,
    /// Its value, cut to what fits in a message.
    pub value: String,
    /// The code that refuses it.
    pub code: Code,
}

enum Type {
    Flag,
    List,
    Object,
}

struct Rule {
    key: &'static str,
    value: Type,
    code: Code,
    why: &'static str,
    hint: &'static str,
}

const BY_PEFT: &str = "use PEFT itself for this adapter";
const MERGE_IN_PEFT: &str = "merge it with PEFT's merge_and_unload, then work on the merged model";

const fn rule(
    key: &'static str,
    value: Type,
    code: Code,
    why: &'static str,
    hint: &'static str,
) -> Rule {
    Rule {
        key,
        value,
        code,
        why,
        hint,
    }
}

/// In alphabetical order, which is the order of refusals.
const RULES: &[Rule] = &[
    rule(
        "alora_invocation_tokens",
        Type::List,
        Code::UnsupportedAlora,
        "aLoRA's update applies only after these tokens of the prompt, so it cannot be merged",
        BY_PEFT,
    ),
    rule(
        "arrow_config",
        Type::Object,
        Code::UnsupportedArrow,
        "Arrow routes each token to one of several adapters at run time",
        "convert the adapters that it routes to one by one",
    ),
    rule(
        "enable_lora",
        Type::List,
        Code::UnsupportedVariant,
        "early releases of PEFT packed the parts of a fused projection into one grouped convolution",
        "load it with the PEFT that wrote it, and merge it there",
    ),
    rule(
        "ensure_weight_tying",
        Type::Flag,
        Code::UnsupportedWeightTying,
        "the factors of the embedding and of the output head are tied",
        MERGE_IN_PEFT,
    ),
    rule(
        "kasa_config",
        Type::Object,
        Code::UnsupportedKasa,
        "KaSA truncates the base on load and has a diagonal between A and B",
        MERGE_IN_PEFT,
    ),
    rule(
        "layer_replication",
        Type::List,
        Code::UnsupportedLayerReplication,
        "the adapted layers are copies that the base checkpoint does not have",
        "save the base with its layers replicated, and the adapter for that model",
    ),
    rule(
        "megatron_config",
        Type::Object,
        Code::UnsupportedMegatron,
        "the adapter is of a Megatron model, whose modules are shards",
        "save it from the Hugging Face model",
    ),
    rule(
        "monteclora_config",
        Type::Object,
        Code::UnsupportedVariant,
        "MonteCLoRA carries the state of a sampler",
        MERGE_IN_PEFT,
    ),
    rule(
        "use_bdlora",
        Type::Object,
        Code::UnsupportedBdlora,
        "one factor of each pair is stored as the blocks of a block-diagonal matrix",
        MERGE_IN_PEFT,
    ),
    rule(
        "use_qalora",
        Type::Flag,
        Code::UnsupportedQalora,
        "QALoRA pools the input before A, and cannot be merged",
        BY_PEFT,
    ),
    rule(
        "velora_config",
        Type::Object,
        Code::UnsupportedVariant,
        "VeLoRA carries extra embeddings",
        MERGE_IN_PEFT,
    ),
];

/// Takes every key of the table out of the config, and keeps those that are set.
///
/// What Python takes for false (null, false, empty) is not set, as in PEFT.
pub(super) fn read_features(fields: &mut Fields) -> Result<Vec<Feature>> {
    let mut features = Vec::new();
    for rule in RULES {
        let value = fields.take(rule.key);
        if value.is_falsy() {
            continue;
        }
        let (fits, want) = match rule.value {
            Type::Flag => (matches!(value, Json::Bool(_)), "true or false"),
            Type::List => (matches!(value, Json::List(_)), "a list"),
            Type::Object => (matches!(value, Json::Map(_)), "an object"),
        };
        if !fits {
            return Err(wrong(rule.key, &value, want));
        }
        features.push(Feature {
            key: rule.key,
            value: value.to_string(),
            code: rule.code,
        });
    }
    Ok(features)
}

impl Feature {
    /// The error that refuses it: key, value, why, and what to do.
    pub fn refusal(&self) -> Error {
        let rule = RULES.iter().find(|rule| rule.key == self.key);
        let why = rule.map_or("tlkit cannot represent it", |rule| rule.why);
        let hint = rule.map_or(BY_PEFT, |rule| rule.hint);
        Error::new(
            self.code,
            format!("`{}` is {}: {why}", self.key, self.value),
        )
        .hint(hint)
    }
}

const RESAVE: &str = "re-save it in PEFT with save_pretrained(…, path_initial_model_for_weight_conversion=…), \
                      which makes a plain LoRA of twice the rank";

/// Refuses initialisations that change the base, to which the stored factors are then relative.
pub(super) fn refuse_init(init: &str) -> Result<()> {
    let (code, why, hint) = match init.to_ascii_lowercase().as_str() {
        "gaussian" | "eva" | "orthogonal" | "mica" => return Ok(()),
        i if i == "pissa" || i.starts_with("pissa_niter_") => (
            Code::UnsupportedPissa,
            "PiSSA takes the base's leading singular values into the factors",
            RESAVE,
        ),
        "olora" => (
            Code::UnsupportedOlora,
            "OLoRA takes part of the base into the factors",
            RESAVE,
        ),
        "corda" => (
            Code::UnsupportedCorda,
            "CorDA takes part of the base into the factors",
            RESAVE,
        ),
        "lora_ga" => (
            Code::UnsupportedLoraGa,
            "LoRA-GA takes the first step out of the base",
            RESAVE,
        ),
        "loftq" => (
            Code::UnsupportedLoftq,
            "LoftQ's factors are relative to the base as it quantised it",
            "merge it in PEFT into the LoftQ base that it was trained on",
        ),
        "kasa" => (
            Code::UnsupportedKasa,
            "KaSA truncates the base on load",
            MERGE_IN_PEFT,
        ),
        _ => (
            Code::UnsupportedInit,
            "tlkit does not know whether that changes the base",
            MERGE_IN_PEFT,
        ),
    };
    Err(Error::new(
        code,
        format!("`init_lora_weights` is \"{}\": {why}", cut(init)),
    )
    .hint(hint))
}
