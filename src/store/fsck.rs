//! Checking a store: every record and blob is read, and compared with what names it.
//!
//! Others may write meanwhile. What seems wrong is looked at again, with the record that says what
//! should be there, before it is reported.

mod places;
mod sequence;
mod tenant;

use std::collections::BTreeMap;

use serde::Serialize;

use super::layout::{self, Subject};
use super::name::Name;
use super::{Store, blob, is_damage};
use crate::error::{Code, Error, Result};

/// Records that are held at a time.
const AT_ONCE: usize = 256;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The tenant that it concerns; none for what is of no tenant.
    pub user: Option<Name>,
    /// The adapter, as `TASK@VERSION`.
    pub adapter: Option<String>,
    /// The object.
    pub key: String,
    /// The code of what is wrong with it.
    pub code: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Number of tenants.
    pub tenants: u64,
    /// Number of versions read.
    pub versions: u64,
    /// Number of blobs read, published ones too.
    pub blobs: u64,
    /// Bytes of all objects read.
    pub bytes: u64,
    /// Blobs that nothing names; no problem, since garbage collection deletes them.
    pub unnamed: u64,
    /// Objects that a repair set aside; no problem either.
    pub set_aside: u64,
    /// What is not as it should be, by tenant and adapter.
    pub problems: Vec<Problem>,
}

/// A published blob: what is wrong with it, and whether a version names it.
type Public = BTreeMap<String, (Option<Error>, bool)>;

impl Store {
    /// Reads everything in the store, or of one tenant, and compares every byte with its digest,
    /// and everything that has a name with the names a store gives. Damage is reported, not mended:
    /// putting a good copy again does that, or [`repair`](Self::repair).
    ///
    /// # Errors
    /// [`Code::StoreBackend`] where the store cannot be read; what is read and wrong is a
    /// [`Problem`].
    pub fn fsck(&self, only: Option<&Name>, progress: &mut dyn FnMut(u64)) -> Result<Checked> {
        let mut checked = Checked::default();
        let tenants = self.check_places(only, &mut checked)?;
        let moved = self.set_aside()?;
        checked.set_aside = moved.len() as u64;
        self.check_settings(&moved, &mut checked)?;
        let mut public = self.check_public(&mut checked, progress)?;
        for user in tenants {
            match self.check_tenant(&user, &mut public, &moved, &mut checked, progress) {
                Err(e) if is_damage(&e) => {
                    let key = layout::records(&user);
                    checked.problems.push(problem(Some(&user), None, &key, &e));
                }
                done => done?,
            }
            checked.tenants += 1;
        }
        for (key, (wrong, named)) in public {
            if let (Some(e), false) = (wrong, named) {
                checked.problems.push(problem(None, None, &key, &e));
            }
        }
        let place = |p: &Problem| (p.user.clone(), p.adapter.clone(), p.key.clone());
        checked.problems.sort_by_cached_key(place);
        Ok(checked)
    }

    fn check_settings(&self, moved: &layout::Moved, checked: &mut Checked) -> Result<()> {
        let sequences = match self.sequences(layout::STORE_RECORDS) {
            Err(e) if is_damage(&e) => {
                let found = problem(None, None, layout::STORE_RECORDS, &e);
                checked.problems.push(found);
                return Ok(());
            }
            sequences => sequences?,
        };
        for numbers in sequences.numbers.values() {
            let keys = |n: &u64| sequences.key(&Subject::Settings, *n);
            let keys: Vec<String> = numbers.iter().map(keys).collect();
            let mut sequence = sequence::Check::new(&sequences, &Subject::Settings, None, moved);
            for (number, read) in numbers.iter().zip(self.records(&keys)) {
                let wrong = sequence.next(*number, &read);
                match read {
                    Ok(read) => checked.bytes += read.map_or(0, |r| r.bytes),
                    Err(e) if is_damage(&e) => {}
                    Err(e) => return Err(e),
                }
                let key = sequences.key(&Subject::Settings, *number);
                let found = wrong.iter().map(|e| problem(None, None, &key, e));
                checked.problems.extend(found);
            }
        }
        Ok(())
    }

    fn check_public(&self, checked: &mut Checked, progress: &mut dyn FnMut(u64)) -> Result<Public> {
        let mut public = BTreeMap::new();
        let listed = match self.backend.list(layout::PUBLIC) {
            // Its place is reported.
            Err(e) if is_damage(&e) => Vec::new(),
            listed => listed?,
        };
        for entry in listed {
            if layout::parse_blob(layout::PUBLIC, &entry.key).is_none() {
                checked.problems.push(foreign(None, &entry));
                continue;
            }
            let wrong = self.check_blob(layout::PUBLIC, &entry.key, None)?;
            checked.blobs += 1;
            checked.bytes += entry.bytes;
            progress(entry.bytes);
            public.insert(entry.key, (wrong, false));
        }
        Ok(public)
    }

    /// What is wrong with a blob's object; nothing where it is gone.
    fn check_blob(&self, folder: &str, key: &str, len: Option<u64>) -> Result<Option<Error>> {
        let Some((digest, _)) = layout::parse_blob(folder, key) else {
            return Ok(Some(Error::new(
                Code::StoreRecord,
                "no blob has such a name",
            )));
        };
        let object = match self.backend.read(key, u64::MAX) {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(None),
            Err(e) if is_damage(&e) => return Ok(Some(e)),
            Err(e) => return Err(e),
        };
        let len = len.or_else(|| blob::announced(&object)).unwrap_or(0);
        Ok(blob::decode(&object, &digest, len).err())
    }
}

fn problem(user: Option<&Name>, adapter: Option<String>, key: &str, e: &Error) -> Problem {
    Problem {
        user: user.cloned(),
        adapter,
        key: key.to_owned(),
        code: e.code().as_str(),
        message: e.message().to_owned(),
    }
}

/// An object whose key is none of a store's.
fn foreign(user: Option<&Name>, entry: &super::Entry) -> Problem {
    let code = match entry.regular {
        true => Code::StoreRecord,
        false => Code::StoreIrregular,
    };
    let message = "no object of a store has such a name; it is left alone";
    problem(user, None, &entry.key, &Error::new(code, message))
}
