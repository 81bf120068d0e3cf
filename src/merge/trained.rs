//! Whether a base is the one that an adapter was trained over, as far as both say what they are called.

use serde_json::Value;

use super::request::MergeInput;
use crate::adapter::{quantisation_of_name, unquantised_name};
use crate::base::{hub_name, read_config};
use crate::error::Result;
use crate::safetensors::Checkpoint;

/// What a base is called by itself and by where it lies. Nothing is known of most local folders.
pub(super) struct Called {
    /// `owner/name`, as the Hub's download cache or the base's config has it.
    own: Option<String>,
    /// The name of its folder.
    folder: String,
}

impl Called {
    /// # Errors
    /// Those of reading the base's config.
    pub(super) fn of(base: &Checkpoint) -> Result<Self> {
        let folder = base.folder();
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let names = folder.components().rev();
        let names = names.map(|c| c.as_os_str().to_string_lossy().into_owned());
        let cached = names.clone().find_map(|name| {
            let rest = name.strip_prefix("models--")?;
            Some(rest.replacen("--", "/", 1))
        });
        let config = read_config(base)?;
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

    /// A note where an adapter was trained over a base that is called otherwise.
    pub(super) fn note(&self, input: &MergeInput) -> Option<String> {
        let base = input.adapter.base.as_ref()?;
        let warning = self.warning(base.name.as_deref()?)?;
        Some(format!("{} {warning}", input.label))
    }

    /// What to say where the base is called otherwise than the one that an adapter was trained over.
    pub(super) fn warning(&self, trained_over: &str) -> Option<String> {
        let own = self.own.as_deref()?;
        let same = |name: &str| plain(name) == plain(trained_over);
        (!same(own) && !same(&self.folder)).then(|| {
            format!("was trained over `{trained_over}`, and this base is called `{own}`: over another base it is another model")
        })
    }
}

/// A note on an adapter that was trained over a quantised base, going by what it calls it.
pub(super) fn over_quantised(input: &MergeInput) -> Option<String> {
    let base = input.adapter.base.as_ref()?;
    quantisation_of_name(base.name.as_deref()?)?;
    Some(format!(
        "{} was trained on a quantised base; merged into full weights it may behave slightly differently",
        input.label
    ))
}

/// A name without owner and quantisation, in letters and digits.
fn plain(name: &str) -> String {
    let name = unquantised_name(name);
    name.chars().filter(|c| c.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where another base goes unnoticed, or the same one by another path is complained of.
    #[test]
    fn only_a_base_that_has_a_name_is_another() {
        let called = |own: Option<&str>, folder: &str| Called {
            own: own.map(str::to_owned),
            folder: folder.to_owned(),
        };
        let other = called(Some("org/other-7b"), "abc");
        assert!(other.warning("meta-llama/Llama-2-7b-hf").is_some());
        for same in [
            called(None, "whatever"),
            called(Some("meta-llama/Llama-2-7b-hf"), "abc"),
            called(Some("mirror/llama-2-7b-hf"), "abc"),
            called(Some("org/other-7b"), "Llama-2-7b-hf"),
        ] {
            assert_eq!(same.warning("meta-llama/Llama-2-7b-hf"), None);
            assert_eq!(same.warning("unsloth/llama-2-7b-hf-bnb-4bit"), None);
        }
    }
}
