//! Outputs as the command line names them: whether they may be replaced, and who may read them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use tlkit::Result;
use tlkit::fs::{self, Existing};

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
    let closed = Mode::from_raw_mode(!mode & 0o077);
    let before = umask(closed);
    umask(before | closed);
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}
