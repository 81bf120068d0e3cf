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
    ("export as LoRA", "export as LoRA, without --as vera"),
    (
        "merge it, and say by a rename which is meant",
        "merge it, and say which: tlkit merge … --rename FROM=TO",
    ),
];

/// The same of hints that end with a path.
const BEFORE_PATHS: &[(&str, &str)] = &[("resume the run in ", "go on with --resume ")];

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
