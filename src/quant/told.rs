//! How a base model's weights are stored, in a few words.

use std::path::Path;

use super::checkpoint::Quantised;
use super::config::Config;
use super::unknown;
use crate::error::{Code, Result};
use crate::safetensors::Checkpoint;

/// How the weights of the base in a folder, or in a file, are stored: `plain`; the ways in which they are quantised, as
/// people call them, that of most weights first, joined by `; `; or why one of them is not read. Where the folder has
/// no weights, what its config says.
///
/// # Errors
/// [`Code::NotFound`] where there is neither; [`Code::ConfigInvalid`], [`Code::Io`], and those of opening a checkpoint.
pub(crate) fn kind_of_base(path: &Path) -> Result<String> {
    let base = match Checkpoint::open(path) {
        Ok(base) => base,
        Err(e) if e.code() == Code::NotFound && path.is_dir() => {
            let config = Config::of_folder(path)?.ok_or(e)?;
            let method = config.method();
            return Ok(
                method.map_or_else(plain, |m| format!("{}, by its config", unknown::name(&m)))
            );
        }
        Err(e) => return Err(e),
    };
    match Quantised::of(&base) {
        Ok(None) => Ok(plain()),
        Ok(Some(quantised)) => {
            let mut kinds: Vec<(&str, usize)> = quantised.kinds().into_iter().collect();
            kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            let kinds: Vec<&str> = kinds.into_iter().map(|(kind, _)| kind).collect();
            Ok(kinds.join("; "))
        }
        Err(e) if e.code() == Code::BaseDtype => Ok(e.message().to_owned()),
        Err(e) => Err(e),
    }
}

fn plain() -> String {
    "plain".to_owned()
}
