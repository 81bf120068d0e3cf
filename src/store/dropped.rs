//! Which versions collections took, so that a check can tell them from those that were lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::layout::{self, Subject};
use super::name::Name;

/// Numbers of versions, by task: the first and last of each run of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Dropped(BTreeMap<Name, Vec<[u64; 2]>>);

impl Dropped {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether versions of a task were taken.
    pub(super) fn has(&self, task: &Name) -> bool {
        self.0.contains_key(task)
    }

    /// The tasks of which versions were taken.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    pub(super) fn contains(&self, task: &Name, number: u64) -> bool {
        let runs = self.0.get(task);
        let inside = |[first, last]: &[u64; 2]| (*first..=*last).contains(&number);
        runs.is_some_and(|runs| runs.iter().any(inside))
    }

    /// Adds the versions among some keys of a tenant's records.
    pub(super) fn extend<'k>(&mut self, records: &str, keys: impl IntoIterator<Item = &'k String>) {
        for key in keys {
            if let Some((Subject::Adapter(task), number)) = layout::parse_record(records, key) {
                self.add(task, number);
            }
        }
    }

    fn add(&mut self, task: Name, number: u64) {
        if !self.contains(&task, number) {
            self.add_run(task, number, number);
        }
    }

    /// Adds a run of versions, none of which is there.
    pub(super) fn add_run(&mut self, task: Name, first: u64, last: u64) {
        let runs = self.0.entry(task).or_default();
        runs.push([first, last]);
        runs.sort_unstable();
        let mut joined: Vec<[u64; 2]> = Vec::with_capacity(runs.len());
        for [first, last] in runs.drain(..) {
            match joined.last_mut() {
                Some([_, end]) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push([first, last]),
            }
        }
        *runs = joined;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Breaks where a version seems collected that was not, or the other way round.
        #[test]
        fn runs_hold_what_was_added(numbers in proptest::collection::vec(1u64..40, 0..40)) {
            let task: Name = "t".parse().unwrap();
            let mut dropped = Dropped::default();
            let key = |n: &u64| format!("tenants/u/records/adapter=t@{n:010}");
            dropped.extend("tenants/u/records", &numbers.iter().map(key).collect::<Vec<_>>());
            dropped.extend("tenants/u/records", &["tenants/u/records/tag=t=x@0000000050".to_owned()]);
            for n in 0..60 {
                prop_assert_eq!(dropped.contains(&task, n), numbers.contains(&n));
            }
            let all: BTreeSet<u64> = numbers.into_iter().collect();
            let starts = all.iter().filter(|n| !all.contains(&(*n - 1))).count();
            prop_assert_eq!(dropped.0.get(&task).map_or(0, Vec::len), starts);
        }
    }
}
