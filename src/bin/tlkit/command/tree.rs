//! What the command can be told, as data: for those who offer the same elsewhere.

use clap::{ArgAction, CommandFactory};
use serde::Serialize;

use super::args::Cli;
use super::output::write_json;

/// A command without commands of its own.
#[derive(Serialize)]
struct Leaf {
    /// Its words, such as `convert`, `peft-to-tied`.
    path: Vec<String>,
    /// What it is for.
    about: String,
    arguments: Vec<Argument>,
}

#[derive(Serialize)]
struct Argument {
    /// The long flag without its dashes; `None` of one that is known by its place.
    long: Option<String>,
    /// What the code calls it.
    id: String,
    help: String,
    required: bool,
    /// Whether it is given without a value.
    switch: bool,
    /// Whether its value may be left out.
    bare: bool,
    /// Whether it may be given several times.
    multiple: bool,
    /// What stands between several values in one.
    delimiter: Option<char>,
    default: Vec<String>,
    /// The values that it may have, where they are a list.
    values: Vec<String>,
}

/// The commands, as a JSON document.
pub(crate) fn tree() -> String {
    let mut leaves = Vec::new();
    let mut command = Cli::command();
    command.build();
    walk(&command, &[], &mut leaves);
    let mut document = Vec::new();
    // Writing to memory does not fail.
    let _ = write_json(&mut document, &leaves);
    String::from_utf8_lossy(&document).into_owned()
}

fn walk(command: &clap::Command, path: &[String], leaves: &mut Vec<Leaf>) {
    let inner = command.get_subcommands().filter(|c| c.get_name() != "help");
    let before = leaves.len();
    for inner in inner {
        let path = [path, &[inner.get_name().to_owned()]].concat();
        walk(inner, &path, leaves);
    }
    if leaves.len() > before {
        return;
    }
    let own = command.get_arguments().filter(|a| {
        let id = a.get_id().as_str();
        !["help", "version", "json", "threads"].contains(&id)
    });
    leaves.push(Leaf {
        path: path.to_vec(),
        about: command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default(),
        arguments: own.map(Argument::of).collect(),
    });
}

impl Argument {
    fn of(arg: &clap::Arg) -> Self {
        let values = arg.get_num_args();
        let multiple = matches!(arg.get_action(), ArgAction::Append)
            || values.is_some_and(|n| n.max_values() > 1);
        Self {
            long: arg.get_long().map(str::to_owned),
            id: arg.get_id().to_string(),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            required: arg.is_required_set(),
            switch: !arg.get_action().takes_values(),
            bare: arg.get_action().takes_values() && values.is_some_and(|n| n.min_values() == 0),
            multiple,
            delimiter: arg.get_value_delimiter(),
            default: arg
                .get_default_values()
                .iter()
                .map(|v| v.to_string_lossy().into_owned())
                .collect(),
            values: arg
                .get_possible_values()
                .iter()
                .filter(|_| arg.get_action().takes_values())
                .map(|v| v.get_name().to_owned())
                .collect(),
        }
    }
}
