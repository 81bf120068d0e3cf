//! The names that users of a store give: tenants, tasks, tags.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// Longest name in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Names that are devices, not files, where some operating systems keep folders.
const DEVICES: [&str; 6] = ["aux", "con", "nul", "prn", "com", "lpt"];

/// The name of a tenant, a task or a tag: lower-case ASCII letters, digits, `-`, `_` and `.`, of
/// which the first and last are a letter or digit, without `..`.
///
/// So no two names differ by case or by Unicode form alone, none leaves its folder, and none has
/// to be escaped in a path, a URL or a shell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let message = format!("`{text}` is not a name: {why}");
            Err(Error::new(Code::StoreName, message)
                .hint("lower-case letters, digits, and `-`, `_`, `.` between them; at most 64"))
        };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return wrong("it is empty");
        };
        if bytes.len() > MAX_NAME_BYTES {
            return wrong("it is too long");
        }
        if !bytes.iter().all(|b| plain(*b) || b"-_.".contains(b)) {
            return wrong("it has a character that names do not have");
        }
        if !plain(*first) || !plain(*last) || text.contains("..") {
            return wrong("it begins or ends with a mark, or has `..`");
        }
        let stem = text.split('.').next().unwrap_or_default();
        let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
        if DEVICES.contains(&stem) {
            return wrong("some systems keep it for a device");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Which version of an adapter is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Which {
    /// The last one put.
    #[default]
    Latest,
    /// The one with this number: `USER/TASK@3`.
    Number(u64),
    /// The one that a tag names: `USER/TASK:prod`.
    Tag(Name),
}

/// `USER/TASK`, `USER/TASK@VERSION` or `USER/TASK:TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterName {
    /// The tenant.
    pub user: Name,
    /// The task, unique for the tenant.
    pub task: Name,
    /// The version.
    pub which: Which,
}

impl AdapterName {
    /// The same adapter without a version.
    ///
    /// # Errors
    /// [`Code::StoreName`] where a version or tag is named.
    pub fn latest_only(&self) -> Result<&Self> {
        match self.which {
            Which::Latest => Ok(self),
            _ => Err(Error::new(
                Code::StoreName,
                format!("`{self}` names one version; USER/TASK is meant here"),
            )),
        }
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.task)?;
        match &self.which {
            Which::Latest => Ok(()),
            Which::Number(n) => write!(f, "@{n}"),
            Which::Tag(tag) => write!(f, ":{tag}"),
        }
    }
}

impl FromStr for AdapterName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(Code::StoreName, format!("`{text}`: {why}"))
                .hint("USER/TASK, USER/TASK@VERSION or USER/TASK:TAG")
        };
        let (user, rest) = text.split_once('/').ok_or_else(|| wrong("no `/`"))?;
        let (task, which) = if let Some((task, number)) = rest.split_once('@') {
            let number = number.parse().ok().filter(|n| *n > 0);
            let number = number.ok_or_else(|| wrong("the version is no number"))?;
            (task, Which::Number(number))
        } else if let Some((task, tag)) = rest.split_once(':') {
            (task, Which::Tag(tag.parse()?))
        } else {
            (rest, Which::Latest)
        };
        Ok(Self {
            user: user.parse()?,
            task: task.parse()?,
            which,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_be_taken_for_another_are_refused() {
        for good in [
            "a",
            "7",
            "alice",
            "user-17",
            "a.b_c-d",
            &"x".repeat(64),
            "console",
            "com-1",
        ] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = "x".repeat(65);
        for bad in [
            "", ".", "..", "a/b", "a\\b", "Alice", "é", "а", "a b", "a\n", "a\0", "-a", "a-", ".a",
            "a.", "a..b", "a@b", "a=b", "a:b", "%2e", "con", "nul.txt", "com1", "lpt9.x", "~",
            &long,
        ] {
            assert_eq!(
                bad.parse::<Name>().unwrap_err().code(),
                Code::StoreName,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn versions_and_tags() {
        for text in ["a/b", "a/b@12", "a/b:prod"] {
            assert_eq!(text.parse::<AdapterName>().unwrap().to_string(), text);
        }
        for bad in [
            "a", "a/b/c", "a/b@", "a/b@0", "a/b@-1", "a/b@x", "a/b:", "/b", "a/", "a/b@1:c",
        ] {
            assert_eq!(
                bad.parse::<AdapterName>().unwrap_err().code(),
                Code::StoreName,
                "{bad}"
            );
        }
    }

    proptest! {
        /// Breaks where a name could leave its folder or need escaping somewhere.
        #[test]
        fn whatever_parses_is_one_plain_path_segment(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<Name>() {
                let path = object_store::path::Path::parse(name.as_str()).unwrap();
                prop_assert_eq!(path.parts().count(), 1);
                prop_assert_eq!(path.as_ref(), text.as_str());
                prop_assert_eq!(text.to_lowercase(), text);
            }
        }
    }
}
