//! JSON whose strings cannot command a terminal.

use std::ffi::OsString;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use tlkit::error::is_unprintable;

/// Whether the arguments ask for JSON, also where they could not be parsed.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    let mut options = args.iter().skip(1).take_while(|a| *a != "--");
    options.any(|a| a == "--json")
}

/// One JSON document, indented.
pub(crate) fn write_json(to: impl Write, value: &impl Serialize) -> serde_json::Result<()> {
    let formatter = Harmless(PrettyFormatter::new());
    value.serialize(&mut Serializer::with_formatter(to, formatter))
}

/// JSON on one line, without its newline.
pub(super) fn one_line(value: &impl Serialize) -> serde_json::Result<String> {
    let mut line = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut line, Harmless(Line)))?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// JSON on one line.
struct Line;

impl Formatter for Line {}

/// JSON in which characters that would command a terminal or hide text are escaped as well.
struct Harmless<F>(F);

macro_rules! as_inside {
    ($($name:ident($($arg:ident: $type:ty),*);)+) => {
        $(fn $name<W: ?Sized + Write>(&mut self, to: &mut W $(, $arg: $type)*) -> io::Result<()> {
            self.0.$name(to $(, $arg)*)
        })+
    };
}

impl<F: Formatter> Formatter for Harmless<F> {
    as_inside! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, s: &str) -> io::Result<()> {
        let mut rest = s;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_unprintable(*c)) {
            to.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        to.write_all(rest.as_bytes())
    }
}
