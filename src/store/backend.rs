//! Where a store's objects lie: six operations over a folder or an object store.
//!
//! Everything above this file is written for these six alone, so that a folder, S3, Google Cloud
//! Storage, Azure and memory run the same code. Conditional creation is the one primitive that
//! orders writers; no operation overwrites what another writer may be changing.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
#[cfg(feature = "cloud")]
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use tokio::runtime::Runtime;
use url::Url;

use super::blob::MAX_BLOB_BYTES;
use super::failure::no_store;
use super::folder::{Folder, IRREGULAR, Irregular, Stray};
use super::redact::{Redact, shown_address};
use super::{cloud, layout};
use crate::error::{Code, Error, Result};
use crate::tensor::Bytes;

/// How often a request is sent again whose connection broke, and how long before the first time.
const RETRIES: u32 = 4;
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Requests under way at once.
const PARALLEL: usize = 32;
/// Longest object that is read: a blob of the largest tensor, and its frame.
const MAX_OBJECT_BYTES: u64 = MAX_BLOB_BYTES + (1 << 20);

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its key, relative to the store.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether it can be read: in a folder, a link or a device may have an object's name.
    pub regular: bool,
}

/// The objects of one store.
#[derive(Clone)]
pub struct Backend {
    objects: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
    prefix: Path,
    address: String,
    /// The folder, where the objects are files.
    folder: Option<Folder>,
    redact: Arc<Redact>,
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
            let message = format!("`{}`: {message}", shown_address(address));
            Error::new(Code::StoreUrl, message)
                .hint("a folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory:")
        };
        if address == "memory:" {
            return Self::new(Arc::new(InMemory::new()), "", address);
        }
        if !address.contains("://") {
            return Self::folder(FilePath::new(address), address);
        }
        let url = Url::parse(address).map_err(|e| bad(e.to_string()).cause(e))?;
        match url.scheme() {
            "file" => {
                let path = url.to_file_path().ok();
                let path = path.ok_or_else(|| bad("not a local path".into()))?;
                Self::folder(&path, address)
            }
            "s3" | "s3a" | "gs" | "az" | "abfs" | "abfss" | "azure" => {
                let user = !url.username().is_empty() || url.password().is_some();
                if user || url.query().is_some() || url.fragment().is_some() {
                    // Not the address itself: it must not get into logs.
                    let message = "credentials and queries do not belong into an address";
                    return Err(Error::new(Code::StoreUrl, message)
                        .hint("they come from the environment: AWS_ACCESS_KEY_ID and its like"));
                }
                let (objects, prefix, redact) = cloud::open(&url, address, std::env::vars_os())?;
                let mut backend = Self::new(objects, prefix.as_ref(), address)?;
                backend.redact = Arc::new(redact);
                Ok(backend)
            }
            other => Err(bad(format!("unknown scheme `{other}`"))),
        }
    }

    fn folder(path: &FilePath, address: &str) -> Result<Self> {
        // Not created here: a mistyped address must not leave folders behind.
        if !path.is_dir() {
            return Err(no_store(address));
        }
        let folder = Folder::open(path).map_err(|e| Error::io(path, "open", e))?;
        let mut backend = Self::new(Arc::new(folder.clone()), "", address)?;
        backend.folder = Some(folder);
        Ok(backend)
    }

    /// The backend for [`Store::init`](super::Store::init), which may make a folder.
    pub(super) fn create_at(address: &str) -> Result<Self> {
        if !address.contains("://") && address != "memory:" {
            let failed = |e| Error::io(shown_address(address), "create", e);
            std::fs::create_dir_all(address).map_err(failed)?;
        }
        Self::open(address)
    }

    /// A backend over any object store, its keys below `prefix`.
    ///
    /// # Errors
    /// [`Code::StoreUrl`] where the prefix is no valid path, [`Code::Io`] without threads.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str, address: &str) -> Result<Self> {
        let prefix =
            Path::parse(prefix).map_err(|e| Error::new(Code::StoreUrl, e.to_string()).cause(e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tlkit-store")
            .enable_all()
            .build()
            .map_err(|e| Error::new(Code::Io, format!("cannot start threads: {e}")).cause(e))?;
        Ok(Self {
            objects,
            runtime: Arc::new(runtime),
            prefix,
            address: address.to_owned(),
            folder: None,
            redact: Arc::default(),
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
    /// Where the connection breaks, what is there tells whether the request was carried out; where
    /// nothing is, it is sent again.
    ///
    /// # Errors
    /// [`Code::StoreBackend`], [`Code::NoSpace`].
    pub fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool> {
        let path = self.path(key)?;
        let bytes = bytes::Bytes::from(bytes);
        let mut unsure = false;
        for attempt in 0.. {
            let payload = PutPayload::from(bytes.clone());
            let put = self
                .objects
                .put_opts(&path, payload, PutMode::Create.into());
            let e = match self.runtime.block_on(put) {
                Ok(_) => return Ok(true),
                Err(
                    object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. },
                ) if !unsure => return Ok(false),
                Err(e) => e,
            };
            unsure |= broke(&e);
            let there = match unsure {
                true => self.read(key, bytes.len() as u64),
                false => return Err(self.failed("create", key, e)),
            };
            match there {
                Ok(Some(there)) => return Ok(*there == *bytes),
                Err(longer) if longer.code() == Code::StoreRecord => return Ok(false),
                Ok(None) if attempt < RETRIES => self.pause(attempt),
                Ok(None) | Err(_) => return Err(self.failed("create", key, e)),
            }
        }
        Ok(false)
    }

    /// Writes an object whether it exists or not; whole or not at all, and durably.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Code::StoreIrregular`] where a folder has something else there.
    pub fn replace(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.path(key)?;
        let bytes = bytes::Bytes::from(bytes);
        let put = || self.objects.put(&path, PutPayload::from(bytes.clone()));
        match self.runtime.block_on(again(put)) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failed("write", key, e)),
        }
    }

    /// Gives an object another key, which none has; what stands in a folder instead of one, too.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.path(from)?, self.path(to)?);
        let rename = self.objects.rename(&source, &target);
        let renamed = self.runtime.block_on(rename);
        renamed.map_err(|e| self.failed("move", from, e))
    }

    fn pause(&self, attempt: u32) {
        std::thread::sleep(RETRY_AFTER * 2u32.pow(attempt.min(RETRIES)));
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

    /// Parts of one object, in the order of `ranges`; `None` where there is no object.
    ///
    /// # Errors
    /// [`Code::StoreDamaged`] where it is shorter; [`Code::StoreBackend`].
    pub(super) fn read_ranges(
        &self,
        key: &str,
        ranges: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>> {
        let path = self.path(key)?;
        let short = || {
            let message = "it is shorter than what should be in it";
            Error::new(Code::StoreDamaged, message).file(self.show(key))
        };
        let get = || self.objects.get_ranges(&path, ranges);
        let e = match self.runtime.block_on(again(get)) {
            Ok(parts) => {
                let full = |(part, range): (&bytes::Bytes, &Range<u64>)| {
                    part.len() as u64 == range.end - range.start
                };
                return match parts.iter().zip(ranges).all(full) {
                    true => Ok(Some(parts.into_iter().map(Bytes::from_owner).collect())),
                    false => Err(short()),
                };
            }
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => e,
        };
        // How a service says that a range is not there differs from one to the next.
        let head = || self.objects.head(&path);
        let end = ranges.iter().map(|r| r.end).max().unwrap_or(0);
        match self.runtime.block_on(again(head)) {
            Ok(meta) if meta.size < end => Err(short()),
            _ => Err(self.failed("read", key, e)),
        }
    }

    async fn fetch(&self, key: &str, limit: u64) -> Result<Option<Bytes>> {
        let path = self.path(key)?;
        let limit = limit.min(MAX_OBJECT_BYTES);
        let get = || async {
            let found = self.objects.get(&path).await?;
            match found.meta.size > limit {
                true => Ok(Err(found.meta.size)),
                false => found.bytes().await.map(Ok),
            }
        };
        match again(get).await {
            Ok(Ok(bytes)) => Ok(Some(Bytes::from_owner(bytes))),
            Ok(Err(size)) => {
                let message = format!("{size} bytes, the limit is {limit}");
                Err(Error::new(Code::StoreRecord, message).file(self.show(key)))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("read", key, e)),
        }
    }

    /// Every object below a folder, sorted by key.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        self.runtime.block_on(self.listing(folder))
    }

    /// As [`list`](Self::list) for many folders, some at a time, in their order.
    pub(super) fn list_many(&self, folders: &[String]) -> Vec<Result<Vec<Entry>>> {
        let listings = folders.iter().map(|folder| self.listing(folder));
        let all = futures_util::stream::iter(listings).buffered(PARALLEL);
        self.runtime.block_on(all.collect())
    }

    async fn listing(&self, folder: &str) -> Result<Vec<Entry>> {
        let path = self.path(folder)?;
        let listing = || self.objects.list(Some(&path)).try_collect::<Vec<_>>();
        let found = match again(listing).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(e) => return Err(self.failed("list", folder, e)),
        };
        Ok(self.entries(found))
    }

    fn entries(&self, found: Vec<object_store::ObjectMeta>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|meta| {
                let key = self.key(&meta.location)?;
                Some(Entry {
                    key,
                    bytes: meta.size,
                    regular: meta.e_tag.as_deref() != Some(IRREGULAR),
                })
            })
            .collect();
        entries.sort_unstable();
        entries
    }

    /// The key of a path, relative to the store.
    fn key(&self, path: &Path) -> Option<String> {
        let parts = path.prefix_match(&self.prefix)?;
        let parts: Vec<_> = parts.map(|p| p.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    /// The names of the folders right below a folder, sorted.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn folders(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.level(folder)?.0)
    }

    /// The names of the folders right below a folder, and the objects there; both sorted.
    pub(super) fn level(&self, folder: &str) -> Result<(Vec<String>, Vec<Entry>)> {
        let path = self.path(folder)?;
        let list = || self.objects.list_with_delimiter(Some(&path));
        let found = match self.runtime.block_on(again(list)) {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok((Vec::new(), Vec::new())),
            Err(e) => return Err(self.failed("list", folder, e)),
        };
        let mut names: Vec<String> = found
            .common_prefixes
            .iter()
            .filter_map(|p| p.filename().map(str::to_owned))
            .collect();
        names.sort_unstable();
        Ok((names, self.entries(found.objects)))
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.runtime.block_on(again(|| self.objects.delete(&path))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete", key, e)),
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
                    Err(e) => return Err(self.failed("delete", "", e)),
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
        let Some(folder) = &self.folder else {
            return Ok(0);
        };
        // Earlier versions named them after their object, with a `#` and a number.
        let old = |path: &str| {
            let parts = path.rsplit_once('#');
            parts.is_some_and(|(key, number)| {
                layout::is_key(key) && number.bytes().all(|b| b.is_ascii_digit())
            })
        };
        let swept = folder.sweep(age, &old);
        swept.map_err(|e| Error::io(&self.address, "clean", e))
    }

    /// What is in a folder and is no object: links, devices, names that no object has.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub(super) fn strays(&self) -> Result<Vec<Stray>> {
        let strays = self.folder.as_ref().map(Folder::strays).transpose();
        let strays = strays.map_err(|e| Error::io(&self.address, "read", e))?;
        Ok(strays.unwrap_or_default())
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
        let below =
            Path::parse(key).map_err(|e| Error::new(Code::StoreName, e.to_string()).cause(e))?;
        Ok(self.prefix.parts().chain(below.parts()).collect())
    }

    /// A failure of the object store as a message: the one way from there into an error. Only that of a
    /// folder becomes its source; that of a service may quote secrets.
    fn failed(&self, doing: &str, key: &str, e: object_store::Error) -> Error {
        if let Some(what) = cause::<Irregular>(&e) {
            return Error::new(Code::StoreIrregular, what.to_string())
                .file(self.show(key))
                .hint("`tlkit store fsck` lists what does not belong into a store");
        }
        let io = cause::<std::io::Error>(&e);
        let code = match io.map(std::io::Error::kind) {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Code::NoSpace,
            // One file or folder, not the whole store.
            Some(_) if self.folder.is_some() => Code::Io,
            _ => Code::StoreBackend,
        };
        let text = match (io, &self.folder) {
            (Some(io), Some(_)) => io.to_string(),
            _ => self.redact.text(&e.to_string()),
        };
        let error = Error::new(code, format!("cannot {doing}: {text}")).file(self.show(key));
        match self.folder {
            Some(_) => error.cause(e),
            None => error,
        }
    }
}

/// Sends a request that may be sent twice again where its connection broke.
async fn again<T, F>(request: impl Fn() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut attempt = 0;
    loop {
        match request().await {
            Err(e) if attempt < RETRIES && broke(&e) => {
                tokio::time::sleep(RETRY_AFTER * 2u32.pow(attempt)).await;
                attempt += 1;
            }
            done => return done,
        }
    }
}

/// Whether the connection broke, so that it is not known whether the request was carried out.
#[cfg(feature = "cloud")]
fn broke(e: &object_store::Error) -> bool {
    // Where none was made, the library below has tried long enough.
    let kind = cause::<HttpError>(e).map(HttpError::kind);
    kind.is_some_and(|k| !matches!(k, HttpErrorKind::Connect))
}

/// A folder has no connection.
#[cfg(not(feature = "cloud"))]
fn broke(_e: &object_store::Error) -> bool {
    false
}

/// The first failure of a kind among the causes of another.
fn cause<'e, T: std::error::Error + 'static>(
    e: &'e (dyn std::error::Error + 'static),
) -> Option<&'e T> {
    let mut at = Some(e);
    while let Some(e) = at {
        if let Some(found) = e.downcast_ref::<T>() {
            return Some(found);
        }
        // One inside a failure of the system is not its source.
        let inside = e
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref());
        if let Some(found) = inside.and_then(|inside| inside.downcast_ref::<T>()) {
            return Some(found);
        }
        at = e.source();
    }
    None
}

#[cfg(test)]
mod tests;
