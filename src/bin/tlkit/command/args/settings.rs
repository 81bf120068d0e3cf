//! The flags of a run's settings, made of the library's list of them.

use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint, value_parser};
use tlkit::train::Settings;

use super::values::float_dtype;

/// `--max-steps <STEPS>` of `max_steps`.
fn flag(name: &'static str, parser: impl Into<ValueParser>) -> Arg {
    Arg::new(name)
        .long(name.replace('_', "-"))
        .value_name(
            name.rsplit(['_', '-'])
                .next()
                .unwrap_or(name)
                .to_uppercase(),
        )
        .value_parser(parser.into())
        .action(ArgAction::Set)
}

fn path(name: &'static str, value_name: &'static str, hint: ValueHint) -> Arg {
    let flag = flag(name, value_parser!(PathBuf));
    flag.value_name(value_name).value_hint(hint)
}

/// The flag of a shape.
macro_rules! shape {
    (folder, $type:ty, $name:expr) => {
        path($name, "DIR", ValueHint::DirPath)
    };
    (file, $type:ty, $name:expr) => {
        path($name, "FILE", ValueHint::FilePath)
    };
    (output, $type:ty, $name:expr) => {
        path($name, "FILE", ValueHint::FilePath).short('o')
    };
    (word, $type:ty, $name:expr) => {
        flag($name, value_parser!($type))
    };
    (count, $type:ty, $name:expr) => {
        flag($name, value_parser!($type)).value_name("N")
    };
    (list, $type:ty, $name:expr) => {
        flag($name, value_parser!(<$type as IntoIterator>::Item))
            .value_delimiter(',')
            .action(ArgAction::Append)
    };
    (factors, $type:ty, $name:expr) => {
        shape!(list, $type, $name).value_name("A,B,C,u,v")
    };
    (toggle, $type:ty, $name:expr) => {
        flag($name, value_parser!($type))
            .value_name("BOOL")
            .num_args(0..=1)
            .default_missing_value("true")
    };
    (switch, $type:ty, $name:expr) => {
        Arg::new($name)
            .long($name.replace('_', "-"))
            .action(ArgAction::SetTrue)
    };
    (float, $type:ty, $name:expr) => {
        flag($name, float_dtype).value_name("DTYPE")
    };
}

/// What a flag of a shape was given.
macro_rules! given {
    (switch, $type:ty, $matches:expr, $name:expr) => {
        $matches.get_flag($name).then_some(true)
    };
    (list, $type:ty, $matches:expr, $name:expr) => {{
        let values = $matches.remove_many::<<$type as IntoIterator>::Item>($name);
        values.map(Iterator::collect)
    }};
    (factors, $type:ty, $matches:expr, $name:expr) => {
        given!(list, $type, $matches, $name)
    };
    ($shape:ident, $type:ty, $matches:expr, $name:expr) => {
        $matches.remove_one::<$type>($name)
    };
}

/// The heading that a group of flags stands under in the help.
fn heading(group: &'static str) -> Option<&'static str> {
    (group != "Files").then_some(group)
}

macro_rules! flags {
    ($($group:ident { $(
        #[doc = $help:literal] $(#[doc = $more:literal])*
        $name:ident: $type:ty $(= $default:expr)? $(=> $run:ty)?,
            $shape:ident, $presence:ident, $recorded:ident
            $(, read($($read:tt)*))? $(, write($($write:tt)*))?;
    )+ })+) => {$(
        /// The settings of one group, as far as flags gave them.
        #[derive(Debug, Clone)]
        pub(crate) struct $group(pub(crate) Settings);

        impl clap::Args for $group {
            fn augment_args(command: Command) -> Command {
                let heading = heading(stringify!($group));
                command$(.arg(
                    shape!($shape, $type, stringify!($name))
                        .help($help.trim())
                        .help_heading(heading),
                ))+
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $group {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Self::from_arg_matches_mut(&mut matches.clone())
            }

            fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
                let mut settings = Settings::default();
                $(settings.$name = given!($shape, $type, matches, stringify!($name));)+
                Ok(Self(settings))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    )+};
}

tlkit::run_settings!(flags);
