//! What packs are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a pack is called: a random number, never 0 and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in crate::store) struct PackName(u64);

impl PackName {
    pub(in crate::store) fn new(random: u64) -> Self {
        Self(random.max(1))
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for PackName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = u64::from_str_radix(text, 16).map(Self);
        // One spelling alone.
        let own = number.ok().filter(|n| n.0 > 0 && n.to_string() == text);
        own.ok_or("16 hex digits, not all 0")
    }
}

impl TryFrom<String> for PackName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PackName> for String {
    fn from(name: PackName) -> Self {
        name.to_string()
    }
}
