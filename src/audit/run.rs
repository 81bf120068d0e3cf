//! The audit of folders, files and stores.

use std::path::PathBuf;

use rayon::prelude::*;

use super::bases::Bases;
use super::money::Prices;
use super::owner::{Owner, Owners};
use super::problem::Problem;
use super::report::{Context, Report};
use super::row::Row;
use super::{measured, read, scan, stored};
use crate::error::{Code, Error, Result};
use crate::progress::Progress;

/// What [`audit`] is told beside the paths.
#[derive(Default)]
#[non_exhaustive]
pub struct AuditOptions<'a> {
    /// Where user and task come from.
    pub owners: Owners,
    /// Read and hash PEFT tensors, so that equal ones are found (`.tl` files have digests).
    pub hash: bool,
    /// Read the weights of the first so many adapters and compress them with zstd.
    pub measure: Option<usize>,
    /// Read the weights of the first so many adapters, those of stores last, and make other forms of each in memory:
    /// coded at the errors [`Form::PERCENT`](super::Form::PERCENT), as int8, truncated, and of each LoRA in a folder
    /// the closest tied adapter at its own rank.
    pub fit: Option<usize>,
    /// Folders of base models: rows whose adapters were trained over one of them, by its name, say how it is stored.
    pub bases: Vec<PathBuf>,
    /// What bytes and requests cost.
    pub prices: Prices,
    /// Counts adapters, and may end the audit.
    pub progress: Progress<'a>,
}

/// Adapters with their owners, and what could not be listed.
pub type Owned = (Vec<(PathBuf, Owner)>, Vec<Problem>);

/// The adapters below the paths, those of stores left aside, by path, each with its owner as far as it is known; and
/// what could not be listed.
///
/// # Errors
/// [`Code::NothingToAudit`]; [`Code::NotFound`] and [`Code::Io`] for the paths themselves.
pub fn find(paths: &[PathBuf], owners: &Owners) -> Result<Owned> {
    let scan = scan::scan(paths)?;
    if scan.found.is_empty() {
        return Err(nothing(paths));
    }
    let found = scan.found.into_iter().map(|found| {
        let owner = owners.find(&found.relative, &found.path.display().to_string());
        (found.path, owner.unwrap_or_default())
    });
    Ok((found.collect(), scan.problems))
}

fn nothing(paths: &[PathBuf]) -> Error {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let message = format!("no adapter in {}", names.join(", "));
    Error::new(Code::NothingToAudit, message)
        .hint("an adapter is a folder with adapter_config.json, or a .tl file")
}

/// Audits folders and files, reading headers only unless the options say otherwise.
///
/// A file that cannot be read is a row with its error. The report is the same for any number of
/// threads.
///
/// # Errors
/// [`Code::NothingToAudit`]; [`Code::NotFound`] and [`Code::Io`] for the paths themselves, and for the bases, also
/// [`Code::ConfigInvalid`] and those of opening a checkpoint; [`Code::Usage`] for prices that are none; [`Code::Interrupted`] by `progress`.
pub fn audit(paths: &[PathBuf], options: &AuditOptions<'_>) -> Result<Report> {
    options.prices.check()?;
    let bases = Bases::open(&options.bases)?;
    let (mut stores, folders): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.iter().cloned().partition(|p| stored::is_remote(p));
    let mut scan = scan::scan(&folders)?;
    stores.append(&mut scan.stores);
    let fitted = options.fit.unwrap_or(0);
    let mut stored = Vec::new();
    for store in &stores {
        let made = fitted.saturating_sub(scan.found.len() + stored.len());
        match stored::rows(&store.to_string_lossy(), made, &options.progress) {
            Ok((rows, other)) => {
                stored.extend(rows);
                scan.other.add(&other);
            }
            Err(e) if paths.contains(store) => return Err(e),
            Err(e) => scan.problems.push(Problem::from(&e)),
        }
    }
    if scan.found.is_empty() && stored.is_empty() {
        return Err(nothing(paths));
    }
    let packed = options.measure.unwrap_or(0);
    let row = |(at, found): (usize, &scan::Found)| {
        let depth = read::Depth {
            hash: options.hash,
            measure: at < packed,
        };
        let parts = read::read(found, depth);
        let made = match at < fitted {
            true => measured::measure(&found.path, &parts),
            false => None,
        };
        let owner = options.owners.find(&found.relative, &parts.path);
        options.progress.advance(1)?;
        Ok(parts.into_row(owner.unwrap_or_default(), made))
    };
    let rows = scan.found.par_iter().enumerate().map(row);
    let mut rows: Vec<Row> = rows.collect::<Result<_>>()?;
    rows.extend(stored);
    bases.tell(&mut rows);
    let context = Context {
        roots: paths.iter().map(|p| p.display().to_string()).collect(),
        hashed: options.hash,
        other: scan.other,
        folder_links: scan.folder_links,
        problems: scan.problems,
        prices: options.prices,
    };
    Ok(Report::from_rows(rows, context))
}
