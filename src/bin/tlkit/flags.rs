//! The flags by which this command does what a hint of the library says.

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

/// What the user of the command is to do about an error.
pub(crate) fn hint(error: &Error) -> Option<&str> {
    let hint = error.hint_text()?;
    let known = HINTS.iter().find(|(library, _)| *library == hint);
    Some(known.map_or(hint, |(_, command)| command))
}
