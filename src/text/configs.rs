//! What the configs beside a model say about its special tokens and its chat template.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, parent, read_limited};

pub(super) const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// A JSON file, or the default where there is none.
pub(super) fn read_json<T: DeserializeOwned + Default>(path: &Path, code: Code) -> Result<T> {
    if !path.exists() {
        return Ok(T::default());
    }
    check_inside(parent(path), path)?;
    let bytes = read_limited(path, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::new(code, format!("not valid: {e}"))
            .file(path)
            .cause(e)
    })
}

#[derive(Deserialize, Default)]
pub(super) struct TokenizerConfig {
    pub(super) add_bos_token: Option<bool>,
    pub(super) bos_token: Option<TokenText>,
    pub(super) eos_token: Option<TokenText>,
    pub(super) unk_token: Option<TokenText>,
    pub(super) pad_token: Option<TokenText>,
    pub(super) chat_template: Option<TemplateText>,
}

impl TokenizerConfig {
    pub(super) fn specials(&self) -> Vec<(&'static str, String)> {
        let named = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        let present = named.into_iter();
        present
            .filter_map(|(name, token)| Some((name, token.as_ref()?.text().to_owned())))
            .collect()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum TokenText {
    Text(String),
    Added { content: String },
}

impl TokenText {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum TemplateText {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
pub(super) struct NamedTemplate {
    pub(super) name: String,
    pub(super) template: String,
}

#[derive(Deserialize, Default)]
pub(super) struct ModelConfig {
    pub(super) bos_token_id: Option<Ids>,
    pub(super) eos_token_id: Option<Ids>,
    pub(super) vocab_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(i64),
    Many(Vec<i64>),
}

impl Ids {
    pub(super) fn list(self) -> Vec<i64> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}
