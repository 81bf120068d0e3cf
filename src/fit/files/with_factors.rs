//! A PEFT directory to a `.tl` with the A and B of another.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::thin::{BLOBS, write_over};
use crate::adapter::TieGroup;
use crate::convert::{ToTiedOptions, import_tied};
use crate::digest::Digest;
use crate::error::Result;
use crate::fit::with_factors::fit_with_factors_of;
use crate::format::{BlobSource, DirBlobs, NoBlobs, TlFile};

/// Report of [`peft_to_tied_with_factors_of`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToTiedWithFactors {
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over the modules that take A and B from the pair.
    pub error: f64,
    /// Number of these modules.
    pub modules: usize,
    /// Modules that the pair does not have; they stay as they are.
    pub kept: usize,
    /// Bytes of the PEFT files.
    pub bytes_before: u64,
    /// Bytes of the `.tl`.
    pub bytes: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// Converts a PEFT adapter to a `.tl` with the A and B of another `.tl`. With `blobs`, where what that
/// one leaves out is found, A and B are left out of the new one too.
///
/// # Errors
/// Those of [`import_tied`], [`fit_with_factors_of`], [`TlFile::open`] and [`TlFile::load`].
pub fn peft_to_tied_with_factors_of(
    dir: &Path,
    output: &Path,
    pair: &Path,
    blobs: Option<&Path>,
    options: &ToTiedOptions<'_>,
) -> Result<ToTiedWithFactors> {
    let source: Box<dyn BlobSource> = match blobs {
        Some(dir) => Box::new(DirBlobs(dir.to_owned())),
        None => Box::new(NoBlobs),
    };
    let pair = TlFile::open(pair)?.load(&*source)?;
    let tied = import_tied(dir, options).map_err(|e| e.file(dir))?;
    let fitted = fit_with_factors_of(&tied, &pair).map_err(|e| e.file(dir))?;
    let factors = |g: &TieGroup| [&g.a, &g.b].map(|f| Digest::of(f.tensor.data()));
    let out = match blobs {
        Some(_) => pair.groups.iter().flat_map(factors).collect(),
        None => BTreeSet::new(),
    };
    let blobs = blobs.unwrap_or(Path::new(BLOBS));
    let (root, bytes) = write_over(&fitted.adapter, output, blobs, out, &options.write)?;
    Ok(ToTiedWithFactors {
        error: fitted.error,
        modules: fitted.modules,
        kept: fitted.adapter.modules().len() - fitted.modules,
        bytes_before: tied.bytes,
        bytes,
        root,
        notes: tied.notes,
        output: output.to_owned(),
    })
}
