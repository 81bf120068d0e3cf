//! The files that are signed: a file alone, or all below a folder.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::digest::Digest;
use crate::error::{Code, Error, Result};

/// Most files of a folder.
const MAX_FILES: usize = 100_000;
const MAX_DEPTH: usize = 32;
/// What `model_signing` calls a file that is signed alone.
const ALONE: &str = ".";

/// A file as it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// Its path below the folder, with `/`; `.` alone.
    pub(super) name: String,
    pub(super) digest: Digest,
}

/// The files at a path, in the order of `model_signing`: by their paths, part by part.
///
/// # Errors
/// [`Code::SignedFilesDiffer`] for links and what is neither file nor folder: what they lead to may change;
/// [`Code::NotFound`], [`Code::Io`]; [`Code::HeaderTooLarge`] where there are too many.
pub(super) fn resources(path: &Path, ignored: &[String], besides: &Path) -> Result<Vec<Resource>> {
    let mut found = Vec::new();
    walk(path, Path::new(""), ignored, besides, &mut found)?;
    found.sort_by(|a, b| a.components().cmp(b.components()));
    let each = found.par_iter().map(|inside| {
        let (file, name) = match inside.as_os_str().is_empty() {
            true => (path.to_owned(), ALONE.to_owned()),
            false => (path.join(inside), text(path, inside)?),
        };
        let digest = Digest::of_file(&file, u64::MAX)?;
        Ok(Resource { name, digest })
    });
    each.collect()
}

fn text(root: &Path, inside: &Path) -> Result<String> {
    let name = inside.to_str().map(str::to_owned);
    name.ok_or_else(|| {
        Error::new(Code::SignedFilesDiffer, "a name that is no text").file(root.join(inside))
    })
}

fn walk(
    root: &Path,
    inside: &Path,
    ignored: &[String],
    besides: &Path,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    let path = match inside.as_os_str().is_empty() {
        true => root.to_owned(),
        false => root.join(inside),
    };
    let kind = path
        .symlink_metadata()
        .map_err(|e| Error::io(&path, "look at", e))?;
    if kind.is_file() {
        found.push(inside.to_owned());
        return match found.len() > MAX_FILES {
            true => Err(too_many(root)),
            false => Ok(()),
        };
    }
    if !kind.is_dir() {
        let message = "a link, or neither file nor folder: what it leads to is not signed";
        return Err(Error::new(Code::SignedFilesDiffer, message).file(path));
    }
    if inside.components().count() >= MAX_DEPTH {
        return Err(too_many(root));
    }
    let failed = |e| Error::io(&path, "list", e);
    for entry in fs::read_dir(&path).map_err(failed)? {
        let below = inside.join(entry.map_err(failed)?.file_name());
        let skipped = ignored
            .iter()
            .any(|i| !i.is_empty() && below.starts_with(i));
        if !skipped && !is_same(&root.join(&below), besides) {
            walk(root, &below, ignored, besides, found)?;
        }
    }
    Ok(())
}

fn too_many(root: &Path) -> Error {
    let message = format!("more than {MAX_FILES} files, or deeper than {MAX_DEPTH} folders");
    Error::new(Code::HeaderTooLarge, message).file(root)
}

/// Whether two paths are one file.
fn is_same(a: &Path, b: &Path) -> bool {
    a == b
        || a.file_name() == b.file_name()
            && fs::canonicalize(a).ok() == fs::canonicalize(b).ok()
            && a.exists()
}
