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
use crate::store::{AdapterName, Batch, Name, Package, PutReport, Store, Which};

/// Adapters that are put at a time, where none is coded.
const WRITERS: usize = 16;

/// Adapters of a tenant that are read before they are put, where they are small.
const TOGETHER: usize = 128;

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
        let mut rows = Vec::with_capacity(adapters.len());
        for some in adapters.chunks(TOGETHER) {
            rows.extend(together(batch.as_ref(), some, options, progress)?);
        }
        Ok(rows)
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

/// An adapter that was read, and what coding it came to.
type Packed = (Package, Option<CodedAs>);

/// Puts some adapters of one tenant: the small ones at once, each other one when it was read, so that no two are in memory.
fn together(
    batch: Option<&Batch<'_>>,
    adapters: &[(&Candidate, AdapterName)],
    options: &ImportOptions,
    progress: Progress<'_>,
) -> Result<Vec<ImportedRow>> {
    let row = |at: &(&Candidate, AdapterName), packed: &Packed, put: Result<PutReport>| {
        let (candidate, name) = at;
        let row = match put {
            Err(e) if is_the_end(&e) => return Err(e),
            Err(e) => failed(candidate, Some(name), &e),
            Ok(report) => imported(candidate, name, packed, &report, options.dry_run),
        };
        progress.advance(1)?;
        Ok(row)
    };
    let read = |at: &(&Candidate, AdapterName)| {
        progress.check()?;
        let (candidate, name) = at;
        let packed = match read(candidate, options) {
            Ok(packed) => packed,
            Err(e) if is_the_end(&e) => return Err(e),
            Err(e) => {
                progress.advance(1)?;
                return Ok(Err(failed(candidate, Some(name), &e)));
            }
        };
        let report = match batch {
            None => Ok(PutReport {
                bytes: packed.0.logical_bytes(),
                ..PutReport::default()
            }),
            Some(batch) if packed.0.logical_bytes() > Batch::MAX_PACKED_BYTES => {
                batch.put(name, &packed.0)
            }
            Some(_) => return Ok(Ok(packed)),
        };
        Ok(Err(row(at, &packed, report)?))
    };
    let read: Vec<Result<std::result::Result<Packed, ImportedRow>>> =
        adapters.par_iter().map(read).collect();
    let read: Vec<_> = read.into_iter().collect::<Result<_>>()?;
    let small: Vec<(&(&Candidate, AdapterName), &Packed)> = adapters
        .iter()
        .zip(&read)
        .filter_map(|(at, read)| Some((at, read.as_ref().ok()?)))
        .collect();
    let named: Vec<(&AdapterName, &Package)> =
        small.iter().map(|((_, n), (p, _))| (n, p)).collect();
    let put = batch.map_or_else(Vec::new, |batch| batch.put_all(&named));
    let rows = small.iter().zip(put);
    let mut rows = rows
        .map(|((at, packed), put)| row(at, packed, put))
        .collect::<Result<Vec<_>>>()?;
    rows.extend(read.into_iter().filter_map(std::result::Result::err));
    Ok(rows)
}

fn read(candidate: &Candidate, options: &ImportOptions) -> Result<Packed> {
    let conversion = ToTiedOptions::default();
    let packed = package_coded(&candidate.path, &conversion, &NoBlobs, options.code);
    let (package, coded, _) = packed.map_err(|e| e.file(&candidate.path))?;
    Ok((package, coded))
}

fn imported(
    candidate: &Candidate,
    name: &AdapterName,
    (package, coded): &Packed,
    report: &PutReport,
    dry_run: bool,
) -> ImportedRow {
    ImportedRow {
        path: candidate.path.display().to_string(),
        adapter: Some(name.to_string()),
        version: (!dry_run).then_some(report.version),
        root: Some(package.root.to_string()),
        unchanged: report.unchanged,
        bytes: report.bytes,
        written: report.written,
        coded: *coded,
        code: None,
        message: None,
    }
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
