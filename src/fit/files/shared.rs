//! PEFT directories to thin `.tl` files over blobs of A and B that they share.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::thin::{BLOBS, write_over};
use crate::convert::{Tied, ToTiedOptions, import_tied};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fit::share::{PairFit, ShareOptions, Shared, fit_shared};
use crate::format::WriteOptions;
use crate::fs::{Existing, Output, check_inputs, check_output, write_dir};
use crate::tensor::worst::largest;

/// One adapter of [`peft_to_tied_shared`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SharedFile {
    /// What it is called in the output folder.
    pub name: String,
    /// As [`SharedAdapter::error`](crate::fit::SharedAdapter::error).
    pub error: f64,
    /// As [`SharedAdapter::left_out`](crate::fit::SharedAdapter::left_out).
    #[serde(rename = "apart")]
    pub left_out: bool,
    /// Number of adapted modules.
    pub modules: usize,
    /// Bytes of the PEFT files.
    pub bytes_before: u64,
    /// Bytes of its `.tl`.
    pub bytes: u64,
    /// The adapter's identity.
    pub root: String,
}

/// Report of [`peft_to_tied_shared`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToShared {
    /// In the order given.
    pub adapters: Vec<SharedFile>,
    /// The shared pairs.
    pub pairs: Vec<PairFit>,
    /// Bytes of the blobs.
    pub blob_bytes: u64,
    /// Bytes of all PEFT files.
    pub bytes_before: u64,
    /// Bytes of all `.tl` and the blobs.
    pub bytes: u64,
    /// The result in one sentence for people.
    pub summary: String,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The folder written.
    pub output: PathBuf,
}

/// Converts PEFT adapters of one base to a folder of thin `.tl` files, `OUT/NAME.tl`, over one A and B
/// for each kind of module, which lie in `OUT/blobs`; an adapter that these would not serve is a fat
/// file there, as it is.
///
/// # Errors
/// Those of [`import_tied`] and [`fit_shared`]; [`Code::Usage`] for two adapters of one name;
/// [`Code::OutputExists`], also where the output to be replaced holds anything else.
pub fn peft_to_tied_shared(
    dirs: &[PathBuf],
    output: &Path,
    options: &ToTiedOptions<'_>,
    share: &ShareOptions,
) -> Result<ToShared> {
    let names: Vec<String> = dirs.iter().map(|d| name(d)).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
        let message = format!("two adapters are called `{twice}`");
        return Err(Error::new(Code::Usage, message).hint("rename one of their folders"));
    }
    check_output(output, Output::SharedAdapters, options.write.existing)?;
    if options.write.existing == Existing::Replace {
        check_inputs(output, dirs)?;
    }
    let import = |dir: &PathBuf| import_tied(dir, options).map_err(|e| e.file(dir));
    let all: Vec<Tied> = dirs.iter().map(import).collect::<Result<_>>()?;
    let shared = fit_shared(&all, share)?;
    let (mut files, mut blob_bytes) = (Vec::new(), 0);
    write_dir(
        output,
        Output::SharedAdapters,
        options.write.existing,
        |folder| {
            files = write_files(folder, &names, &all, &shared, &options.write)?;
            blob_bytes = folder_bytes(&folder.join(BLOBS))?;
            Ok(())
        },
    )?;
    let bytes = blob_bytes + files.iter().map(|f| f.bytes).sum::<u64>();
    let mut notes: Vec<String> = all.into_iter().flat_map(|t| t.notes).collect();
    notes.sort();
    notes.dedup();
    Ok(ToShared {
        summary: summary(&files, blob_bytes),
        bytes_before: files.iter().map(|f| f.bytes_before).sum(),
        adapters: files,
        pairs: shared.pairs,
        blob_bytes,
        bytes,
        notes,
        output: output.to_owned(),
    })
}

/// Writes each adapter's file into a folder, and the shared A and B into its folder of blobs.
fn write_files(
    folder: &Path,
    names: &[String],
    all: &[Tied],
    shared: &Shared,
    options: &WriteOptions,
) -> Result<Vec<SharedFile>> {
    let tensors = shared.tensors.iter();
    let pairs: BTreeSet<Digest> = tensors.map(|t| Digest::of(t.data())).collect();
    let blobs = folder.join(BLOBS);
    let mut files = Vec::with_capacity(names.len());
    for ((name, tied), found) in names.iter().zip(all).zip(&shared.adapters) {
        let pair = match found.left_out {
            true => BTreeSet::new(),
            false => pairs.clone(),
        };
        let to = folder.join(format!("{name}.tl"));
        let (root, bytes) = write_over(&found.adapter, &to, &blobs, pair, options)?;
        files.push(SharedFile {
            name: name.clone(),
            error: found.error,
            left_out: found.left_out,
            modules: found.adapter.modules().len(),
            bytes_before: tied.bytes,
            bytes,
            root,
        });
    }
    Ok(files)
}

/// The name of an adapter's folder.
fn name(dir: &Path) -> Result<String> {
    let whole = match dir.file_name() {
        Some(_) => dir.to_owned(),
        // `.` and `..` have a name too.
        None => dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?,
    };
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    match name.is_empty() || name == BLOBS {
        true => Err(Error::new(
            Code::Usage,
            "the adapter's folder has no name to give to its file",
        )
        .file(dir)),
        false => Ok(name.into_owned()),
    }
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let read = || -> std::io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(folder)? {
            bytes += entry?.metadata()?.len();
        }
        Ok(bytes)
    };
    read().map_err(|e| Error::io(folder, "read", e))
}

fn summary(files: &[SharedFile], blob_bytes: u64) -> String {
    let shared: Vec<&SharedFile> = files.iter().filter(|f| !f.left_out).collect();
    let sum = |of: fn(&SharedFile) -> u64| shared.iter().map(|f| of(f)).sum::<u64>();
    let count = (shared.len() as u64).max(1);
    let worst = largest(shared.iter().map(|f| f.error));
    format!(
        "{} of {} adapters share A and B: each takes {} bytes and its part of {blob_bytes} instead of {}, and is off by up to {:.1} %",
        shared.len(),
        files.len(),
        sum(|f| f.bytes) / count,
        sum(|f| f.bytes_before) / count,
        100.0 * worst
    )
}
