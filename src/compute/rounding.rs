//! Where a merge rounds.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Code, Error};

/// How an update meets the stored weight.
///
/// In the plan of a merge [`Peft`](Self::Peft) is the wish for what PEFT does by default, tensor by
/// tensor: it rounds an embedding's update first even then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// One rounding into the dtype, after the addition: PEFT's `merge_and_unload()`.
    #[default]
    Peft,
    /// The update is rounded to the dtype first, and the sum again: `merge_and_unload(safe_merge=True)`.
    PeftSafe,
}

impl Rounding {
    /// Every rounding there is.
    pub const ALL: [Self; 2] = [Self::Peft, Self::PeftSafe];

    /// `peft` or `peft-safe`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::PeftSafe => "peft-safe",
        }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Rounding {
    type Err = Error;

    /// The inverse of [`as_str`](Self::as_str).
    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|r| r.as_str() == name);
        known.ok_or_else(|| {
            Error::new(Code::Usage, format!("there is no rounding `{name}`"))
                .hint(format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

impl Serialize for Rounding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where reports and arguments call a rounding by different names.
    #[test]
    fn names_of_roundings() {
        for rounding in Rounding::ALL {
            assert_eq!(rounding.to_string().parse().ok(), Some(rounding));
            let json = serde_json::to_string(&rounding).unwrap();
            assert_eq!(json, format!("\"{rounding}\""));
        }
        let unknown = "safe".parse::<Rounding>().unwrap_err();
        assert_eq!(unknown.code(), Code::Usage);
    }
}
