//! One file for each command: arguments in, library called, report out.

pub(crate) mod audit;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod each;
pub(crate) mod eval;
mod fit;
pub(crate) mod fleet;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
mod opened;
pub(crate) mod pack;
pub(crate) mod params;
pub(crate) mod plan;
mod share;
pub(crate) mod store;
pub(crate) mod sweep;
pub(crate) mod train;
pub(crate) mod verify;

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use tlkit::Result;
use tlkit::format::{BlobSource, DirBlobs, NoBlobs};
use tlkit::safetensors::{Checkpoint, Existing};

use crate::args::{Blobs, Cli};
use crate::output::{Outcome, Output};

pub(crate) fn completions(shell: clap_complete::Shell, output: &Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tlkit", &mut script);
    output.print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Outcome::Success)
}

fn blob_source(blobs: &Blobs) -> Box<dyn BlobSource> {
    match &blobs.dir {
        Some(dir) => Box::new(DirBlobs(dir.clone())),
        None => Box::new(NoBlobs),
    }
}

fn existing(force: bool) -> Existing {
    if force {
        Existing::Replace
    } else {
        Existing::Refuse
    }
}

fn open_base(path: Option<&PathBuf>) -> Result<Option<Checkpoint>> {
    path.map(Checkpoint::open).transpose()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
