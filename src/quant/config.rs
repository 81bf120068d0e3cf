//! What a model's config says of its quantisation.

use std::path::Path;

use serde_json::Value;

use crate::base::architecture::Architecture;
use crate::base::{MAX_CONFIG_BYTES, read_config, read_config_of};
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// The keys of a config that say how the weights are quantised.
pub(crate) const KEYS: [&str; 3] = ["quantization_config", "compression_config", MLX];
/// The key of mlx-lm, which writes its value as `quantization_config` once more.
const MLX: &str = "quantization";
/// Files beside a config that say so in its place.
pub(crate) const OTHER_FILES: [&str; 3] = [
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
];
/// The key in the first of them.
const NESTED: &str = "quantization";

/// What is said of the quantisation, by `config.json` or by a file in its place.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// The value of one of [`KEYS`], or what stands for it.
    value: Value,
    /// Whether that is what mlx-lm writes.
    is_mlx: bool,
    /// The dtype of the model that the weights are made for.
    pub(super) dtype: Option<Dtype>,
    /// What DeepSeek's experts are, where they are something else than other weights.
    pub(super) expert_dtype: Option<String>,
    /// What is known of the model's layers.
    pub(super) architecture: Architecture,
}

impl Config {
    pub(super) fn of(base: &Checkpoint) -> Result<Self> {
        let folder = base.is_dir().then(|| base.folder());
        Self::from_parts(read_config(base)?.unwrap_or_default(), folder)
    }

    /// Of a folder without weights; `None` where it has no config.
    pub(super) fn of_folder(folder: &Path) -> Result<Option<Self>> {
        let config = read_config_of(folder)?;
        config
            .map(|c| Self::from_parts(c, Some(folder)))
            .transpose()
    }

    /// Of a config, and the folder where another file may speak in its place.
    fn from_parts(config: Value, folder: Option<&Path>) -> Result<Self> {
        let text = |key: &str| config.get("text_config").and_then(|t| t.get(key));
        let dtype = ["dtype", "torch_dtype"].into_iter().find_map(|key| {
            let value = config.get(key).or_else(|| text(key));
            torch_dtype(value?.as_str()?)
        });
        let own = KEYS
            .into_iter()
            .find_map(|key| config.get(key).or_else(|| text(key)))
            .filter(|v| v.is_object());
        let named = own.is_some_and(|v| v.get("quant_method").is_some());
        let mlx = config.get(MLX).filter(|v| is_mlx(v) && !named);
        let value = match mlx.or(own) {
            Some(value) => value.clone(),
            None => folder.map(beside).transpose()?.unwrap_or_default(),
        };
        let expert_dtype = value
            .get("expert_dtype")
            .or_else(|| config.get("expert_dtype"));
        Ok(Self {
            expert_dtype: expert_dtype.and_then(Value::as_str).map(str::to_owned),
            is_mlx: mlx.is_some(),
            value,
            dtype,
            architecture: Architecture::of_config(Some(&config)),
        })
    }

    /// What quantised the model, in the words of its config, lower case; `None` where it does not say.
    pub(super) fn method(&self) -> Option<String> {
        let text = |key: &str| self.value.get(key).and_then(Value::as_str);
        let flag = |key: &str| self.flag(key);
        if self.is_mlx {
            return Some("mlx".to_owned());
        }
        if let Some(method) = text("quant_method") {
            return Some(method.to_ascii_lowercase());
        }
        if flag("load_in_4bit") || flag("load_in_8bit") || flag("_load_in_4bit") {
            return Some("bitsandbytes".to_owned());
        }
        if self.value.get("quant_algo").is_some() {
            return Some("modelopt".to_owned());
        }
        if self.value.get("w_bit").is_some() {
            return Some("awq".to_owned());
        }
        self.value.get("desc_act").map(|_| "gptq".to_owned())
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key).and_then(Value::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.value.get(key).and_then(Value::as_bool) == Some(true)
    }

    pub(super) fn number(&self, key: &str) -> Option<usize> {
        let number = self.value.get(key).and_then(Value::as_u64)?;
        usize::try_from(number).ok()
    }

    /// Bits and inputs of a group, as mlx-lm says them of a module, or else of all; `None` where it does not.
    pub(super) fn mlx(&self, module: &str) -> Option<(usize, usize)> {
        if !self.is_mlx {
            return None;
        }
        let own = self.value.get(module).filter(|v| v.is_object());
        let of = own.unwrap_or(&self.value);
        let number = |key: &str| usize::try_from(of.get(key)?.as_u64()?).ok();
        Some((number("bits")?, number("group_size")?))
    }

    /// Rows and columns of the blocks that share an FP8 scale.
    pub(super) fn block(&self) -> Option<(usize, usize)> {
        pair(self.value.get("weight_block_size"))
    }

    /// The formats that compressed-tensors wrote: of all, of groups, of what is sparse.
    pub(super) fn formats(&self) -> Vec<String> {
        let groups = self.value.get("config_groups").and_then(Value::as_object);
        let groups = groups.into_iter().flat_map(|g| g.values());
        let sparse = self.value.get("sparsity_config");
        let places = [Some(&self.value), sparse].into_iter().flatten();
        places
            .chain(groups)
            .filter_map(|place| place.get("format").and_then(Value::as_str))
            .map(str::to_ascii_lowercase)
            .collect()
    }

    /// Whether compressed-tensors turned the weights, for a model that turns its activations.
    pub(super) fn has_transforms(&self) -> bool {
        let groups = self.value.get("transform_config");
        let groups = groups.and_then(|t| t.get("config_groups"));
        groups
            .and_then(Value::as_object)
            .is_some_and(|g| !g.is_empty())
    }

    /// The settings for weights in each of compressed-tensors' groups.
    pub(super) fn weight_groups(&self) -> Vec<WeightGroup> {
        let groups = self.value.get("config_groups").and_then(Value::as_object);
        let groups = groups.into_iter().flat_map(|g| g.values());
        let weights = groups.filter_map(|g| g.get("weights").filter(|w| w.is_object()));
        weights
            .map(|w| WeightGroup {
                bits: w.get("num_bits").and_then(Value::as_u64).unwrap_or(0) as usize,
                block: pair(w.get("block_structure")),
            })
            .collect()
    }
}

/// How compressed-tensors quantised a group of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightGroup {
    pub(super) bits: usize,
    pub(super) block: Option<(usize, usize)>,
}

fn is_mlx(value: &Value) -> bool {
    let number = |key: &str| value.get(key).is_some_and(Value::is_u64);
    number("bits") && number("group_size")
}

fn pair(value: Option<&Value>) -> Option<(usize, usize)> {
    let [rows, cols] = value?.as_array()?.as_slice() else {
        return None;
    };
    Some((rows.as_u64()? as usize, cols.as_u64()? as usize))
}

fn torch_dtype(name: &str) -> Option<Dtype> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        _ => None,
    }
}

/// What a file beside the config says; null where there is none.
fn beside(folder: &Path) -> Result<Value> {
    for name in OTHER_FILES {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        check_inside(folder, &path)?;
        let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Code::ConfigInvalid, e.to_string()).file(&path))?;
        let value = value.get(NESTED).cloned().unwrap_or(value);
        if value.is_object() {
            return Ok(value);
        }
    }
    Ok(Value::Null)
}
