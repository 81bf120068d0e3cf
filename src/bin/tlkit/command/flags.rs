//! The flags by which this command does what a hint of the library says.

use std::borrow::Cow;

use tlkit::Error;

/// A hint of the library, and the same with the flags of the command.
const HINTS: &[(&str, &str)] = &[
    (
        "choose another name, or let it be replaced",
        "choose another name, or pass --force to replace it",
    ),
    (
        "give the folder that has it",
        "pass --blobs DIR with the folder that has it",
    ),
    (
        "give the base model (only its headers are read)",
        "pass --base with the base model (only its headers are read)",
    ),
    (
        "export in the faithful form, or merge",
        "export without --portable, or merge",
    ),
    (
        "if they are one, give the base model; names are not compared then",
        "if they are one, pass --base; names are not compared then",
    ),
    (
        "use `cat` or `svd`, or the method of the same name that ends in `-svd`",
        "use --method cat or svd, or the method of the same name that ends in -svd",
    ),
    ("convert without a fit", "convert without --fit"),
    (
        "give a density above 0 and at most 1, which keeps all",
        "pass --density with a share above 0 and at most 1, which keeps all",
    ),
    (
        "raise the rank, or the error at which one is left out",
        "raise --rank or --apart",
    ),
    (
        "give at least 10, or others to hold out",
        "give at least 10, or others with --valid",
    ),
    (
        "record one when converting, with the base at hand",
        "record one when converting: tlkit convert peft-to-tied … --base BASE",
    ),
    (
        "merge it directly, without converting",
        "merge it directly: tlkit merge BASE ADAPTER_DIR",
    ),
    ("export as LoRA", "export as LoRA, without --as vera"),
    (
        "choose the policy `untie` (an output tensor of its own) or `shared` (change both, as PEFT does)",
        "ask for --tied untie (an output tensor of its own) or --tied shared (change both, as PEFT does)",
    ),
    (
        "choose the policy `untie` for tied embeddings",
        "ask for --tied untie",
    ),
    (
        "keep a copy of the base, and accept the file as undigested to restore what it names",
        "keep a copy of the base, and pass --undigested to restore what it names",
    ),
    (
        "use the device `cpu`; the result is the same bytes",
        "use `--device cpu`; the result is the same bytes",
    ),
    ("use the device `cpu`", "use `--device cpu`"),
    (
        "allow it more of the device's memory",
        "give more with --device-memory",
    ),
    (
        "merge it, and say by a rename which is meant",
        "merge it, and say which: tlkit merge … --rename FROM=TO",
    ),
    (
        "all versions count until they are collected: keep fewer of them, or raise the quota",
        "all versions count until they are collected: `tlkit store gc --keep N` drops older ones, `tlkit store quota` raises the quota",
    ),
    (
        "set the quotas anew, or repair the store",
        "set quotas anew with `tlkit store quota`, or see `tlkit store fsck --repair`",
    ),
    (
        "it does not say for which name and version; sign it anew, or let root signatures count",
        "it does not say for which name and version; put it again with --sign, or pass --allow-root-signature",
    ),
];

/// The same of hints that end with a path, or a rename.
const BEFORE_PATHS: &[(&str, &str)] = &[
    ("resume the run in ", "go on with --resume "),
    (
        "if that is what is meant, rename ",
        "if that is what is meant, pass --rename ",
    ),
];

/// What the user of the command is to do about an error.
pub(crate) fn hint(error: &Error) -> Option<Cow<'_, str>> {
    let hint = error.hint_text()?;
    if let Some((_, command)) = HINTS.iter().find(|(library, _)| *library == hint) {
        return Some(Cow::Borrowed(command));
    }
    if let Some(name) = hint.strip_prefix("set `").and_then(|h| h.strip_suffix('`')) {
        let text = format!("pass --{name}, or set `{name}` in the config file");
        return Some(Cow::Owned(text));
    }
    let mut known = BEFORE_PATHS.iter();
    let with_path = known.find_map(|(library, command)| {
        let path = hint.strip_prefix(library)?;
        Some(Cow::Owned(format!("{command}{path}")))
    });
    Some(with_path.unwrap_or(Cow::Borrowed(hint)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::Path;

    use super::*;

    /// The library's code, with texts that go over several lines put together.
    fn library(folder: &Path, code: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("src/bin") {
                library(&path, code);
            } else if path.extension().is_some_and(|e| e == "rs") {
                for line in fs::read_to_string(&path).unwrap().lines() {
                    let line = line.trim_start();
                    code.push_str(line.strip_suffix('\\').unwrap_or(line));
                }
            }
        }
    }

    /// Breaks where the library says another hint than the one that flags are known for.
    #[test]
    fn the_library_has_the_hints_that_are_looked_for() {
        let mut code = String::new();
        library(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut code,
        );
        for (hint, _) in HINTS.iter().chain(BEFORE_PATHS) {
            assert!(code.contains(hint), "{hint}");
        }
    }
}
