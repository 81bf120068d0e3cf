//! PEFT directories to thin `.tl` files over blobs of A and B that they share.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::named::names;
use super::thin::{BLOBS, write_over};
use crate::adapter::Adapter;
use crate::convert::{Tied, ToTiedOptions, import_tied};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fit::coded::{CodeTarget, CodedFleet, code_all};
use crate::fit::share::{PairFit, ShareOptions, Shared, fit_shared, shared_errors};
use crate::format::WriteOptions;
use crate::fs::{Existing, Output, check_inputs, check_output, write_dir};
use crate::tensor::Tensor;
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
    /// The shared pairs, as they were fitted.
    pub pairs: Vec<PairFit>,
    /// What coding added, where the factors are coded: to the fits, and to adapters left apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coded: Option<CodedFleet>,
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
/// file there, as it is. With `target`, everything is coded, the shared A and B once, at one error or number of bytes for
/// all.
///
/// # Errors
/// Those of [`import_tied`], [`fit_shared`] and [`code_all`]; [`Code::Usage`](crate::Code::Usage) for two adapters of one name;
/// [`Code::OutputExists`](crate::Code::OutputExists), also where the output to be replaced holds anything else.
pub fn peft_to_tied_shared(
    dirs: &[PathBuf],
    output: &Path,
    options: &ToTiedOptions<'_>,
    share: &ShareOptions,
    target: Option<CodeTarget>,
) -> Result<ToShared> {
    let names = names(dirs)?;
    check_output(output, Output::SharedAdapters, options.write.existing)?;
    if options.write.existing == Existing::Replace {
        check_inputs(output, dirs)?;
    }
    let import = |dir: &PathBuf| import_tied(dir, options).map_err(|e| e.file(dir));
    let all: Vec<Tied> = dirs.iter().map(import).collect::<Result<_>>()?;
    let mut shared = fit_shared(&all, share)?;
    let coded = match target {
        Some(target) => Some(coded(&all, &mut shared, share, target)?),
        None => None,
    };
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
        coded,
        blob_bytes,
        bytes,
        notes,
        output: output.to_owned(),
    })
}

/// Codes what a shared fit found, and measures it again.
fn coded(
    all: &[Tied],
    shared: &mut Shared,
    share: &ShareOptions,
    target: CodeTarget,
) -> Result<CodedFleet> {
    let adapters: Vec<&Adapter> = shared.adapters.iter().map(|a| &a.adapter).collect();
    let (coded, fleet) = code_all(&adapters, target)?;
    for (of, adapter) in shared.adapters.iter_mut().zip(coded) {
        of.adapter = adapter;
    }
    let errors = shared_errors(all, &shared.adapters, share)?;
    for (of, error) in shared.adapters.iter_mut().zip(errors) {
        of.error = error.unwrap_or(of.error);
    }
    let groups = shared.adapters.iter().filter(|a| !a.left_out);
    let groups = groups
        .flat_map(|a| &a.adapter.groups)
        .filter(|g| g.is_tied());
    shared.tensors = groups
        .flat_map(|g| [g.a.tensor.clone(), g.b.tensor.clone()])
        .collect();
    Ok(fleet)
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
    let stored = |t: &Tensor| Digest::of(t.coded_bytes().unwrap_or(t.data()));
    let pairs: BTreeSet<Digest> = tensors.map(stored).collect();
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
