//! Where a store's objects lie: six operations over a folder or an object store.
//!
//! Everything above this file is written for these six alone, so that a folder, S3, Google Cloud
//! Storage, Azure and memory run the same code. Conditional creation is the one primitive that
//! orders writers; no operation overwrites what another writer may be changing.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use tokio::runtime::Runtime;
use url::Url;

use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// Requests under way at once.
const PARALLEL: usize = 32;
/// Longest object that is read: a blob of the largest tensor, and its frame.
const MAX_OBJECT_BYTES: u64 = crate::format::MAX_TENSOR_BYTES + (1 << 20);

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its key, relative to the store.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The objects of one store.
#[derive(Clone)]
pub struct Backend {
    objects: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
    prefix: Path,
    address: String,
    /// The folder, where the objects are files.
    folder: Option<PathBuf>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.address)
    }
}

impl Backend {
    /// The backend at an address: a folder's path or `file://`, `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`, or `memory:`, which lasts as long as the
    /// value. Credentials, region and endpoint come from the environment, by the names that
    /// the clouds' own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …).
    ///
    /// # Errors
    /// [`Code::StoreUrl`] for any other address; [`Code::StoreBackend`] where the settings in the
    /// environment are not valid; [`Code::Io`].
    pub fn open(address: &str) -> Result<Self> {
        let bad = |message: String| {
            Error::new(Code::StoreUrl, format!("`{address}`: {message}"))
                .hint("a folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory:")
        };
        if address == "memory:" {
            return Self::new(Arc::new(InMemory::new()), "", address);
        }
        let url = match address.split_once("://") {
            None => None,
            Some(_) => Some(Url::parse(address).map_err(|e| bad(e.to_string()))?),
        };
        match url.as_ref().map(Url::scheme) {
            None => Self::folder(FilePath::new(address), address),
            Some("file") => {
                let path = url.as_ref().and_then(|u| u.to_file_path().ok());
                let path = path.ok_or_else(|| bad("not a local path".into()))?;
                Self::folder(&path, address)
            }
            Some("s3" | "s3a" | "gs" | "az" | "abfs" | "abfss" | "azure") => {
                let Some(url) = &url else {
                    return Err(bad("not a URL".into()));
                };
                if !url.username().is_empty() || url.password().is_some() {
                    // Not the address itself: it must not get into logs.
                    let message = "credentials do not belong into an address";
                    return Err(Error::new(Code::StoreUrl, message)
                        .hint("they come from the environment: AWS_ACCESS_KEY_ID and its like"));
                }
                let (objects, prefix) = object_store::parse_url_opts(url, environment())
                    .map_err(|e| Error::new(Code::StoreBackend, one_line(&e)).file(address))?;
                Self::new(objects.into(), prefix.as_ref(), address)
            }
            Some(other) => Err(bad(format!("unknown scheme `{other}`"))),
        }
    }

    fn folder(path: &FilePath, address: &str) -> Result<Self> {
        // Not created here: a mistyped address must not leave folders behind.
        if !path.is_dir() {
            return Err(no_store(address));
        }
        let objects = LocalFileSystem::new_with_prefix(path)
            .map_err(|e| Error::new(Code::Io, one_line(&e)).file(path))?;
        let mut backend = Self::new(Arc::new(objects.with_fsync(true)), "", address)?;
        backend.folder = Some(path.to_owned());
        Ok(backend)
    }

    /// The backend for [`Store::init`](super::Store::init), which may make a folder.
    pub(super) fn create_at(address: &str) -> Result<Self> {
        if !address.contains("://") && address != "memory:" {
            std::fs::create_dir_all(address).map_err(|e| Error::io(address, "create", e))?;
        }
        Self::open(address)
    }

    /// A backend over any object store, its keys below `prefix`.
    ///
    /// # Errors
    /// [`Code::StoreUrl`] where the prefix is no valid path, [`Code::Io`] without threads.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str, address: &str) -> Result<Self> {
        let prefix = Path::parse(prefix).map_err(|e| Error::new(Code::StoreUrl, e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tlkit-store")
            .enable_all()
            .build()
            .map_err(|e| Error::new(Code::Io, format!("cannot start threads: {e}")))?;
        Ok(Self {
            objects,
            runtime: Arc::new(runtime),
            prefix,
            address: address.to_owned(),
            folder: None,
        })
    }

    /// The same threads over other objects, for tests that need many.
    #[cfg(test)]
    pub(super) fn over(&self, objects: Arc<dyn ObjectStore>) -> Self {
        Self {
            objects,
            ..self.clone()
        }
    }

    /// The address as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The object store below.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// Writes an object that must not exist; whole or not at all, and durably. `false`: it exists.
    ///
    /// # Errors
    /// [`Code::StoreBackend`], [`Code::NoSpace`].
    pub fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool> {
        let path = self.path(key)?;
        let put = self
            .objects
            .put_opts(&path, PutPayload::from(bytes), PutMode::Create.into());
        match self.runtime.block_on(put) {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(e) => Err(self.failed("create", key, &e)),
        }
    }

    /// Writes an object whether it exists or not; whole or not at all, and durably.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn replace(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.path(key)?;
        let put = self.objects.put(&path, PutPayload::from(bytes));
        match self.runtime.block_on(put) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failed("write", key, &e)),
        }
    }

    /// The bytes of an object; `None` where there is none.
    ///
    /// # Errors
    /// [`Code::StoreRecord`] where it is longer than `limit`; [`Code::StoreBackend`].
    pub fn read(&self, key: &str, limit: u64) -> Result<Option<Bytes>> {
        self.runtime.block_on(self.fetch(key, limit))
    }

    /// As [`read`](Self::read) for many, some at a time, in the order of `keys`.
    pub fn read_many(&self, keys: &[String], limit: u64) -> Vec<Result<Option<Bytes>>> {
        let reads = keys.iter().map(|key| self.fetch(key, limit));
        let all = futures_util::stream::iter(reads).buffered(PARALLEL);
        self.runtime.block_on(all.collect())
    }

    async fn fetch(&self, key: &str, limit: u64) -> Result<Option<Bytes>> {
        let path = self.path(key)?;
        let found = match self.objects.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.failed("read", key, &e)),
        };
        let limit = limit.min(MAX_OBJECT_BYTES);
        if found.meta.size > limit {
            let message = format!("{} bytes, the limit is {limit}", found.meta.size);
            return Err(Error::new(Code::StoreRecord, message).file(self.show(key)));
        }
        match found.bytes().await {
            Ok(bytes) => Ok(Some(Bytes::from_owner(bytes))),
            Err(e) => Err(self.failed("read", key, &e)),
        }
    }

    /// Every object below a folder, sorted by key.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        let path = self.path(folder)?;
        let listing = self
            .objects
            .list(Some(&path))
            .map_ok(|meta| (meta.location, meta.size));
        let found: std::result::Result<Vec<_>, _> = self.runtime.block_on(listing.try_collect());
        let found = match found {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(e) => return Err(self.failed("list", folder, &e)),
        };
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|(location, bytes)| {
                let parts = location.prefix_match(&self.prefix)?;
                let parts: Vec<_> = parts.map(|p| p.as_ref().to_owned()).collect();
                Some(Entry {
                    key: parts.join("/"),
                    bytes,
                })
            })
            .collect();
        entries.sort_unstable();
        Ok(entries)
    }

    /// The names of the folders right below a folder, sorted.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder)?;
        let listing = self
            .runtime
            .block_on(self.objects.list_with_delimiter(Some(&path)));
        let found = match listing {
            Ok(found) => found.common_prefixes,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(e) => return Err(self.failed("list", folder, &e)),
        };
        let mut names: Vec<String> = found
            .iter()
            .filter_map(|p| p.filename().map(str::to_owned))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.runtime.block_on(self.objects.delete(&path)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete", key, &e)),
        }
    }

    /// As [`delete`](Self::delete) for many, as many at a time as the service takes.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn delete_many(&self, keys: &[String]) -> Result<()> {
        let paths: Result<Vec<Path>> = keys.iter().map(|key| self.path(key)).collect();
        let paths = futures_util::stream::iter(paths?.into_iter().map(Ok));
        let mut deleted = self.objects.delete_stream(paths.boxed());
        self.runtime.block_on(async {
            while let Some(result) = deleted.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => return Err(self.failed("delete", "", &e)),
                }
            }
            Ok(())
        })
    }

    /// Removes the temporary files that killed writers left in a folder, where they are older than
    /// `age`; gives their number. Listings never show them.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub fn sweep_temporary(&self, age: Duration) -> Result<u64> {
        match &self.folder {
            Some(folder) => sweep(folder, age),
            None => Ok(0),
        }
    }

    /// Whether listings go through the keys in their order, as those of object stores do.
    pub(super) fn lists_in_order(&self) -> bool {
        self.folder.is_none()
    }

    /// An object as a message names it.
    pub fn show(&self, key: &str) -> String {
        format!("{}/{key}", self.address.trim_end_matches('/'))
    }

    fn path(&self, key: &str) -> Result<Path> {
        let below = Path::parse(key).map_err(|e| Error::new(Code::StoreName, e.to_string()))?;
        Ok(self.prefix.parts().chain(below.parts()).collect())
    }

    fn failed(&self, doing: &str, key: &str, e: &object_store::Error) -> Error {
        let full = io_kind(e) == Some(std::io::ErrorKind::StorageFull);
        let code = if full {
            Code::NoSpace
        } else {
            Code::StoreBackend
        };
        Error::new(code, format!("cannot {doing}: {}", one_line(e))).file(self.show(key))
    }
}

/// Temporary files are named after their object, a `#` and a number; no key has a `#`.
fn sweep(folder: &FilePath, age: Duration) -> Result<u64> {
    let failed = |e| Error::io(folder, "clean", e);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            count += sweep(&entry.path(), age)?;
            continue;
        }
        let name = entry.file_name();
        let temporary = name.to_str().and_then(|n| n.rsplit_once('#'));
        let temporary = temporary.is_some_and(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
        let modified = entry.metadata().and_then(|m| m.modified()).ok();
        let old = modified
            .and_then(|m| m.elapsed().ok())
            .is_some_and(|e| e >= age);
        if kind.is_file() && temporary && old {
            std::fs::remove_file(entry.path()).map_err(failed)?;
            count += 1;
        }
    }
    Ok(count)
}

/// What a failure of the operating system below it says.
fn io_kind(e: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut at = Some(e);
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        at = e.source();
    }
    None
}

fn one_line(e: &object_store::Error) -> String {
    let text = e.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn no_store(address: &str) -> Error {
    Error::new(Code::NoStore, "there is no store here")
        .file(address)
        .hint("make one with `tlkit store init`")
}

/// The variables of the clouds, as far as they are text. The library below takes names without
/// a cloud's prefix too (`TOKEN`, `ENDPOINT`), which mean other things in an environment.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| {
        let key = key.into_string().ok()?.to_lowercase();
        let known = ["aws_", "google_", "azure_"]
            .iter()
            .any(|p| key.starts_with(p));
        known.then_some((key, value.into_string().ok()?))
    })
}
