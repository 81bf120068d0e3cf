//! An adapter coded on its way into a store or out of it.

use std::path::Path;

use serde::Serialize;

use super::package::{package_adapter, package_any};
use crate::adapter::{Adapter, TieGroup};
use crate::convert::{ToTiedOptions, import_or_open};
use crate::error::Result;
use crate::fit::{CodeTarget, CodedReport, code};
use crate::format::{BlobSource, TlFile};
use crate::open::is_foreign;
use crate::store::Package;

/// What coding an adapter came to, all its modules together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedAs {
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of what a reader gets, over all modules that are coded.
    pub error: f64,
    /// Bytes of the adapter as a `.tl`, all of them.
    pub coded_bytes: u64,
    /// Bits of that file for each number of the factors as they were.
    pub bits: f64,
    /// Bits that no code of Gaussian components of these energies needs less than at this error.
    pub bound: f64,
}

impl CodedAs {
    fn of(report: &CodedReport) -> Self {
        Self {
            error: report.error,
            coded_bytes: report.file_bytes,
            bits: report.bits,
            bound: report.bound,
        }
    }
}

/// What one is told who meant to code what is coded.
const CODED_ALREADY: &str = "the adapter is coded already, and is kept as it is";

/// The package of a `.tl` or of an adapter's folder as [`package_any`] makes it, its numbers coded where a target is
/// given; an adapter that is coded already stays what it is, with a note. The root is that of what is stored.
///
/// # Errors
/// Those of [`package_any`] and [`code`].
pub fn package_coded(
    path: &Path,
    options: &ToTiedOptions<'_>,
    blobs: &dyn BlobSource,
    target: Option<CodeTarget>,
) -> Result<(Package, Option<CodedAs>, Vec<String>)> {
    let Some(target) = target else {
        let (package, notes) = package_any(path, options, blobs)?;
        return Ok((package, None, notes));
    };
    let (adapter, notes) = match is_foreign(path) {
        true => {
            let tied = import_or_open(path, options).map_err(|e| e.file(path))?;
            (tied.adapter, tied.notes)
        }
        false => (TlFile::open(path)?.load(blobs)?, Vec::new()),
    };
    let Some((adapter, coded)) = coded(&adapter, target).map_err(|e| e.file(path))? else {
        let (package, mut notes) = package_any(path, options, blobs)?;
        notes.push(CODED_ALREADY.to_owned());
        return Ok((package, None, notes));
    };
    let package = package_adapter(&adapter).map_err(|e| e.file(path))?;
    Ok((package, Some(coded), notes))
}

/// The adapter coded; `None` where it is already.
///
/// # Errors
/// Those of [`code`].
pub(super) fn coded(adapter: &Adapter, target: CodeTarget) -> Result<Option<(Adapter, CodedAs)>> {
    let mut factors = adapter.groups.iter().flat_map(TieGroup::factors);
    if factors.any(|(_, f)| f.tensor.coded_bytes().is_some()) {
        return Ok(None);
    }
    let (adapter, report) = code(adapter, target)?;
    Ok(Some((adapter, CodedAs::of(&report))))
}

/// As [`coded`], with a note in place of `None`.
pub(super) fn or_as_it_is(
    adapter: Adapter,
    target: Option<CodeTarget>,
    notes: &mut Vec<String>,
) -> Result<(Adapter, Option<CodedAs>)> {
    let Some(target) = target else {
        return Ok((adapter, None));
    };
    Ok(match coded(&adapter, target)? {
        Some((adapter, report)) => (adapter, Some(report)),
        None => {
            notes.push(CODED_ALREADY.to_owned());
            (adapter, None)
        }
    })
}
