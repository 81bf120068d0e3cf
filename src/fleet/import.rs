//! Adapters in files and folders into a store, many in one run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use super::coded::{CodedAs, package_coded};
use crate::convert::ToTiedOptions;
use crate::error::{Code, Error, Result};
use crate::fit::CodeTarget;
use crate::format::NoBlobs;
use crate::progress::Progress;
use crate::store::{AdapterName, Batch, Name, PutReport, Store, Which};

/// Adapters that are put at a time, where none is coded.
const WRITERS: usize = 16;

/// An adapter to put, and whose it is; names as they stand in its path.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// A `.tl`, or an adapter's folder.
    pub path: PathBuf,
    /// The tenant, where known.
    pub user: Option<String>,
    /// The task, where known.
    pub task: Option<String>,
}

/// How to import.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    /// What each adapter's numbers are coded to keep to; as they are where not given.
    pub code: Option<CodeTarget>,
    /// Whether every adapter is read, and coded, and nothing is put.
    pub dry_run: bool,
}

/// What came of one adapter.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ImportedRow {
    /// Where it was.
    pub path: String,
    /// `USER/TASK`, where its path tells it.
    pub adapter: Option<String>,
    /// The number of its version; none in a dry run.
    pub version: Option<u64>,
    /// The root of what is stored.
    pub root: Option<String>,
    /// Whether the last version was this adapter already.
    pub unchanged: bool,
    /// Logical bytes of what is stored.
    pub bytes: u64,
    /// Bytes of the objects that were written.
    pub written: u64,
    /// What coding it came to.
    #[serde(flatten)]
    pub coded: Option<CodedAs>,
    /// The code of what is wrong, where it could not be put.
    pub code: Option<&'static str>,
    /// What is wrong.
    pub message: Option<String>,
}

/// What was imported.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// Number of tenants that they are of.
    pub tenants: usize,
    /// Adapters that were put, or would be.
    pub put: usize,
    /// Adapters that the store had already.
    pub unchanged: usize,
    /// Adapters that could not be put.
    pub failed: usize,
    /// Logical bytes of all that are in the store, or would be.
    pub bytes: u64,
    /// Bytes of the objects that were written.
    pub written: u64,
    /// The largest error of one that was coded.
    pub largest_error: Option<f64>,
    /// Whether nothing was put, since that was asked for.
    pub dry_run: bool,
    /// One for each adapter, by path.
    pub rows: Vec<ImportedRow>,
}

/// Puts every adapter under its name, tenants in parallel. One that fails is a row, and the others go on; one that is the
/// last version of its name already is not stored again, so that a run that was stopped goes on where it stopped.
/// `progress` counts adapters, and may end the import before each.
///
/// # Errors
/// [`Code::Usage`] and others of [`code`](crate::fit::code)'s target; [`Code::StoreBackend`] where the store fails,
/// [`Code::NoSpace`]; [`Code::Interrupted`] by `progress`. What was put by then is in the store.
pub fn import(
    store: &Store,
    candidates: &[Candidate],
    options: &ImportOptions,
    progress: Progress<'_>,
) -> Result<Imported> {
    options.code.map_or(Ok(()), CodeTarget::check)?;
    let mut rows = Vec::new();
    let mut names = BTreeSet::new();
    let mut by_user: BTreeMap<Name, Vec<(&Candidate, AdapterName)>> = BTreeMap::new();
    for candidate in candidates {
        match named(candidate, &mut names) {
            Ok(name) => {
                let user = name.user.clone();
                by_user.entry(user).or_default().push((candidate, name));
            }
            Err(error) => {
                progress.advance(1)?;
                rows.push(failed(candidate, None, &error));
            }
        }
    }
    let tenants = by_user.len();
    let of_user = |(user, adapters): (Name, Vec<(&Candidate, AdapterName)>)| {
        let batch = match options.dry_run {
            true => None,
            false => Some(store.batch(&user)?),
        };
        let one = |(candidate, name): &(&Candidate, AdapterName)| {
            progress.check()?;
            let row = match put(batch.as_ref(), candidate, name, options) {
                Err(e) if is_the_end(&e) => return Err(e),
                Err(e) => failed(candidate, Some(name), &e),
                Ok(row) => row,
            };
            progress.advance(1)?;
            Ok(row)
        };
        adapters.par_iter().map(one).collect::<Result<Vec<_>>>()
    };
    let all = || by_user.into_par_iter().map(of_user).collect::<Result<_>>();
    let put: Vec<Vec<ImportedRow>> = match options.code.is_some() || options.dry_run {
        true => all()?,
        false => waiting()?.install(all)?,
    };
    rows.extend(put.into_iter().flatten());
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(summed(rows, tenants, options.dry_run))
}

/// Threads for work that is mostly waiting for the store.
fn waiting() -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(WRITERS).build();
    pool.map_err(|e| Error::new(Code::OutOfMemory, format!("cannot start threads: {e}")).cause(e))
}

/// Whether an error is of the store, and no adapter's.
fn is_the_end(error: &Error) -> bool {
    [Code::StoreBackend, Code::NoSpace, Code::Interrupted].contains(&error.code())
}

/// The name of an adapter, which none before it has.
fn named(candidate: &Candidate, taken: &mut BTreeSet<(Name, Name)>) -> Result<AdapterName> {
    let part = |text: &Option<String>, what: &str| -> Result<Name> {
        let text = text
            .as_ref()
            .ok_or_else(|| Error::new(Code::StoreName, format!("the path tells no {what}")))?;
        text.parse()
    };
    let mut named = || {
        let (user, task) = (
            part(&candidate.user, "user")?,
            part(&candidate.task, "task")?,
        );
        if !taken.insert((user.clone(), task.clone())) {
            let message = format!("another adapter before it is `{user}/{task}`");
            return Err(Error::new(Code::StoreName, message));
        }
        Ok(AdapterName {
            user,
            task,
            which: Which::Latest,
        })
    };
    named().map_err(|e| e.file(&candidate.path))
}

fn put(
    batch: Option<&Batch<'_>>,
    candidate: &Candidate,
    name: &AdapterName,
    options: &ImportOptions,
) -> Result<ImportedRow> {
    let conversion = ToTiedOptions::default();
    let packed = package_coded(&candidate.path, &conversion, &NoBlobs, options.code);
    let (package, coded, _) = packed.map_err(|e| e.file(&candidate.path))?;
    let report = match batch {
        None => PutReport {
            bytes: package.logical_bytes(),
            ..PutReport::default()
        },
        Some(batch) => batch.put(name, &package)?,
    };
    Ok(ImportedRow {
        path: candidate.path.display().to_string(),
        adapter: Some(name.to_string()),
        version: (!options.dry_run).then_some(report.version),
        root: Some(package.root.to_string()),
        unchanged: report.unchanged,
        bytes: report.bytes,
        written: report.written,
        coded,
        code: None,
        message: None,
    })
}

fn failed(candidate: &Candidate, name: Option<&AdapterName>, error: &Error) -> ImportedRow {
    ImportedRow {
        path: candidate.path.display().to_string(),
        adapter: name.map(ToString::to_string),
        version: None,
        root: None,
        unchanged: false,
        bytes: 0,
        written: 0,
        coded: None,
        code: Some(error.code().as_str()),
        message: Some(error.to_string()),
    }
}

fn summed(rows: Vec<ImportedRow>, tenants: usize, dry_run: bool) -> Imported {
    let count = |of: fn(&ImportedRow) -> bool| rows.iter().filter(|r| of(r)).count();
    let errors = rows.iter().filter_map(|r| r.coded.map(|c| c.error));
    Imported {
        tenants,
        put: count(|r| r.code.is_none() && !r.unchanged),
        unchanged: count(|r| r.unchanged),
        failed: count(|r| r.code.is_some()),
        bytes: rows.iter().map(|r| r.bytes).sum(),
        written: rows.iter().map(|r| r.written).sum(),
        largest_error: errors.reduce(f64::max),
        dry_run,
        rows,
    }
}
