//! SHA-256 digests, and a hasher of them.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::{Code, Error, Result};
use crate::fs::open_regular;

/// A SHA-256 digest; 64 lower-case hex digits in JSON, `sha256:` before them where it stands alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a file's bytes, read piece by piece.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::Io`]; not a regular file; [`Code::HeaderTooLarge`] where it is
    /// longer than `limit`.
    pub fn of_file(path: &Path, limit: u64) -> Result<Self> {
        let (mut file, len) = open_regular(path)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 1 << 16];
        let mut read: u64 = 0;
        loop {
            if len.max(read) > limit {
                let message = format!("{} bytes, the limit is {limit}", len.max(read));
                return Err(Error::new(Code::HeaderTooLarge, message).file(path));
            }
            let n = file
                .read(&mut buffer)
                .map_err(|e| Error::io(path, "read", e))?;
            if n == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(buffer.get(..n).unwrap_or_default());
            read += n as u64;
        }
    }

    /// 64 lower-case hex digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_hex(text.strip_prefix("sha256:").unwrap_or(text))
            .map(Self)
            .ok_or_else(|| {
                Error::new(
                    Code::ManifestInvalid,
                    format!("`{text}` is not 64 lower-case hex digits"),
                )
            })
    }
}

/// 64 lower-case hex digits as 32 bytes.
pub(super) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    if digits.len() != 64 || !digits.iter().all(lower) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_hex(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not 64 lower-case hex digits"))
        })
    }
}

/// SHA-256 over bytes that come piece by piece.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}
