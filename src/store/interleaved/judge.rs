//! What went wrong, after all processes have ended.

use super::*;

impl World {
    /// That what is got is what was put, where anything is.
    pub(super) fn judge_bytes(&self, fetched: &Fetched<'_>) {
        let package = self.packages.iter();
        let package = package.clone().find(|p| p.root == fetched.version().root);
        for blob in &package.unwrap().blobs {
            if let Ok(Some(bytes)) = fetched.blob(&blob.digest, blob.bytes.len() as u64) {
                assert!(*bytes == *blob.bytes);
            }
        }
    }

    /// Why a version is not there, every byte of it.
    fn missing(
        &self,
        store: &Store,
        at: usize,
        which: Which,
        root: Option<&Digest>,
    ) -> Option<String> {
        let name = AdapterName { which, ..task(at) };
        let fetched = match store.get(&name) {
            Ok(fetched) => fetched,
            Err(e) => return Some(format!("{name}: {e}")),
        };
        if root.is_some_and(|r| fetched.version().root != *r) {
            return Some(format!("{name} is another adapter"));
        }
        let package = self.packages.iter();
        let package = package.clone().find(|p| p.root == fetched.version().root);
        for blob in &package.unwrap().blobs {
            match fetched.blob(&blob.digest, blob.bytes.len() as u64) {
                Ok(Some(bytes)) if *bytes == *blob.bytes => {}
                Ok(_) => return Some(format!("{name} has other bytes")),
                Err(e) => return Some(format!("{name}: {e}")),
            }
        }
        None
    }

    /// What was acknowledged and is not so.
    pub(super) fn broken(&self, store: &Store) -> Option<String> {
        let history = self.history.lock().unwrap().clone();
        let expires = |at: usize| {
            let deeds = history.iter().map(|e| &e.deed);
            deeds.clone().any(|d| matches!(d, Deed::Collect(Some(_))))
                || deeds.clone().any(|d| *d == Deed::Remove(at))
        };
        let sequences = store.sequences("tenants/u/records").unwrap();
        let mut numbers = BTreeSet::new();
        for event in &history {
            let (Deed::Put(at, package), Came::Done(number, unchanged)) =
                (&event.deed, &event.came)
            else {
                continue;
            };
            let root = &self.packages[*package].root;
            if !unchanged && !numbers.insert((*at, *number)) {
                return Some(format!("two puts of {} are version {number}", TASKS[*at]));
            }
            let subject = Subject::Adapter(task(*at).task);
            let last = sequences.last(&subject) == Some(*number);
            // Gone, or a record in its place of which nobody was told: one that was late.
            let now = self.record(*at, *number, root);
            if expires(*at) && !last && (now.is_none() || now != event.record) {
                continue;
            }
            let missing = self.missing(store, *at, Which::Number(*number), Some(root));
            if missing.is_some() {
                return missing;
            }
        }
        let synced = history
            .iter()
            .any(|e| e.deed == Deed::Sync && e.came == Came::Done(0, false));
        if synced {
            let missing = self.missing(store, 2, Which::Number(SYNCED), None);
            if missing.is_some() {
                return missing;
            }
        }
        self.broken_tag(store, &history)
    }

    fn broken_tag(&self, store: &Store, history: &[Event]) -> Option<String> {
        let acknowledged: BTreeSet<(usize, u64)> = history
            .iter()
            .filter_map(|e| match (&e.deed, &e.came) {
                (Deed::Put(at, _), Came::Done(number, _)) => Some((*at, *number)),
                _ => None,
            })
            .collect();
        let places = (0..2).flat_map(|at| (0..2).map(move |tag| (at, tag)));
        for (at, tag) in places {
            let own: Vec<&Event> = history
                .iter()
                .filter(|e| match e.deed {
                    Deed::Tag(a, _, t) | Deed::Untag(a, t) => (a, t) == (at, tag),
                    _ => false,
                })
                .filter(|e| e.came != Came::Refused)
                .collect();
            // Those that may have been the last.
            let heard = own.iter().filter(|e| e.came != Came::Unclear);
            let latest = heard.map(|e| e.began).max();
            let last: Vec<&&Event> = own
                .iter()
                .filter(|e| latest.is_none_or(|l| e.ended >= l))
                .collect();
            let mut values = BTreeSet::new();
            let all_tags = !last.is_empty()
                && last.iter().all(|e| match (&e.deed, &e.came) {
                    (Deed::Tag(..), Came::Done(number, _)) => {
                        values.insert(*number);
                        true
                    }
                    _ => false,
                });
            if !all_tags {
                continue;
            }
            let name = AdapterName {
                which: Which::Tag(TAGS[tag].parse().unwrap()),
                ..task(at)
            };
            match store.get(&name) {
                Ok(f) if values.contains(&f.number) => {
                    if acknowledged.contains(&(at, f.number)) {
                        let missing = self.missing(store, at, name.which.clone(), None);
                        if missing.is_some() {
                            return missing;
                        }
                    }
                }
                Ok(f) => return Some(format!("{name} is {}, not of {values:?}", f.number)),
                Err(e) => return Some(format!("{name}, {values:?}: {e}")),
            }
        }
        None
    }

    /// What is left that nothing names.
    pub(super) fn leaked(&self, store: &Store) -> Option<String> {
        let user: Name = "u".parse().unwrap();
        let sequences = store.sequences("tenants/u/records").unwrap();
        let seen = store.named_blobs(&sequences, &user).unwrap();
        for entry in store.backend().list("tenants/u/blobs").unwrap() {
            if !seen.contains(&entry.key) {
                return Some(format!("{} stays for ever", entry.key));
            }
        }
        let state = store.state(&sequences).unwrap();
        let state = state.collection().unwrap();
        let named: BTreeSet<String> = state.packs.keys(&user).collect();
        for entry in store.backend().list("tenants/u/packs").unwrap() {
            if !named.contains(&entry.key) {
                return Some(format!("{} stays for ever", entry.key));
            }
        }
        if let Some(key) = sequences.shadowed.first() {
            return Some(format!("{key} stays beside a pack"));
        }
        let dead = state.dead.iter().any(|k| !seen.contains(k));
        (dead || !state.condemned.is_empty()).then(|| format!("the state keeps {state:?}"))
    }
}
