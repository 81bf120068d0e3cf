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

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use rustix::fs::Mode;
use rustix::process::umask;
use tlkit::Result;
use tlkit::format::{BlobSource, DirBlobs, NoBlobs};
use tlkit::fs::{self, Existing};
use tlkit::safetensors::Checkpoint;

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

/// Refuses an output before any work: where it exists and must not be replaced, and where it is one of
/// the inputs. Gives its path.
fn check_output(
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
fn as_closed_as<'p>(inputs: impl IntoIterator<Item = &'p Path>) {
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
    let closed = Mode::from_raw_mode(!mode & 0o077);
    let before = umask(closed);
    umask(before | closed);
}

fn open_base(path: Option<&PathBuf>) -> Result<Option<Checkpoint>> {
    path.map(Checkpoint::open).transpose()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
