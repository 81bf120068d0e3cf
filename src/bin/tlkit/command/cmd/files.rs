//! Files as the command line names them: bases, blobs, adapters with their weights, and outputs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tlkit::format::{BlobSource, DirBlobs, NoBlobs};
use tlkit::fs::{self, Existing};
use tlkit::merge::MergeInput;
use tlkit::open::check_complete;
use tlkit::safetensors::Checkpoint;
use tlkit::{Code, Error, Result};

use crate::command::args::{BaseNames, Blobs};
use crate::command::output::Output;
use crate::command::watch::narrow;

pub(super) fn blob_source(blobs: &Blobs) -> Box<dyn BlobSource> {
    match &blobs.dir {
        Some(dir) => Box::new(DirBlobs(dir.clone())),
        None => Box::new(NoBlobs),
    }
}

pub(super) fn open_base(path: Option<&PathBuf>, names: &BaseNames) -> Result<Option<Checkpoint>> {
    path.map(|path| open_renamed(path, names)).transpose()
}

/// Opens a base for adapters whose names are renamed.
pub(super) fn open_renamed(path: &Path, names: &BaseNames) -> Result<Checkpoint> {
    Ok(Checkpoint::open(path)?.with_renames(names.rename.clone()))
}

/// Refuses an adapter that lacks tensors where that was asked.
pub(super) fn check_strict(strict: bool, missing: &[String], adapter: &Path) -> Result<()> {
    match strict {
        true => check_complete(missing).map_err(|e| e.file(adapter)),
        false => Ok(()),
    }
}

/// `PATH=WEIGHT`, unless a file of the whole name exists.
pub(super) fn split_weight(text: &str) -> Result<(&str, f64)> {
    let whole = (text, 1.0);
    if Path::new(text).exists() {
        return Ok(whole);
    }
    match text.rsplit_once('=') {
        Some((path, weight)) => match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() => Ok((path, weight)),
            Err(_) if !Path::new(path).exists() => Ok(whole),
            _ => Err(bad_weight(text, weight)),
        },
        None => Ok(whole),
    }
}

fn bad_weight(text: &str, weight: &str) -> Error {
    let message = format!("`{text}`: the weight `{weight}` is not a finite number");
    Error::new(Code::Usage, message).hint("write a weight as ADAPTER=0.5")
}

/// The adapters' paths, without weights.
pub(super) fn adapter_paths(texts: &[String]) -> Result<Vec<PathBuf>> {
    let path = |text: &String| Ok(PathBuf::from(split_weight(text)?.0));
    texts.iter().map(path).collect()
}

/// Opens the adapters, to be merged into `base`, and tells what was noticed.
pub(super) fn open_inputs(
    texts: &[String],
    base: &Checkpoint,
    blobs: &dyn BlobSource,
    output: &Output,
) -> Result<Vec<MergeInput>> {
    let mut inputs = Vec::with_capacity(texts.len());
    for text in texts {
        let (path, weight) = split_weight(text)?;
        let mut input = MergeInput::open(Path::new(path), base, blobs)?;
        input.weight = weight;
        for note in &input.notes {
            output.note(&format!("{path}: {note}"));
        }
        inputs.push(input);
    }
    Ok(inputs)
}

pub(super) fn existing(force: bool) -> Existing {
    if force {
        Existing::Replace
    } else {
        Existing::Refuse
    }
}

/// Refuses an output before any work: where it exists and must not be replaced, and where it is one of
/// the inputs. Gives its path.
pub(super) fn check_output(
    dest: &Path,
    kind: fs::Output<'_>,
    force: bool,
    inputs: &[&Path],
) -> Result<PathBuf> {
    let dest = fs::check_output(dest, kind, existing(force))?;
    if force {
        fs::check_inputs(&dest, inputs)?;
    }
    Ok(dest)
}

/// Takes from all that this process writes the permissions that an input does not have: what was
/// closed to others is not open to them in another form.
pub(super) fn as_closed_as<'p>(inputs: impl IntoIterator<Item = &'p Path>) {
    let weights = ["adapter_model.safetensors", "adapter_model.bin"];
    let mut mode = 0o777;
    for input in inputs {
        let inside = weights.map(|name| input.join(name));
        let files = inside.iter().map(PathBuf::as_path).chain([input]);
        let modes = files.filter_map(|f| f.metadata().ok());
        // Folders are searched as files are read.
        let read = |m: u32| m & 0o666 | (m & 0o444) >> 2;
        mode = modes.fold(mode, |all, m| all & read(m.permissions().mode()));
    }
    narrow(Mode::from_raw_mode(!mode & 0o077));
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}
