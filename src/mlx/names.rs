//! How mlx-lm's classes call what transformers' call otherwise. Everything else has one name in both.
//!
//! From the `sanitize` of mlx-lm 0.32's models, which renames and stacks a checkpoint's tensors when it is loaded.

use crate::adapter::{LAYER_PLACE, split_layer};
use crate::base::shapes::BaseShapes;
use crate::error::{Code, Error, Result};

/// Leading segments: which model types, what mlx-lm has, what transformers has.
struct Prefix {
    types: &'static [&'static str],
    mlx: &'static str,
    class: &'static str,
}

/// A language model beside towers, and GPT-2's stack.
const PREFIXES: [Prefix; 4] = [
    Prefix {
        types: &WITH_TOWERS,
        mlx: "language_model.model.",
        class: "model.language_model.",
    },
    Prefix {
        types: &WITH_TOWERS,
        mlx: "language_model.lm_head",
        class: "lm_head",
    },
    Prefix {
        types: &["gpt2"],
        mlx: "model.h.",
        class: "transformer.h.",
    },
    Prefix {
        types: &["gpt2"],
        mlx: "model.wte",
        class: "transformer.wte",
    },
];

const WITH_TOWERS: [&str; 5] = [
    "gemma3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
];

/// Experts, which mlx-lm stacks and checkpoints have one by one.
struct Experts {
    types: &'static [&'static str],
    /// The block's modules in mlx-lm.
    mlx: &'static str,
    /// The list of experts in a checkpoint.
    class: &'static str,
    /// A linear module of the block, and the expert's own.
    parts: &'static [(&'static str, &'static str)],
}

const GATED: [(&str, &str); 3] = [
    ("gate_proj", "gate_proj"),
    ("up_proj", "up_proj"),
    ("down_proj", "down_proj"),
];

const EXPERTS: [Experts; 3] = [
    Experts {
        types: &[
            "ernie4_5_moe",
            "glm4_moe",
            "olmoe",
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
        ],
        mlx: "mlp.switch_mlp",
        class: "mlp.experts",
        parts: &GATED,
    },
    Experts {
        types: &["mixtral", "phimoe"],
        mlx: "block_sparse_moe.switch_mlp",
        class: "block_sparse_moe.experts",
        parts: &[("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")],
    },
    Experts {
        types: &["afmoe"],
        mlx: "mlp.experts",
        class: "mlp.experts",
        parts: &GATED,
    },
];

/// Model types whose linear modules and embeddings mlx-lm calls as transformers does, but for the tables above
/// (`tests/serve/serve_mlx.py` compares).
const KNOWN: [&str; 41] = [
    "afmoe",
    "cohere",
    "cohere2",
    "ernie4_5",
    "ernie4_5_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "granite",
    "helium",
    "hunyuan_v1_dense",
    "internlm3",
    "llama",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "qwen3_vl_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// A module of mlx-lm as transformers calls it: as the base has it where it is at hand and one of the two names
/// is its; else as it is.
pub(super) fn class_name(path: &str, base: Option<&dyn BaseShapes>) -> String {
    let Some(base) = base else {
        return path.to_owned();
    };
    let has = |module: &str| base.has_tensor(&format!("{module}.weight"));
    let renamed = PREFIXES.iter().filter_map(|p| {
        let rest = path.strip_prefix(p.mlx)?;
        Some(format!("{}{rest}", p.class))
    });
    let mut candidates = renamed.filter(|module| has(module) && !has(path));
    candidates.next().unwrap_or_else(|| path.to_owned())
}

/// What mlx-lm calls a module of a base of this type.
pub(super) fn mlx_name(path: &str, model_type: &str) -> String {
    let mut own = PREFIXES.iter().filter(|p| p.types.contains(&model_type));
    let renamed = own.find_map(|p| {
        let rest = path.strip_prefix(p.class)?;
        Some(format!("{}{rest}", p.mlx))
    });
    renamed.unwrap_or_else(|| path.to_owned())
}

/// The module of each expert, with [`LAYER_PLACE`] for its number, that stacked experts of mlx-lm are.
///
/// # Errors
/// [`Code::NeedsBase`] without the base, which alone tells which names its experts have;
/// [`Code::UnmatchedModule`] where it has none, or not as many.
pub(super) fn experts_of(
    path: &str,
    experts: usize,
    base: Option<&dyn BaseShapes>,
) -> Result<String> {
    let base = base.ok_or_else(|| {
        let message = "stacks the experts of a layer, and its name does not tell theirs";
        Error::new(Code::NeedsBase, message)
            .tensor(path)
            .hint("give the base model (only its headers are read)")
    })?;
    let candidates = EXPERTS.iter().flat_map(|e| {
        let found = e.parts.iter().filter_map(move |(part, own)| {
            let before = path.strip_suffix(&format!("{}.{part}", e.mlx))?;
            Some(format!("{before}{}.{LAYER_PLACE}.{own}", e.class))
        });
        found.collect::<Vec<_>>()
    });
    let has = |template: &str, expert: usize| {
        base.has_tensor(&format!("{}.weight", numbered(template, expert)))
    };
    let mut known: Vec<String> = candidates.filter(|c| has(c, 0)).collect();
    known.dedup();
    match &known[..] {
        [one] if has(one, experts - 1) && !has(one, experts) => Ok(one.clone()),
        [one] => {
            let message = format!("has {experts} experts, and `{one}` of the base has not as many");
            Err(Error::new(Code::UnmatchedModule, message).tensor(path))
        }
        _ => {
            let message = "stacks experts, and the base has none of the names that those have";
            Err(Error::new(Code::UnmatchedModule, message).tensor(path))
        }
    }
}

/// A template with an expert's number in its place.
pub(super) fn numbered(template: &str, expert: usize) -> String {
    template.replacen(LAYER_PLACE, &expert.to_string(), 1)
}

/// The stacked module of mlx-lm and the number of the expert that a module is one of.
pub(super) fn stacked(path: &str, model_type: &str) -> Option<(String, usize)> {
    let mut own = EXPERTS.iter().filter(|e| e.types.contains(&model_type));
    own.find_map(|e| {
        let (before, rest) = path.split_once(&format!("{}.", e.class))?;
        let (number, part) = rest.split_once('.')?;
        let (mlx, _) = e.parts.iter().find(|(_, own)| *own == part)?;
        Some((format!("{before}{}.{mlx}", e.mlx), number.parse().ok()?))
    })
}

/// Refuses a model type whose names mlx-lm may have otherwise, or that it does not have.
///
/// # Errors
/// [`Code::UnsupportedModel`].
pub(super) fn check_type(model_type: &str) -> Result<()> {
    if KNOWN.contains(&model_type) {
        return Ok(());
    }
    let message = format!(
        "it is not known what mlx-lm calls the modules of `{}`",
        crate::peft::json::cut(model_type)
    );
    Err(Error::new(Code::UnsupportedModel, message))
}

/// A module's path within its layer, as `keys` has it, with the layer's number; a whole path where it is in none.
pub(super) fn key_of(path: &str) -> (String, Option<u32>) {
    let (template, layer) = split_layer(path);
    match (template.split_once(&format!("{LAYER_PLACE}.")), layer) {
        (Some((_, inner)), Some(layer)) => (inner.to_owned(), Some(layer)),
        _ => (path.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Base(&'static [&'static str]);

    impl BaseShapes for Base {
        fn weight_shape(&self, _: &str) -> Option<Vec<usize>> {
            None
        }

        fn has_tensor(&self, name: &str) -> bool {
            self.0.contains(&name)
        }

        fn has_module(&self, _: &str) -> bool {
            false
        }
    }

    /// Breaks where stacked experts become others' modules, or other experts than the base has.
    #[test]
    fn the_base_tells_what_its_experts_are_called() {
        let base = Base(&[
            "model.layers.0.block_sparse_moe.experts.0.w1.weight",
            "model.layers.0.block_sparse_moe.experts.1.w1.weight",
        ]);
        let path = "model.layers.0.block_sparse_moe.switch_mlp.gate_proj";
        let of = |n| experts_of(path, n, Some(&base));
        let template = of(2).unwrap();
        assert_eq!(template, "model.layers.0.block_sparse_moe.experts.{}.w1");
        assert_eq!(
            numbered(&template, 1),
            "model.layers.0.block_sparse_moe.experts.1.w1"
        );
        assert_eq!(of(3).unwrap_err().code(), Code::UnmatchedModule);
        assert_eq!(of(1).unwrap_err().code(), Code::UnmatchedModule);
        let none = experts_of(path, 2, None).unwrap_err();
        assert_eq!(none.code(), Code::NeedsBase);
        let back = stacked("model.layers.0.block_sparse_moe.experts.1.w1", "mixtral");
        assert_eq!(back, Some((path.to_owned(), 1)));
        assert_eq!(stacked("model.layers.0.mlp.experts.1.w1", "mixtral"), None);
    }

    #[test]
    fn names_go_there_and_back() {
        let class = "model.language_model.layers.3.mlp.up_proj";
        let mlx = mlx_name(class, "gemma3");
        assert_eq!(mlx, "language_model.model.layers.3.mlp.up_proj");
        assert_eq!(mlx_name(class, "llama"), class);
        let base = Base(&["model.language_model.layers.3.mlp.up_proj.weight"]);
        assert_eq!(class_name(&mlx, Some(&base)), class);
        assert_eq!(class_name(&mlx, None), mlx);
        assert_eq!(key_of(&mlx), ("mlp.up_proj".into(), Some(3)));
        assert_eq!(key_of("lm_head"), ("lm_head".into(), None));
        assert_eq!(
            check_type("unheard_of").unwrap_err().code(),
            Code::UnsupportedModel
        );
        check_type("qwen3_moe").unwrap();
    }
}
