//! An open store: where it lies, how it was made, and the clock and chance that it goes by.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::backend::Backend;
use super::cache::{Cache, KnownSettings};
use super::failure::no_store;
use super::layout;
use super::marker::{FORMAT, MAX_MARKER_BYTES, Marker};
use super::record::Settings;
use super::system::{random, unix_time};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;

/// An open store. May be used by several threads.
pub struct Store {
    pub(super) backend: Backend,
    pub(super) marker_bytes: u64,
    /// The first digits of the SHA-256 of the marker, by which records that were copied from here name this store.
    pub(super) origin: String,
    pub(super) grace: u64,
    /// Whether there are no records of builds that did not say where they lie.
    pub(super) bound: bool,
    /// Whether records may lie in packs.
    pub(super) packs: bool,
    pub(super) known: KnownSettings,
    pub(super) cache: Mutex<Cache>,
    pub(super) now: Arc<dyn Fn() -> u64 + Send + Sync>,
    pub(super) random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// A writer that does not look again after it wrote, to see that the tests notice.
    #[cfg(test)]
    pub(super) careless: bool,
    /// A writer that passes by fences, likewise.
    #[cfg(test)]
    pub(super) fenceless: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.backend.address())
    }
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
        let json = serde_json::to_vec(&Marker::new(unix_time(), grace))
            .map_err(|e| Error::new(Code::StoreRecord, format!("no JSON: {e}")).cause(e))?;
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
        let json = json.ok_or_else(|| no_store(backend.address()))?;
        let marker = Marker::parse(&json).ok_or_else(|| {
            Error::new(Code::StoreRecord, "not the marker of a store")
                .file(backend.show(layout::MARKER))
        })?;
        if let Some(what) = marker.unknown() {
            let message = format!("{what}, which this build does not know");
            return Err(Error::new(Code::StoreVersion, message)
                .file(backend.address())
                .hint("use a newer tlkit"));
        }
        let mut store = Self {
            backend,
            marker_bytes: json.len() as u64,
            origin: Digest::of(&json).hex()[..16].to_owned(),
            grace: marker.grace,
            bound: marker.binds_records(),
            packs: marker.has_packs(),
            known: KnownSettings::default(),
            cache: Mutex::default(),
            now: Arc::new(unix_time),
            random: Arc::new(random),
            #[cfg(test)]
            careless: false,
            #[cfg(test)]
            fenceless: false,
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

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
