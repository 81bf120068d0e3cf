//! The check of a whole store: its places, its settings, what was published, then each tenant.

use std::collections::BTreeMap;

use super::finding::{Checked, Finding, Problem, Published};
use super::sequence::SequenceCheck;
use crate::error::{Code, Result};
use crate::progress::Progress;
use crate::store::blob;
use crate::store::failure::is_damage;
use crate::store::handle::Store;
use crate::store::layout::{self, Subject};
use crate::store::name::Name;

impl Store {
    /// Reads everything in the store, or of one tenant, and compares every byte with its digest,
    /// and everything that has a name with the names a store gives. Damage is reported, not mended:
    /// putting a good copy again does that, or [`repair`](Self::repair).
    ///
    /// # Errors
    /// [`Code::StoreBackend`] where the store cannot be read; what is read and wrong is a
    /// [`Problem`]. [`Code::Interrupted`] by `progress`, which counts bytes.
    pub fn fsck(&self, only: Option<&Name>, progress: Progress<'_>) -> Result<Checked> {
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
                    checked.report(Some(&user), None, &key, &Finding::from(&e));
                }
                done => done?,
            }
            checked.tenants += 1;
        }
        for (key, (wrong, named)) in public {
            if let (Some(wrong), false) = (wrong, named) {
                checked.report(None, None, &key, &wrong);
            }
        }
        let place = |p: &Problem| (p.user.clone(), p.adapter.clone(), p.key.clone());
        checked.problems.sort_by_cached_key(place);
        Ok(checked)
    }

    fn check_settings(&self, moved: &layout::Moved, checked: &mut Checked) -> Result<()> {
        let sequences = match self.sequences(layout::STORE_RECORDS) {
            Err(e) if is_damage(&e) => {
                checked.report(None, None, layout::STORE_RECORDS, &Finding::from(&e));
                return Ok(());
            }
            sequences => sequences?,
        };
        for numbers in sequences.numbers.values() {
            let keys = |n: &u64| sequences.key(&Subject::Settings, *n);
            let keys: Vec<String> = numbers.iter().map(keys).collect();
            let mut sequence = SequenceCheck::new(&sequences, &Subject::Settings, None, moved);
            for (number, read) in numbers.iter().zip(self.records(&keys)) {
                let wrong = sequence.next(*number, &read);
                match read {
                    Ok(read) => checked.bytes += read.map_or(0, |r| r.bytes),
                    Err(e) if is_damage(&e) => {}
                    Err(e) => return Err(e),
                }
                let key = sequences.key(&Subject::Settings, *number);
                for found in &wrong {
                    checked.report(None, None, &key, found);
                }
            }
        }
        Ok(())
    }

    fn check_public(&self, checked: &mut Checked, progress: Progress<'_>) -> Result<Published> {
        let mut public = BTreeMap::new();
        let listed = match self.backend.list(layout::PUBLIC) {
            // Its place is reported.
            Err(e) if is_damage(&e) => Vec::new(),
            listed => listed?,
        };
        for entry in listed {
            if layout::parse_blob(layout::PUBLIC, &entry.key).is_none() {
                checked.report_foreign(None, &entry);
                continue;
            }
            let wrong = self.check_blob(layout::PUBLIC, &entry.key, None)?;
            checked.blobs += 1;
            checked.bytes += entry.bytes;
            progress.advance(entry.bytes)?;
            public.insert(entry.key, (wrong, false));
        }
        Ok(public)
    }

    /// What is wrong with a blob's object; nothing where it is gone.
    pub(super) fn check_blob(
        &self,
        folder: &str,
        key: &str,
        len: Option<u64>,
    ) -> Result<Option<Finding>> {
        let Some((digest, _)) = layout::parse_blob(folder, key) else {
            let message = "no blob has such a name";
            return Ok(Some(Finding::new(Code::StoreRecord, message)));
        };
        let object = match self.backend.read(key, u64::MAX) {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(None),
            Err(e) if is_damage(&e) => return Ok(Some(Finding::from(&e))),
            Err(e) => return Err(e),
        };
        let len = len.or_else(|| blob::announced(&object)).unwrap_or(0);
        let decoded = blob::decode(&object, &digest, len);
        Ok(decoded.err().map(|e| Finding::from(&e)))
    }
}
