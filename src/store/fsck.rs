//! Checking a store: every record and blob is read, and compared with what names it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Store;
use super::layout::{self, Subject};
use super::name::Name;
use super::record::{Place, StoredBlob};
use crate::error::{Code, Error, Result};

/// Records that are held at a time.
const AT_ONCE: usize = 256;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The tenant that it concerns; none for published blobs that nobody names.
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
    /// What is not as it should be, by tenant and adapter.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Reads everything in the store, or of one tenant, and compares every byte with its digest.
    /// Damage is reported, not mended: putting a good copy again does that.
    ///
    /// # Errors
    /// [`Code::StoreBackend`] where the store cannot be read; what is read and wrong is a
    /// [`Problem`].
    pub fn fsck(&self, only: Option<&Name>, progress: &mut dyn FnMut(u64)) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut public = BTreeMap::new();
        for entry in self.backend.list(layout::PUBLIC)? {
            let problem = self.check_blob(layout::PUBLIC, &entry.key, None)?;
            checked.blobs += 1;
            checked.bytes += entry.bytes;
            progress(entry.bytes);
            public.insert(entry.key, (problem, false));
        }
        let tenants = match only {
            Some(user) => vec![user.clone()],
            None => self
                .backend
                .folders(layout::TENANTS)?
                .into_iter()
                .filter_map(|name| match name.parse() {
                    Ok(user) => Some(user),
                    Err(e) => {
                        checked.problems.push(problem(
                            None,
                            None,
                            &format!("{}/{name}", layout::TENANTS),
                            &e,
                        ));
                        None
                    }
                })
                .collect(),
        };
        for user in tenants {
            self.check_tenant(&user, &mut public, &mut checked, progress)?;
            checked.tenants += 1;
        }
        for (key, (wrong, named)) in public {
            if let (Some(e), false) = (wrong, named) {
                checked.problems.push(problem(None, None, &key, &e));
            }
        }
        Ok(checked)
    }

    fn check_tenant(
        &self,
        user: &Name,
        public: &mut BTreeMap<String, (Option<Error>, bool)>,
        checked: &mut Checked,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let sequences = self.sequences(&layout::records(user))?;
        for key in &sequences.foreign {
            let e = Error::new(Code::StoreRecord, "no record has such a name");
            checked.problems.push(problem(Some(user), None, key, &e));
        }
        // What each blob of the tenant is like; `None` while it has not been read.
        let mut blobs: BTreeMap<String, Option<Option<Error>>> = BTreeMap::new();
        for entry in self.backend.list(&layout::blobs(user))? {
            checked.bytes += entry.bytes;
            blobs.insert(entry.key, None);
        }
        let keys: Vec<(Subject, u64)> = sequences
            .numbers
            .iter()
            .flat_map(|(s, numbers)| numbers.iter().map(|n| (s.clone(), *n)))
            .collect();
        for part in keys.chunks(AT_ONCE) {
            let names: Vec<String> = part.iter().map(|(s, n)| sequences.key(s, *n)).collect();
            for (((subject, number), key), read) in
                part.iter().zip(&names).zip(self.records(&names))
            {
                let adapter = match subject {
                    Subject::Adapter(task) => Some(format!("{task}@{number}")),
                    Subject::Tag(task, tag) => Some(format!("{task}:{tag}")),
                    _ => None,
                };
                let read = match read {
                    Ok(Some(read)) => read,
                    Ok(None) => continue,
                    Err(e) if e.code() == Code::StoreBackend => return Err(e),
                    Err(e) => {
                        checked.problems.push(problem(Some(user), adapter, key, &e));
                        continue;
                    }
                };
                checked.bytes += read.bytes;
                progress(read.bytes);
                let Some(version) = read.version() else {
                    continue;
                };
                checked.versions += 1;
                for stored in &version.blobs {
                    let wrong = match stored.at {
                        Place::Inline(_) => read.inline(stored).err().map(|e| (key.clone(), e)),
                        _ => self.check_named(user, stored, &mut blobs, public, checked)?,
                    };
                    if let Some((key, e)) = wrong {
                        checked
                            .problems
                            .push(problem(Some(user), adapter.clone(), &key, &e));
                    }
                }
            }
        }
        for (key, state) in blobs {
            if state.is_some() {
                continue;
            }
            checked.blobs += 1;
            checked.unnamed += 1;
            if let Some(e) = self.check_blob(&layout::blobs(user), &key, None)? {
                checked.problems.push(problem(Some(user), None, &key, &e));
            }
        }
        Ok(())
    }

    /// Checks a blob that lies in an object of its own, once; what is wrong with it is told to
    /// every version that names it.
    fn check_named(
        &self,
        user: &Name,
        stored: &StoredBlob,
        blobs: &mut BTreeMap<String, Option<Option<Error>>>,
        public: &mut BTreeMap<String, (Option<Error>, bool)>,
        checked: &mut Checked,
    ) -> Result<Option<(String, Error)>> {
        let missing = || {
            Error::new(
                Code::BlobMissing,
                "a blob that this version names is missing",
            )
        };
        let copy = |e: &Error| Error::new(e.code(), e.message());
        let (key, wrong) = match stored.at {
            Place::Tenant(generation) => {
                let key = layout::blob(user, &stored.sha256, generation);
                let wrong = match blobs.get_mut(&key) {
                    None => Some(missing()),
                    Some(state) => {
                        if state.is_none() {
                            checked.blobs += 1;
                            *state = Some(self.check_blob(
                                &layout::blobs(user),
                                &key,
                                Some(stored.bytes),
                            )?);
                        }
                        state.as_ref().and_then(|s| s.as_ref().map(copy))
                    }
                };
                (key, wrong)
            }
            _ => {
                let key = layout::public(&stored.sha256);
                let wrong = match public.get_mut(&key) {
                    None => Some(missing()),
                    Some((wrong, named)) => {
                        *named = true;
                        wrong.as_ref().map(copy)
                    }
                };
                (key, wrong)
            }
        };
        Ok(wrong.map(|e| (key, e)))
    }

    /// What is wrong with a blob's object.
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
            Err(e) if e.code() == Code::StoreRecord => return Ok(Some(e)),
            Err(e) => return Err(e),
        };
        let len = len.or_else(|| super::blob::announced(&object)).unwrap_or(0);
        Ok(super::blob::decode(&object, &digest, len).err())
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
