//! Inputs as the command line names them: bases, blobs, and adapters with their weights.

use std::path::{Path, PathBuf};

use tlkit::format::{BlobSource, DirBlobs, NoBlobs};
use tlkit::merge::MergeInput;
use tlkit::safetensors::Checkpoint;
use tlkit::{Code, Error, Result};

use crate::args::Blobs;
use crate::output::Output;

pub(super) fn blob_source(blobs: &Blobs) -> Box<dyn BlobSource> {
    match &blobs.dir {
        Some(dir) => Box::new(DirBlobs(dir.clone())),
        None => Box::new(NoBlobs),
    }
}

pub(super) fn open_base(path: Option<&PathBuf>) -> Result<Option<Checkpoint>> {
    path.map(Checkpoint::open).transpose()
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
