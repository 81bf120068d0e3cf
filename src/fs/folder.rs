//! Folders that appear under their name only when they are complete.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::check::check_output;
use super::parent::{Parent, sync_dir};
use super::rule::{Existing, Output};
use super::staging::Staging;
use crate::error::{Error, Result};

/// Fills a folder that appears under its name only when it is complete and on the disk.
///
/// `fill` gets the folder under another name, hidden beside the output; where it fails, that is
/// removed. The files in it are synced by `fill`, the names in it and its own by this.
///
/// # Errors
/// [`Code::OutputExists`](crate::Code::OutputExists) as [`check_output`];
/// [`Code::Io`](crate::Code::Io) and its kin; whatever `fill` fails with.
pub fn write_dir(
    dest: &Path,
    output: Output<'_>,
    existing: Existing,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let dest = check_output(dest, output, existing)?;
    let parent = Parent::of(&dest);
    let staging = Staging::create(&dest)?;
    let folder = staging.new_path();
    make_dir(&folder, 0o777).map_err(|e| Error::io(&dest, "create", e))?;
    fill(&folder)?;
    sync_dir(&folder)?;
    staging.publish(output, existing)?;
    parent.sync()
}

/// Makes a folder with the permissions `mode` less those of the umask.
pub(crate) fn make_dir(path: &Path, mode: u32) -> std::io::Result<()> {
    DirBuilder::new().mode(mode & 0o777).create(path)
}
