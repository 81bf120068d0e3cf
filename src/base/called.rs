//! What a base model is called by itself and by where it lies.

use serde_json::Value;

use super::{hub_name, read_config_of};
use crate::error::Result;
use std::path::Path;

/// Names of a base. Nothing is known of most local folders but their own.
#[derive(Debug)]
pub(crate) struct Called {
    /// `owner/name`, as the Hub's download cache or the base's config has it.
    pub(crate) own: Option<String>,
    /// The name of its folder.
    pub(crate) folder: String,
}

impl Called {
    /// Of the base in a folder.
    ///
    /// # Errors
    /// Those of reading the base's config.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let config = read_config_of(folder)?;
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let names = folder.components().rev();
        let names = names.map(|c| c.as_os_str().to_string_lossy().into_owned());
        let cached = names.clone().find_map(|name| {
            let rest = name.strip_prefix("models--")?;
            Some(rest.replacen("--", "/", 1))
        });
        let told = config.as_ref().and_then(|c| c.get("_name_or_path"));
        let told = told
            .and_then(Value::as_str)
            .filter(|name| name.contains('/'));
        let told = told.and_then(hub_name).map(str::to_owned);
        Ok(Self {
            own: cached.or(told),
            folder: names.clone().next().unwrap_or_default(),
        })
    }
}
