//! The store: adapters of many tenants in one folder or object store. Its layout, and why it
//! holds, is `spec/tl-store-v1.md`.
//!
//! Everything that is written is immutable and written once: blobs by their digest, and numbered
//! records by conditional creation, of which the last of a sequence holds. So every operation of
//! every backend is atomic, a crash leaves at worst blobs that nothing names, and two writers
//! of one name are ordered by the store itself.
//!
//! The store knows blobs and digests, not tensors; [`transfer`] is where adapters become packages
//! of blobs and back.

mod backend;
mod blob;
mod catalog;
#[cfg_attr(not(feature = "cloud"), path = "no_cloud.rs")]
mod cloud;
mod collect;
mod dropped;
mod folder;
mod fsck;
mod get;
mod layout;
mod mend;
mod name;
mod publish;
mod put;
mod quota;
mod record;
mod redact;
mod repair;
mod sequence;
mod settings;
mod sign;
mod state;
pub mod testing;
pub mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use backend::{Backend, Entry};
pub use catalog::{Inventory, Listed, Stat, StoredAdapter, TenantStat, VersionEntry};
pub use collect::{CollectOptions, Collected};
pub use fsck::{Checked, Problem};
pub use get::{Fetched, TenantBlobs};
pub use name::{AdapterName, MAX_NAME_BYTES, Name, Which};
pub use publish::Published;
pub use put::{Package, PackageBlob, PutReport};
pub use record::{Place, Settings, StoredBlob, Version};
pub use repair::{Repair, Repaired};
pub use sign::{Scope, Signature, Signer, Trust, TrustedKey};

use crate::error::{Code, Error, Result};
use crate::format::Digest;
use crate::safetensors::read_limited;
use crate::tensor::Bytes;
use layout::Subject;
use record::{MAX_RECORD_BYTES, Read};

/// The version of the layout.
pub const VERSION: u32 = 1;
/// The features that a store may require and this build knows.
pub const FEATURES: &[&str] = &[BOUND];
/// Every record says where it lies.
const BOUND: &str = "bound-records";
/// Seconds for which what nothing names is kept, unless the store says otherwise.
pub const GRACE: u64 = 24 * 60 * 60;
const FORMAT: &str = "tl-store";
const MAX_MARKER_BYTES: u64 = 64 << 10;
/// How often a writer begins again because another one was faster.
const ATTEMPTS: usize = 32;

/// What makes a place a store; never changed after it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {
    format: String,
    version: u32,
    requires: Vec<String>,
    created: u64,
    grace: u64,
}

impl Marker {
    fn parse(json: &[u8]) -> Option<Self> {
        let marker: Self = serde_json::from_slice(json).ok()?;
        (marker.format == FORMAT).then_some(marker)
    }
}

/// An open store. May be used by several threads.
pub struct Store {
    backend: Backend,
    marker_bytes: u64,
    grace: u64,
    /// Whether there are no records of builds that did not say where they lie.
    bound: bool,
    known: settings::Known,
    cache: Mutex<Cache>,
    now: Arc<dyn Fn() -> u64 + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// A writer that does not look again after it wrote, to see that the tests notice.
    #[cfg(test)]
    careless: bool,
}

#[derive(Default)]
struct Cache {
    /// The published blobs and their lengths as objects.
    public: Option<Arc<BTreeMap<Digest, u64>>>,
    /// Published blobs whose bytes were verified since the store was opened.
    verified: BTreeSet<Digest>,
    /// What was found damaged and worked around.
    warnings: Vec<String>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.backend.address())
    }
}

/// A tenant that a walk over all of them left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The tenant.
    pub user: Name,
    /// The code of why.
    pub code: &'static str,
    /// Why.
    pub message: String,
    /// Whether something is damaged; else another writer was at work.
    pub damaged: bool,
}

/// The records of one tenant, as a listing shows them.
struct Sequences {
    folder: String,
    numbers: BTreeMap<Subject, Vec<u64>>,
    /// Keys that are no record's.
    foreign: Vec<String>,
    /// Bytes of all records as objects.
    bytes: u64,
}

impl Store {
    /// Makes a store, and opens it. What nothing names is kept for `grace` seconds.
    ///
    /// # Errors
    /// [`Code::OutputExists`] where there is a store; those of [`Backend::open`].
    pub fn init(address: &str, grace: u64) -> Result<Self> {
        Self::init_in(Backend::create_at(address)?, grace)
    }

    /// As [`init`](Self::init), over a backend.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_in(backend: Backend, grace: u64) -> Result<Self> {
        let marker = Marker {
            format: FORMAT.into(),
            version: VERSION,
            requires: vec![BOUND.into()],
            created: unix_time(),
            grace,
        };
        let json = serde_json::to_vec(&marker)
            .map_err(|e| Error::new(Code::StoreRecord, format!("no JSON: {e}")))?;
        if !backend.create(layout::MARKER, json)? {
            let message = "there is a store here already";
            return Err(Error::new(Code::OutputExists, message).file(backend.address()));
        }
        Self::open_in(backend)
    }

    /// Opens the store at an address (see [`Backend::open`]).
    ///
    /// # Errors
    /// [`Code::NoStore`], [`Code::StoreVersion`], [`Code::StoreRecord`]; those of [`Backend::open`].
    pub fn open(address: &str) -> Result<Self> {
        Self::open_in(Backend::open(address)?)
    }

    /// As [`open`](Self::open), over a backend.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(backend: Backend) -> Result<Self> {
        let json = backend.read(layout::MARKER, MAX_MARKER_BYTES)?;
        let json = json.ok_or_else(|| backend::no_store(backend.address()))?;
        let marker = Marker::parse(&json).ok_or_else(|| {
            Error::new(Code::StoreRecord, "not the marker of a store")
                .file(backend.show(layout::MARKER))
        })?;
        let unknown = marker
            .requires
            .iter()
            .find(|f| !FEATURES.contains(&f.as_str()));
        if marker.version != VERSION || unknown.is_some() {
            let what = match unknown {
                Some(feature) => format!("it requires the feature `{feature}`"),
                None => format!("it has version {}", marker.version),
            };
            let message = format!("{what}, which this build does not know");
            return Err(Error::new(Code::StoreVersion, message)
                .file(backend.address())
                .hint("use a newer tlkit"));
        }
        let mut store = Self {
            backend,
            marker_bytes: json.len() as u64,
            grace: marker.grace,
            bound: marker.requires.iter().any(|f| f == BOUND),
            known: settings::Known::default(),
            cache: Mutex::default(),
            now: Arc::new(unix_time),
            random: Arc::new(random),
            #[cfg(test)]
            careless: false,
        };
        store.known = store.read_settings()?;
        Ok(store)
    }

    /// Whether a folder is a store, of whatever version.
    pub fn is_in(folder: &Path) -> bool {
        let marker = read_limited(&folder.join(layout::MARKER), MAX_MARKER_BYTES);
        let marker = marker
            .ok()
            .and_then(|m| serde_json::from_slice::<Value>(&m).ok());
        marker.is_some_and(|m| m.get("format").and_then(Value::as_str) == Some(FORMAT))
    }

    /// With another clock, for tests of what time does.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.now = Arc::new(now);
        self
    }

    /// With other random numbers, which must not repeat, for tests that do.
    #[must_use]
    pub fn with_random(mut self, random: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Where the objects lie.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Seconds for which what nothing names is kept.
    pub fn grace(&self) -> u64 {
        self.grace
    }

    /// The store's settings, as they were when it was opened: the last that can be read.
    pub fn settings(&self) -> &Settings {
        &self.known.settings
    }

    /// The names of the tenants, sorted.
    ///
    /// # Errors
    /// [`Code::StoreBackend`].
    pub fn tenants(&self) -> Result<Vec<Name>> {
        let names = self.backend.folders(layout::TENANTS)?;
        Ok(names.iter().filter_map(|n| n.parse().ok()).collect())
    }

    /// Does something for each tenant. One whose part of the store is damaged, or whom another
    /// writer is at work on, is left out and told.
    ///
    /// # Errors
    /// [`Code::StoreBackend`], and every other that does not concern one tenant alone.
    pub fn each_tenant<T>(
        &self,
        mut work: impl FnMut(&Name) -> Result<T>,
    ) -> Result<(Vec<T>, Vec<Skipped>)> {
        let (mut done, mut skipped) = (Vec::new(), Vec::new());
        for user in self.tenants()? {
            match work(&user) {
                Ok(one) => done.push(one),
                Err(e) if is_damage(&e) || e.code() == Code::StoreConflict => {
                    skipped.push(Skipped {
                        user,
                        code: e.code().as_str(),
                        message: e.to_string(),
                        damaged: is_damage(&e),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        Ok((done, skipped))
    }

    fn sequences(&self, folder: &str) -> Result<Sequences> {
        let mut found = Sequences {
            folder: folder.to_owned(),
            numbers: BTreeMap::new(),
            foreign: Vec::new(),
            bytes: 0,
        };
        for entry in self.backend.list(folder)? {
            found.bytes += entry.bytes;
            match layout::parse_record(folder, &entry.key) {
                Some((subject, number)) => found.numbers.entry(subject).or_default().push(number),
                None => found.foreign.push(entry.key),
            }
        }
        for numbers in found.numbers.values_mut() {
            numbers.sort_unstable();
        }
        Ok(found)
    }

    /// The record at a key.
    fn record(&self, key: &str) -> Result<Option<Read>> {
        let object = self.backend.read(key, MAX_RECORD_BYTES)?;
        object.map(|o| self.decode(key, &o)).transpose()
    }

    fn decode(&self, key: &str, object: &Bytes) -> Result<Read> {
        record::decode_at(key, object, self.bound).map_err(|e| e.file(self.backend.show(key)))
    }

    /// The last record of a sequence.
    fn last(&self, sequences: &Sequences, subject: &Subject) -> Result<Option<(u64, Read)>> {
        let Some(mut number) = sequences.last(subject) else {
            return Ok(None);
        };
        for _ in 0..ATTEMPTS {
            if let Some(read) = self.record(&sequences.key(subject, number))? {
                return Ok(Some((number, read)));
            }
            // It was the last one when it was listed. A later one came, and it was collected.
            let again = self.sequences(&sequences.folder)?;
            match again.last(subject) {
                None => return Ok(None),
                Some(last) => number = last,
            }
        }
        Err(conflict(&sequences.key(subject, number)))
    }

    fn foreign(&self, sequences: &Sequences, subject: &Subject, number: u64) -> Error {
        let key = sequences.key(subject, number);
        Error::new(
            Code::StoreRecord,
            "a record of another kind than its name says",
        )
        .file(self.backend.show(&key))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sequences {
    fn last(&self, subject: &Subject) -> Option<u64> {
        self.numbers.get(subject).and_then(|n| n.last().copied())
    }

    fn key(&self, subject: &Subject, number: u64) -> String {
        layout::record(&self.folder, subject, number)
    }

    /// The keys of all records.
    fn keys(&self) -> impl Iterator<Item = String> {
        let all = self.numbers.iter();
        all.flat_map(|(subject, numbers)| numbers.iter().map(|n| self.key(subject, *n)))
    }

    /// The tags that a task has, or had.
    fn tags_of(&self, task: &Name) -> impl Iterator<Item = &Name> {
        self.numbers
            .keys()
            .filter_map(move |subject| match subject {
                Subject::Tag(of, tag) if of == task => Some(tag),
                _ => None,
            })
    }

    /// The tasks that have, or had, an adapter.
    fn tasks(&self) -> impl Iterator<Item = (&Name, &[u64])> {
        self.numbers
            .iter()
            .filter_map(|(subject, numbers)| match subject {
                Subject::Adapter(task) => Some((task, numbers.as_slice())),
                _ => None,
            })
    }
}

/// Whether a failure is of one object, which is not what it should be, and not of the whole store.
fn is_damage(e: &Error) -> bool {
    let codes = [
        Code::StoreDamaged,
        Code::StoreRecord,
        Code::StoreIrregular,
        Code::BlobMissing,
        // One file that cannot be read; a service that fails has a code of its own.
        Code::Io,
    ];
    codes.contains(&e.code())
}

fn conflict(what: &str) -> Error {
    Error::new(
        Code::StoreConflict,
        format!("other writers kept changing {what}"),
    )
    .hint("try again")
}

fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |t| t.as_secs())
}

/// A number that no other writer has: seeded by the system for every hasher.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod tests;
