//! Signing a file or folder, and comparing one with what was signed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::bundle::{self, MAX_BUNDLE_BYTES};
use super::files::{Resource, resources};
use super::keys::{PrivateKey, PublicKey};
use super::statement::{GIT, Said};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing, read_limited};

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Signed {
    /// The signature's file.
    pub signature: PathBuf,
    /// How many files it is of.
    pub files: usize,
    /// The key, by the SHA-256 of its PEM.
    pub key: String,
    /// The name that it binds.
    pub name: Option<String>,
}

/// What was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// How many files are as they were signed.
    pub files: usize,
    /// The name that the signature binds.
    pub name: Option<String>,
}

/// Signs a file, or all files below a folder but the signature itself and what git has there. With a name
/// (`USER/TASK@N`) the signature binds it too. The same files and key give the same signature.
///
/// # Errors
/// [`Code::SignedFilesDiffer`] for links; [`Code::NotFound`], [`Code::Io`], [`Code::OutputExists`].
pub fn sign(
    path: &Path,
    key: &PrivateKey,
    name: Option<&str>,
    signature: &Path,
    existing: Existing,
) -> Result<Signed> {
    let ignored: Vec<String> = GIT.map(str::to_owned).to_vec();
    let resources = resources(path, &ignored, signature)?;
    let mut said = Said {
        model: model_name(path),
        resources,
        ignored,
        name: name.map(str::to_owned),
    };
    if let Some(inside) = inside(path, signature) {
        said.ignored.push(inside);
    }
    let bytes = bundle::seal(&said.encode()?, key)?;
    let mut out = AtomicFile::create(signature, existing)?;
    out.write_all(&bytes)?;
    out.commit(true)?;
    Ok(Signed {
        signature: signature.to_owned(),
        files: said.resources.len(),
        key: key.public().hint()?,
        name: said.name,
    })
}

/// Compares a file or folder with what one of the keys signed: each file that was signed is there with its digest, and no
/// other one, but what the signature says was left out. With a name, that has to be the one that the signature binds.
///
/// # Errors
/// [`Code::BundleInvalid`]; [`Code::SignatureInvalid`] by another key, or for another name;
/// [`Code::SignedFilesDiffer`]; [`Code::NotFound`], [`Code::Io`].
pub fn verify(
    path: &Path,
    signature: &Path,
    keys: &[PublicKey],
    name: Option<&str>,
) -> Result<Verified> {
    let bytes = read_limited(signature, MAX_BUNDLE_BYTES)?;
    let statement = bundle::open(&bytes, keys).map_err(|e| e.file(signature))?;
    let said = Said::parse(&statement).map_err(|e| e.file(signature))?;
    if name.is_some() && said.name.as_deref() != name {
        let bound = said.name.as_deref().unwrap_or("none");
        let message = format!(
            "it is signed for the name {bound}, not {}",
            name.unwrap_or_default()
        );
        return Err(Error::new(Code::SignatureInvalid, message).file(signature));
    }
    let there = resources(path, &said.ignored, signature)?;
    differences(path, &said.resources, &there)?;
    Ok(Verified {
        files: there.len(),
        name: said.name,
    })
}

fn differences(path: &Path, signed: &[Resource], there: &[Resource]) -> Result<()> {
    let differ = |name: &str, how: &str| {
        let file = match name {
            "." => path.to_owned(),
            name => path.join(name),
        };
        Err(Error::new(Code::SignedFilesDiffer, how).file(file))
    };
    let mut left: BTreeMap<&str, &Digest> = there.iter().map(|t| (&*t.name, &t.digest)).collect();
    for resource in signed {
        match left.remove(&*resource.name) {
            None => return differ(&resource.name, "was signed, and is not there"),
            Some(digest) if *digest != resource.digest => {
                let how = format!("has {digest}, {} was signed", resource.digest);
                return differ(&resource.name, &how);
            }
            Some(_) => {}
        }
    }
    let more = left.into_keys().next();
    more.map_or(Ok(()), |name| differ(name, "is there, and was not signed"))
}

fn model_name(path: &Path) -> String {
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = whole.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The signature's path below the folder that is signed, where it lies there.
fn inside(path: &Path, signature: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(path).ok()?;
    let parent = signature.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = std::fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()?;
    let below = parent.join(signature.file_name()?);
    let below = below.strip_prefix(folder).ok()?;
    below.to_str().map(str::to_owned)
}
