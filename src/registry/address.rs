//! Where an artefact is: `oci://HOST[:PORT]/REPOSITORY[:TAG|@sha256:HEX]`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// What people call Docker's own registry.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Where it is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
const SCHEME: &str = "oci://";
/// Longest host and repository together, as clients of registries hold it.
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Which of a repository's artefacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one that a tag names.
    Tag(String),
    /// The one whose manifest has this digest.
    Digest(Digest),
}

/// The address of an artefact. Displayed, it is what it is parsed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    repository: String,
    which: Which,
}

impl Address {
    /// Host, and port where one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host that requests go to.
    pub(super) fn server(&self) -> &str {
        match self.host.as_str() {
            DOCKER_HUB => DOCKER_HUB_HOST,
            host => host,
        }
    }

    /// The repository's name, without the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which of its artefacts.
    pub fn which(&self) -> &Which {
        &self.which
    }

    /// The same repository, and the artefact of a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            which: Which::Digest(digest),
            ..self.clone()
        }
    }

    /// Whether the host is this machine, where registries are spoken to without TLS, as Docker does.
    pub fn is_loopback(&self) -> bool {
        let name = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        let address = name.parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|a| a.is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        match &self.which {
            Which::Tag(tag) => write!(f, ":{tag}"),
            Which::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Parses an address; without a tag it is that of `latest`.
    ///
    /// # Errors
    /// [`Code::RegistryAddress`].
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            // What stands before an `@` may be a password.
            let shown = match text.contains('@') && !text.contains("@sha256:") {
                true => SCHEME,
                false => text,
            };
            Error::new(Code::RegistryAddress, format!("`{shown}`: {why}"))
                .hint("oci://HOST[:PORT]/REPOSITORY:TAG, or @sha256:DIGEST in place of the tag")
        };
        let rest = text.strip_prefix(SCHEME);
        let rest = rest.ok_or_else(|| wrong("not an address that begins with oci://"))?;
        let (host, rest) = rest.split_once('/').ok_or_else(|| wrong("no repository"))?;
        if !is_host(host) {
            return Err(wrong(
                "its host is none; credentials come from Docker's config",
            ));
        }
        let (repository, which) = match rest.split_once('@') {
            Some((repository, digest)) => {
                let digest = digest.strip_prefix("sha256:").and_then(|d| d.parse().ok());
                let digest = digest.ok_or_else(|| wrong("its digest is none"))?;
                (repository, Which::Digest(digest))
            }
            None => match rest.split_once(':') {
                Some((repository, tag)) => (repository, Which::Tag(tag.to_owned())),
                None => (rest, Which::Tag("latest".to_owned())),
            },
        };
        if !repository.split('/').all(is_component)
            || host.len() + repository.len() > MAX_NAME_BYTES
        {
            return Err(wrong(
                "a repository is lower-case letters and digits, with single `.`, `_`, `__` or dashes between them, and `/`",
            ));
        }
        if matches!(&which, Which::Tag(tag) if !is_tag(tag)) {
            return Err(wrong("a tag is 1 to 128 letters, digits, `_`, `.` and `-`"));
        }
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            which,
        })
    }
}

/// A name or address, and a port.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((inside, port)) => {
            let address = inside.parse::<std::net::Ipv6Addr>().is_ok();
            (if address { "v6" } else { "" }, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    !name.is_empty()
        && name.chars().all(plain)
        && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0))
}

/// One part of a repository's name, by the grammar of the distribution-spec.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let between = text.split(alphanumeric);
    let separators = between.filter(|s| !s.is_empty());
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && separators
            .clone()
            .all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

fn is_tag(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=MAX_TAG_BYTES).contains(&text.len())
        && text.chars().all(inside)
        && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_displayed_as_they_are_parsed() {
        let hex = "ab".repeat(32);
        for text in [
            "oci://localhost:5000/adapters/alice:v1",
            "oci://ghcr.io/org/a__b-c.d:latest",
            "oci://[::1]:5000/x:1",
            &format!("oci://registry.example/x/y@sha256:{hex}"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let plain: Address = "oci://h/x".parse().unwrap();
        assert_eq!(plain.to_string(), "oci://h/x:latest");
        let local = |t: &str| t.parse::<Address>().unwrap().is_loopback();
        assert!(
            local("oci://localhost/x") && local("oci://127.0.0.5:1/x") && local("oci://[::1]/x")
        );
        assert!(!local("oci://10.0.0.1:5000/x") && !local("oci://localhost.example/x"));
    }

    /// Breaks where an address leads elsewhere than it says, or a password is shown.
    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ghcr.io/x",
            "https://ghcr.io/x",
            "oci://ghcr.io",
            "oci:///x",
            "oci://ghcr.io/",
            "oci://ghcr.io/X",
            "oci://ghcr.io/../x",
            "oci://ghcr.io/a//b",
            "oci://ghcr.io/a.-b",
            "oci://ghcr.io/a:",
            "oci://ghcr.io/a:b/c",
            "oci://ghcr.io/a:.b",
            "oci://ghcr.io/a?b",
            "oci://ghcr.io:0/a",
            "oci://ghcr.io:x/a",
            "oci://gh cr.io/a",
            "oci://[::1/a",
            "oci://h/a@sha256:00",
            "oci://me:hunter2@ghcr.io/a",
        ] {
            let e = text.parse::<Address>().unwrap_err();
            assert_eq!(e.code(), Code::RegistryAddress, "{text}");
            assert!(!e.to_string().contains("hunter2"), "{e}");
        }
    }
}
