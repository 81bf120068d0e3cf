//! A tokenizer that lies beside an adapter, for a vocabulary that was changed in training.

use std::path::Path;

use super::request::MergeInput;
use crate::error::{Code, Error, Result};
use crate::fs::{check_inside, read_limited};
use crate::safetensors::Checkpoint;

/// The files that transformers' tokenizers are saved as.
const FILES: [&str; 16] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// Largest of them that is read.
const MAX_BYTES: u64 = 256 << 20;

/// The files of the tokenizer that lies in the folder of one of the adapters, with their names.
///
/// # Errors
/// [`Code::Usage`] where none of them has one, or several do, or the output is no directory;
/// [`Code::Io`] and its kin.
pub(super) fn of_adapters(
    base: &Checkpoint,
    inputs: &[MergeInput],
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    if !base.is_dir() {
        let message = "the base is one file, beside which a tokenizer has no place";
        return Err(Error::new(Code::Usage, message).file(base.path()));
    }
    let folders = inputs.iter().filter_map(|i| i.folder.as_deref());
    let mut with = folders.filter(|folder| lies_in(folder));
    match (with.next(), with.next()) {
        (Some(folder), None) => read(folder),
        (None, _) => Err(
            Error::new(Code::Usage, "no adapter's folder has a tokenizer")
                .hint("only PEFT directories can have one; copy the files into the output"),
        ),
        _ => Err(
            Error::new(Code::Usage, "several adapters' folders have a tokenizer")
                .hint("copy the files of one into the output"),
        ),
    }
}

/// Whether a tokenizer lies in the folder.
pub(super) fn lies_in(folder: &Path) -> bool {
    FILES.iter().any(|name| folder.join(name).is_file())
}

fn read(folder: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let there = FILES.into_iter().filter(|name| folder.join(name).is_file());
    there
        .map(|name| {
            let path = folder.join(name);
            check_inside(folder, &path)?;
            Ok((name, read_limited(&path, MAX_BYTES)?))
        })
        .collect()
}
