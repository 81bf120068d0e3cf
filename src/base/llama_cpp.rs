//! How llama.cpp calls and stores the weights of a model, by the class that its config names: facts of
//! llama.cpp's converter, in `llama_cpp.json` beside this file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::architecture::{Architecture, class_of_task};
use super::config::read_config_of;
use super::rewrite::renamed;
use crate::error::{Code, Error, Result};

const TABLE: &str = include_str!("llama_cpp.json");
/// The place of a layer's number in names of the table.
const PLACE: &str = "{}";
/// The task whose class stands for another head of the same type.
const USUAL: &str = "CAUSAL_LM";

#[derive(Deserialize)]
struct Table {
    weights: BTreeMap<String, Weight>,
    classes: BTreeMap<String, Class>,
}

/// One kind of weight.
#[derive(Debug, Clone, Deserialize)]
struct Weight {
    name: String,
    out: String,
    r#in: String,
    /// Whether llama.cpp looks rows of A up and multiplies with B: of the input embedding.
    #[serde(default)]
    flipped: bool,
}

/// One class of models.
#[derive(Debug, Clone, Deserialize)]
struct Class {
    arch: String,
    /// What stands before the names of the table.
    prefixes: Vec<String>,
    /// Weights whose rows llama.cpp has in another order for its rotary embedding, and the config's key
    /// of their number of heads.
    #[serde(default)]
    rotary: BTreeMap<String, String>,
    /// Whether llama.cpp takes the input embedding for the output, whatever the config says.
    #[serde(default)]
    tied: bool,
    /// What the class has for keys that its config leaves out: a number, or another key.
    #[serde(default)]
    defaults: BTreeMap<String, Value>,
}

/// A model as llama.cpp knows it.
#[derive(Debug)]
pub(crate) struct LlamaCpp {
    class: Class,
    weights: BTreeMap<String, Weight>,
    config: Value,
    tied: bool,
    renames: Vec<(String, String)>,
}

/// A weight as llama.cpp knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufWeight {
    /// Its name, without `.weight`.
    pub(crate) name: String,
    /// Output features; the embedding's width of the input embedding.
    pub(crate) out: usize,
    /// Input features; the vocabulary of the input embedding.
    pub(crate) in_features: usize,
    /// The heads in each of which llama.cpp interleaves the two halves of the rows.
    pub(crate) interleaved: Option<usize>,
    /// Of the input embedding: A is stored (in, r).
    pub(crate) flipped: bool,
}

impl LlamaCpp {
    /// Of the model whose `config.json` is in a folder.
    ///
    /// # Errors
    /// Those of reading it; [`Code::ModelConfig`] where there is none, [`Code::UnsupportedModel`] for a
    /// class that the table has not.
    pub(crate) fn in_folder(folder: &Path, renames: &[(String, String)]) -> Result<Self> {
        let config = read_config_of(folder)?.ok_or_else(|| {
            Error::new(Code::ModelConfig, "the folder has no config.json").file(folder)
        })?;
        Self::of_config(config, renames).map_err(|e| e.file(folder))
    }

    fn of_config(config: Value, renames: &[(String, String)]) -> Result<Self> {
        let table: Table = serde_json::from_str(TABLE)
            .map_err(|e| Error::new(Code::Internal, "the table of llama.cpp's names").cause(e))?;
        let architecture = Architecture::of_config(Some(&config));
        let class = class(&table, &config, &architecture)?;
        let ties = architecture.tied().iter();
        let mut ties = ties.map(|t| t.told.unwrap_or(t.default));
        Ok(Self {
            tied: class.tied || ties.any(|tied| tied),
            class,
            weights: table.weights,
            config,
            renames: renames.to_vec(),
        })
    }

    /// What llama.cpp calls the architecture.
    pub(crate) fn arch(&self) -> &str {
        &self.class.arch
    }

    /// The weight of a module, by the name that an adapter has for it.
    ///
    /// # Errors
    /// [`Code::UnmatchedModule`] where llama.cpp's model has no such weight, or has it not to itself;
    /// [`Code::ModelConfig`] where the config does not give its size.
    pub(crate) fn weight(&self, module: &str) -> Result<GgufWeight> {
        let renamed = renamed(&self.renames, module);
        let module = renamed.as_deref().unwrap_or(module);
        let prefixes = self.class.prefixes.iter();
        let mut found = prefixes.filter_map(|p| {
            let (kind, layer) = numbered(module.strip_prefix(p.as_str())?);
            Some((self.weights.get(&kind)?, layer))
        });
        let Some((weight, layer)) = found.next() else {
            let message = format!("llama.cpp's `{}` has no weight for it", self.arch());
            return Err(Error::new(Code::UnmatchedModule, message).tensor(module));
        };
        if let Some(layer) = layer
            && layer >= self.number("num_hidden_layers")?
        {
            let message = format!("the model has no layer {layer}");
            return Err(Error::new(Code::UnmatchedModule, message).tensor(module));
        }
        if layer.is_none() && self.tied {
            let message =
                "llama.cpp has one tensor for this and its twin, and applies no update to it";
            return Err(Error::new(Code::TiedEmbedding, message)
                .tensor(module)
                .hint("merge it, and convert the merged model"));
        }
        let heads = self.class.rotary.get(&weight.name);
        let heads = heads.map(|key| self.number(key)).transpose()?;
        Ok(GgufWeight {
            name: match layer {
                Some(layer) => weight.name.replacen(PLACE, &layer.to_string(), 1),
                None => weight.name.clone(),
            },
            out: self.size(&weight.out)?,
            in_features: self.size(&weight.r#in)?,
            interleaved: heads,
            flipped: weight.flipped,
        })
    }

    /// A width of the table.
    fn size(&self, name: &str) -> Result<usize> {
        let wide = |heads: &str| -> Result<usize> {
            let head = match self.number("head_dim") {
                Ok(width) => width,
                Err(_) => self.number("hidden_size")? / self.number("num_attention_heads")?,
            };
            Ok(self.number(heads)?.saturating_mul(head))
        };
        match name {
            "q" => wide("num_attention_heads"),
            "kv" => wide("num_key_value_heads"),
            "ffn" => self.number("intermediate_size"),
            "vocab" => self.number("vocab_size"),
            _ => self.number("hidden_size"),
        }
    }

    /// A number above zero of the config, of the text model where there are others.
    fn number(&self, key: &str) -> Result<usize> {
        let nested = self.config.get("text_config").filter(|c| c.is_object());
        let config = nested.unwrap_or(&self.config);
        let told = config.get(key).filter(|v| !v.is_null());
        let value = match (told, self.class.defaults.get(key)) {
            (Some(value), _) => value.as_u64(),
            (None, Some(Value::String(other))) => return self.number(other),
            (None, default) => default.and_then(Value::as_u64),
        };
        let value = value.and_then(|n| usize::try_from(n).ok());
        value.filter(|n| *n > 0).ok_or_else(|| {
            let message = format!("config.json has no whole number above zero for `{key}`");
            Error::new(Code::ModelConfig, message)
        })
    }
}

/// The class that a config names; of one with another head the language model of the same type, whose
/// layers are the same.
fn class(table: &Table, config: &Value, architecture: &Architecture) -> Result<Class> {
    let named = config.get("architectures").and_then(|a| a.get(0)?.as_str());
    if let Some(class) = named.and_then(|name| table.classes.get(name)) {
        return Ok(class.clone());
    }
    let model_type = config.get("model_type").and_then(Value::as_str);
    let known = named.is_none() || architecture.is_class_known();
    let usual = model_type.filter(|_| known);
    let usual = usual.and_then(|t| class_of_task(t, USUAL));
    if let Some(class) = usual.and_then(|name| table.classes.get(&name)) {
        return Ok(class.clone());
    }
    let name = named
        .or(model_type)
        .unwrap_or("a config that names no class");
    let known: Vec<&str> = table.classes.keys().map(String::as_str).collect();
    let message = format!("`{name}`: nobody knows what llama.cpp calls its weights");
    Err(Error::new(Code::UnsupportedModel, message).hint(format!("known are {}", known.join(", "))))
}

/// A name with the place of its layer's number, and the number.
fn numbered(name: &str) -> (String, Option<usize>) {
    let rest = name.strip_prefix("layers.").and_then(|r| r.split_once('.'));
    let number = rest.and_then(|(digits, rest)| {
        let number = digits.parse::<usize>().ok()?;
        (number.to_string() == digits).then(|| (format!("layers.{PLACE}.{rest}"), Some(number)))
    });
    number.unwrap_or_else(|| (name.to_owned(), None))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama(more: Value) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2,
            "num_hidden_layers": 3, "vocab_size": 50, "tie_word_embeddings": false,
        });
        let more = more.as_object().cloned().unwrap_or_default();
        config.as_object_mut().unwrap().extend(more);
        config
    }

    fn weight(config: &Value, module: &str) -> Result<GgufWeight> {
        LlamaCpp::of_config(config.clone(), &[])?.weight(module)
    }

    #[test]
    fn weights_have_llama_cpps_names_sizes_and_order() {
        let k = weight(&llama(json!({})), "model.layers.2.self_attn.k_proj").unwrap();
        let want = GgufWeight {
            name: "blk.2.attn_k".into(),
            out: 16,
            in_features: 64,
            interleaved: Some(2),
            flipped: false,
        };
        assert_eq!(k, want);
        let q = weight(&llama(json!({})), "layers.0.self_attn.q_proj").unwrap();
        assert_eq!((q.name.as_str(), q.interleaved), ("blk.0.attn_q", Some(8)));
        let embedding = weight(&llama(json!({})), "model.embed_tokens").unwrap();
        assert_eq!((embedding.in_features, embedding.flipped), (50, true));
        let qwen = llama(json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}));
        let q = weight(&qwen, "model.layers.0.self_attn.q_proj").unwrap();
        assert_eq!(q.interleaved, None);
    }

    /// Breaks where an update of one of two tied tensors is written, which llama.cpp cannot apply.
    #[test]
    fn tied_embeddings_are_refused() {
        let tied = llama(json!({"tie_word_embeddings": true}));
        for module in ["model.embed_tokens", "lm_head"] {
            assert_eq!(
                weight(&tied, module).unwrap_err().code(),
                Code::TiedEmbedding
            );
            assert!(weight(&llama(json!({})), module).is_ok());
        }
        let gemma = llama(json!({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}));
        assert_eq!(
            weight(&gemma, "lm_head").unwrap_err().code(),
            Code::TiedEmbedding
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let refused = |more: Value, module: &str| weight(&llama(more), module).unwrap_err().code();
        for module in [
            "model.layers.3.self_attn.q_proj",
            "model.layers.00.self_attn.q_proj",
            "model.layers.0.self_attn.rotary",
            "vision.layers.0.self_attn.q_proj",
        ] {
            assert_eq!(
                refused(json!({}), module),
                Code::UnmatchedModule,
                "{module}"
            );
        }
        let q = "model.layers.0.self_attn.q_proj";
        let own = json!({"architectures": ["MyLlamaForCausalLM"]});
        assert_eq!(refused(own, q), Code::UnsupportedModel);
        let other = json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"});
        assert_eq!(refused(other, q), Code::UnsupportedModel);
        assert_eq!(refused(json!({"hidden_size": "x"}), q), Code::ModelConfig);
        let classifier = json!({"architectures": ["LlamaForSequenceClassification"]});
        assert!(weight(&llama(classifier), q).is_ok());
    }

    /// Breaks where a class of the table is none of transformers', or lacks a default that is asked for.
    #[test]
    fn the_table_is_whole() {
        let table: Table = serde_json::from_str(TABLE).unwrap();
        for (name, class) in &table.classes {
            for key in class.rotary.keys() {
                assert!(
                    table.weights.values().any(|w| w.name == *key),
                    "{name} {key}"
                );
            }
        }
    }
}
