//! The settings that were given: as flags, in a TOML file, or as a method's defaults.
// The texts are those of the command: in `cuda[:N]` nothing is linked.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::Path;

use serde::Deserialize;

use super::list::run_settings;
use super::values;
use crate::adapter::Method;
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;

/// Longest config file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The default of a setting that has one.
macro_rules! default {
    () => {
        None
    };
    ($default:expr) => {
        Some($default)
    };
}

macro_rules! settings {
    ($($group:ident { $(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty $(= $default:expr)? $(=> $run:ty)?,
            $shape:ident, $presence:ident, $recorded:ident
            $(, read($($read:tt)*))? $(, write($($write:tt)*))?;
    )+ })+) => {
        /// Every option of a run, as far as it was given. In TOML the names have hyphens
        /// (`max-steps`); paths are relative to the current folder, as on the command line.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        #[non_exhaustive]
        pub struct Settings {
            $($($(#[doc = $doc])+ $(#[serde($($read)*)])? pub $name: Option<$type>,)+)+
        }

        impl Settings {
            /// `self` (the flags), and what it leaves open from `file`.
            ///
            /// A method is a statement on `train` and `tie` as well: where the flags name one, those
            /// two of the file do not count.
            #[must_use]
            pub fn over(self, mut file: Self) -> Self {
                if self.method.is_some() {
                    (file.train, file.tie) = (None, None);
                }
                Self { $($($name: self.$name.or(file.$name),)+)+ }
            }

            /// The defaults that depend on no other setting. The numbers are those of the
            /// configuration in the paper's own code, as far as they are known.
            fn defaults() -> Self {
                Self { $($($name: default!($($default)?),)+)+ }
            }
        }
    };
}

run_settings!(settings);

impl Settings {
    /// Reads a config file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); [`Code::Io`] and its kin; [`Code::HeaderTooLarge`] past 1 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_config(path)?).map_err(|e| e.file(path))
    }

    /// Settings from TOML.
    ///
    /// # Errors
    /// [`Code::BadRunConfig`] where it is not valid TOML, or has a key or a type that is not one
    /// of these, with the line.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| bad_toml(text, e))
    }

    /// The defaults of a method: every setting that has one regardless of the others.
    pub fn preset(method: Method) -> Self {
        Self {
            method: Some(method),
            train: method.trains().map(Into::into),
            tie: method.is_tied(),
            ..Self::defaults()
        }
    }
}

/// The text of a config file.
pub(crate) fn read_config(path: &Path) -> Result<String> {
    let bytes = read_limited(path, MAX_CONFIG_BYTES)?;
    String::from_utf8(bytes)
        .map_err(|e| Error::new(Code::BadRunConfig, format!("not UTF-8: {e}")).file(path))
}

/// What is wrong with `text`, with the line.
pub(crate) fn bad_toml(text: &str, e: toml::de::Error) -> Error {
    let before = e.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |t| t.matches('\n').count() + 1);
    let message = format!("line {line}: {}", e.message().replace('\n', " "));
    Error::new(Code::BadRunConfig, message).cause(e)
}
