//! `adapter_config.json` as mlx-lm reads it: which modules, of which layers, and by what they are multiplied.

use crate::adapter::MAX_RANK;
use crate::base::hub_name;
use crate::error::{Code, Error, Result};
use crate::peft::json::{Fields, Json, cut, wrong};

/// What was trained (`fine_tune_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FineTune {
    Lora,
    Dora,
    /// The weights of whole layers.
    Full,
}

/// What the config says of the update.
#[derive(Debug)]
pub(super) struct MlxConfig {
    pub(super) kind: FineTune,
    /// How many of the last layers are adapted; `None` for all, as mlx-lm takes zero and less.
    pub(super) num_layers: Option<usize>,
    /// Rank and scale; `None` with [`FineTune::Full`].
    pub(super) update: Option<Update>,
    /// Module paths within a layer, or whole ones; `None` for every linear module and embedding in a layer.
    pub(super) keys: Option<Vec<String>>,
    /// The base, where its name is one.
    pub(super) base: Option<String>,
    pub(super) notes: Vec<String>,
}

/// `lora_parameters`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Update {
    pub(super) rank: usize,
    /// Multiplies the update as it is: no rank divides it.
    pub(super) scale: f64,
}

impl MlxConfig {
    /// Parses one. Keys that steer training alone (`iters`, `seed`, `lr_schedule`, …) are skipped.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`], [`Code::DuplicateKey`], [`Code::ConfigMissingKey`], [`Code::BadAlpha`];
    /// [`Code::UnsupportedVariant`] for a `fine_tune_type` that mlx-lm does not have, and for a config of early
    /// 2024 in which alpha may or may not multiply.
    pub(super) fn from_slice(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(Json::parse(bytes)?)?;
        let kind = match fields.text("fine_tune_type")?.as_deref() {
            None | Some("lora") => FineTune::Lora,
            Some("dora") => FineTune::Dora,
            Some("full") => FineTune::Full,
            Some(other) => {
                let message = format!(
                    "`fine_tune_type` is \"{}\", not lora, dora or full",
                    cut(other)
                );
                return Err(Error::new(Code::UnsupportedVariant, message));
            }
        };
        let mut config = Self {
            kind,
            num_layers: None,
            update: None,
            keys: None,
            base: fields
                .text("model")?
                .and_then(|n| hub_name(&n).map(str::to_owned)),
            notes: Vec::new(),
        };
        if kind != FineTune::Full {
            config.low_rank(&mut fields)?;
        }
        Ok(config)
    }

    fn low_rank(&mut self, fields: &mut Fields) -> Result<()> {
        let missing = |key: &str| {
            let message = format!("`{key}` is missing, without which mlx-lm loads no adapter");
            Error::new(Code::ConfigMissingKey, message)
        };
        let parameters = match fields.take("lora_parameters") {
            Json::Null => return Err(missing("lora_parameters")),
            value => Fields::new(value).map_err(|_| {
                let message = "`lora_parameters` is not a JSON object";
                Error::new(Code::ConfigInvalid, message)
            })?,
        };
        let older = fields.has("lora_layers") && !fields.has("num_layers");
        let key = if older { "lora_layers" } else { "num_layers" };
        self.num_layers = match fields.take(key) {
            Json::Null => return Err(missing("num_layers")),
            Json::Int(n) => usize::try_from(n).ok().filter(|n| *n > 0),
            other => return Err(wrong(key, &other, "an integer")),
        };
        self.parameters(parameters, older)
    }

    fn parameters(&mut self, mut fields: Fields, older: bool) -> Result<()> {
        let missing = |key: &str, hint: &str| {
            let message = format!("`lora_parameters` has no `{key}`");
            Error::new(Code::ConfigMissingKey, message).hint(hint)
        };
        let alpha = fields.number("alpha")?;
        let Some(scale) = fields.number("scale")? else {
            return Err(missing(
                "scale",
                "mlx-lm multiplies by `scale` and by nothing else; write the one that the run had",
            ));
        };
        let rank = match fields.take("rank") {
            Json::Null => return Err(missing("rank", "it is that of the tensors")),
            Json::Int(n) if n > 0 && n <= MAX_RANK as i128 => n as usize,
            other => return Err(wrong("rank", &other, "a positive integer")),
        };
        if alpha.is_some() && older {
            let message = "`alpha` beside `lora_layers` multiplied in mlx-lm of early 2024, and not in later ones";
            return Err(Error::new(Code::UnsupportedVariant, message).hint(
                "take `alpha` out, call `lora_layers` `num_layers`, and make `scale` what the run multiplied by: scale · alpha / rank, or scale",
            ));
        }
        if let Some(alpha) = alpha {
            self.notes.push(format!(
                "`alpha` is {alpha} and has no effect: mlx-lm multiplies by `scale` alone"
            ));
        }
        if !(scale.is_finite() && scale > 0.0 && (scale as f32).is_finite()) {
            let message = format!("`scale` is {scale}, which is no usable scaling");
            return Err(Error::new(Code::BadAlpha, message));
        }
        self.keys = match fields.take("keys") {
            Json::Null => None,
            value => Some(crate::peft::json::texts("keys", value)?),
        };
        self.update = Some(Update { rank, scale });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str) -> Code {
        MlxConfig::from_slice(json.as_bytes()).unwrap_err().code()
    }

    /// Breaks where a config means another update than mlx-lm makes of it.
    #[test]
    fn scale_multiplies_and_alpha_does_not() {
        let json = r#"{"num_layers": 4, "model": "org/name",
            "lora_parameters": {"rank": 8, "alpha": 16, "scale": 10.0, "keys": ["self_attn.q_proj"]}}"#;
        let config = MlxConfig::from_slice(json.as_bytes()).unwrap();
        let update = Update {
            rank: 8,
            scale: 10.0,
        };
        assert_eq!(config.update, Some(update));
        assert_eq!((config.kind, config.num_layers), (FineTune::Lora, Some(4)));
        assert_eq!(
            config.keys.as_deref(),
            Some(&["self_attn.q_proj".into()][..])
        );
        assert_eq!(
            (config.base.as_deref(), config.notes.len()),
            (Some("org/name"), 1)
        );
        let all = r#"{"fine_tune_type": "dora", "num_layers": -1, "lora_parameters": {"rank": 8, "scale": 1}}"#;
        let config = MlxConfig::from_slice(all.as_bytes()).unwrap();
        assert_eq!((config.kind, config.num_layers), (FineTune::Dora, None));
        let full = MlxConfig::from_slice(br#"{"fine_tune_type": "full"}"#).unwrap();
        assert_eq!((full.kind, full.update), (FineTune::Full, None));
    }

    #[test]
    fn what_is_not_told_is_refused() {
        let lora = |inner: &str| format!(r#"{{"num_layers": 1, "lora_parameters": {inner}}}"#);
        assert_eq!(
            code(r#"{"fine_tune_type": "ia3"}"#),
            Code::UnsupportedVariant
        );
        assert_eq!(code(r#"{"num_layers": 1}"#), Code::ConfigMissingKey);
        assert_eq!(code(&lora("[]")), Code::ConfigInvalid);
        assert_eq!(
            code(&lora(r#"{"rank": 8, "alpha": 16}"#)),
            Code::ConfigMissingKey
        );
        assert_eq!(code(&lora(r#"{"scale": 2}"#)), Code::ConfigMissingKey);
        assert_eq!(
            code(&lora(r#"{"rank": 0, "scale": 2}"#)),
            Code::ConfigInvalid
        );
        assert_eq!(code(&lora(r#"{"rank": 1, "scale": 0}"#)), Code::BadAlpha);
        let older =
            r#"{"lora_layers": 1, "lora_parameters": {"rank": 8, "alpha": 16, "scale": 10}}"#;
        assert_eq!(code(older), Code::UnsupportedVariant);
        let plain = older.replace(r#""alpha": 16, "#, "");
        assert_eq!(
            MlxConfig::from_slice(plain.as_bytes()).unwrap().num_layers,
            Some(1)
        );
    }
}
