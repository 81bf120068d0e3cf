//! Whether a base is the one that an adapter was trained over, as far as both say what they are called.

use super::request::MergeInput;
use crate::adapter::{quantisation_of_name, unquantised_name};
use crate::base::Called;
use crate::error::Result;
use crate::safetensors::Checkpoint;

/// What the base that is merged into is called.
pub(super) struct BaseName(Called);

impl BaseName {
    /// # Errors
    /// Those of reading the base's config.
    pub(super) fn of(base: &Checkpoint) -> Result<Self> {
        Called::of(base.folder()).map(Self)
    }

    /// A note where an adapter was trained over a base that is called otherwise.
    pub(super) fn note(&self, input: &MergeInput) -> Option<String> {
        let base = input.adapter.base.as_ref()?;
        let warning = self.warning(base.name.as_deref()?)?;
        Some(format!("{} {warning}", input.label))
    }

    /// What to say where the base is called otherwise than the one that an adapter was trained over.
    pub(super) fn warning(&self, trained_over: &str) -> Option<String> {
        let own = self.0.own.as_deref()?;
        let same = |name: &str| plain(name) == plain(trained_over);
        (!same(own) && !same(&self.0.folder)).then(|| {
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
        let called = |own: Option<&str>, folder: &str| {
            BaseName(Called {
                own: own.map(str::to_owned),
                folder: folder.to_owned(),
            })
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
