//! All of a store, or of one tenant, as files.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::get::{Form, GetOptions, Gguf, get};
use crate::error::{Code, Error, Result};
use crate::fit::CodeTarget;
use crate::fs::Existing;
use crate::progress::Progress;
use crate::store::{AdapterName, Listed, Name, Store, Which};

/// The folder of an export that holds published blobs.
const BLOBS: &str = "blobs";

/// What to export, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportOptions {
    /// One tenant; all of them where not given.
    pub user: Option<Name>,
    /// Whether seeded tensors and published blobs are left out, the blobs once in `blobs/`.
    pub thin: bool,
    /// Whether they are written for llama.cpp, as `DIR/USER/TASK.gguf`.
    pub gguf: Option<Gguf>,
    /// What each adapter's numbers are coded to keep to; as they are where not given.
    pub code: Option<CodeTarget>,
    /// What to do with existing files.
    pub existing: Existing,
}

impl Default for ExportOptions {
    /// Everything, in fat files, over no existing ones.
    fn default() -> Self {
        Self {
            user: None,
            thin: false,
            gguf: None,
            code: None,
            existing: Existing::Refuse,
        }
    }
}

/// What was exported.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// Number of tenants.
    pub tenants: usize,
    /// Number of adapters written.
    pub adapters: usize,
    /// Their bytes, without blobs.
    pub bytes: u64,
    /// Number of published blobs written.
    pub blobs: usize,
    /// The adapters that could not be written.
    pub failed: Vec<NotExported>,
    /// The folder.
    pub output: PathBuf,
}

/// An adapter that could not be exported.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NotExported {
    /// `USER/TASK`, or `USER` whose adapters could not be listed.
    pub adapter: String,
    /// The code of what is wrong.
    #[serde(serialize_with = "as_str")]
    pub code: Code,
    /// What is wrong.
    pub message: String,
}

/// Writes the last version of every adapter as `dir/USER/TASK.tl`, or `.gguf`, each whole or not at all, and
/// holds one at a time. One that fails is reported, and the others go on. `progress` counts tenants,
/// and may end the export before each adapter.
///
/// # Errors
/// [`Code::StoreBackend`] where the store cannot be listed, [`Code::NoSpace`]; [`Code::Io`] where
/// `dir` cannot be made; [`Code::NotInStore`] where there is no such tenant;
/// [`Code::Interrupted`] by `progress`.
pub fn export(
    store: &Store,
    dir: &Path,
    options: &ExportOptions,
    progress: Progress<'_>,
) -> Result<Exported> {
    let tenants = tenants(store, options.user.as_ref())?;
    let mut done = Exported {
        tenants: tenants.len(),
        output: dir.to_owned(),
        ..Exported::default()
    };
    // What was there already, as long as nothing else was written.
    let (mut same, mut fresh) = (Vec::new(), false);
    for user in &tenants {
        let listed = match store.list(user) {
            // The tenant's part of the store, not the store.
            Err(e) if e.code() != Code::StoreBackend => {
                done.fail(user.to_string(), &e);
                continue;
            }
            listed => listed?,
        };
        let folder = dir.join(user.as_str());
        if !listed.is_empty() {
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
        }
        for adapter in &listed {
            progress.advance(0)?;
            let name = format!("{user}/{}", adapter.task);
            let end = if options.gguf.is_some() { "gguf" } else { "tl" };
            let output = folder.join(format!("{}.{end}", adapter.task));
            let was_there = output.symlink_metadata().is_ok();
            match one(store, dir, &output, adapter, options) {
                Ok((bytes, blobs)) => {
                    done.adapters += 1;
                    done.bytes += bytes;
                    done.blobs += blobs;
                    match was_there && options.existing == Existing::Refuse {
                        true if !fresh => same.push((name, output)),
                        true => {}
                        false => {
                            fresh = true;
                            same.clear();
                        }
                    }
                }
                Err(e) if e.code() == Code::NoSpace => return Err(e),
                // Removed since it was listed.
                Err(e) if e.code() == Code::NotInStore => {}
                Err(e) => done.fail(name, &e),
            }
        }
        progress.advance(1)?;
    }
    if !fresh {
        // None was missing: the files exist, as those of any other command.
        (done.adapters, done.bytes, done.blobs) = (0, 0, 0);
        for (adapter, output) in same {
            done.fail(adapter, &Error::output_exists(output));
        }
    }
    Ok(done)
}

/// The tenants to export.
pub(super) fn tenants(store: &Store, only: Option<&Name>) -> Result<Vec<Name>> {
    let mut tenants = store.tenants()?;
    if let Some(user) = only {
        tenants.retain(|t| t == user);
        if tenants.is_empty() {
            let message = format!("no tenant `{user}`");
            return Err(Error::new(Code::NotInStore, message).file(store.backend().address()));
        }
    }
    Ok(tenants)
}

impl Exported {
    fn fail(&mut self, adapter: String, e: &Error) {
        self.failed.push(NotExported {
            adapter,
            code: e.code(),
            message: e.to_string(),
        });
    }
}

fn one(
    store: &Store,
    dir: &Path,
    output: &Path,
    adapter: &Listed,
    options: &ExportOptions,
) -> Result<(u64, usize)> {
    let name = AdapterName {
        user: adapter.user.clone(),
        task: adapter.task.clone(),
        which: Which::Latest,
    };
    let get_options = GetOptions {
        form: match (&options.gguf, options.thin) {
            (Some(gguf), _) => Form::Gguf(gguf.clone()),
            (None, true) => Form::Thin(Some(dir.join(BLOBS))),
            (None, false) => Form::Fat,
        },
        code: options.code,
        // An export that was killed has left some of its files.
        existing: match options.existing {
            Existing::Refuse => Existing::Same,
            other => other,
        },
        ..GetOptions::default()
    };
    let got = get(store, &name, output, &get_options)?;
    Ok((got.bytes, got.blobs_written))
}

fn as_str<S: serde::Serializer>(code: &Code, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(code.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::fleet::package;
    use crate::format::NoBlobs;

    /// Breaks where a user who stops an export waits for its end, or finds half a file.
    #[test]
    fn a_stopped_export_leaves_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/adapters/style-tl6.tl"
        );
        let address = dir.path().join("store");
        let store = Store::init(address.to_str().unwrap(), 60).unwrap();
        let package = package(fixture.as_ref(), &NoBlobs).unwrap();
        for name in ["alice/one", "alice/two", "bob/one"] {
            store.put(&name.parse().unwrap(), &package, None).unwrap();
        }
        let options = ExportOptions {
            user: None,
            thin: false,
            gguf: None,
            code: None,
            existing: Existing::Refuse,
        };
        let (calls, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let second = |_| {
            if calls.fetch_add(1, Ordering::Relaxed) == 1 {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let progress = Progress::new().counted_by(&second).stopped_by(&stop);
        let out = dir.path().join("out");
        let stopped = export(&store, &out, &options, progress);
        assert_eq!(stopped.unwrap_err().code(), Code::Interrupted);
        let names = |folder: &Path| -> Vec<_> {
            let entries = fs::read_dir(folder).unwrap();
            entries.map(|e| e.unwrap().file_name()).collect()
        };
        assert_eq!(names(&out), ["alice"]);
        assert_eq!(names(&out.join("alice")), ["one.tl"]);
        assert_eq!(
            fs::read(out.join("alice/one.tl")).unwrap(),
            fs::read(fixture).unwrap()
        );
    }
}
