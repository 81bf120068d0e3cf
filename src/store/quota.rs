//! Quotas: how many bytes a tenant keeps, and may keep.

use super::failure::is_damage;
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::name::{AdapterName, Name};
use super::put::Package;
use crate::error::{Code, Error, Result};

/// Records that are held at a time.
const AT_ONCE: usize = 64;

impl Store {
    /// Refuses a version that the tenant's quota has no room for. Writers check it against the
    /// listing they began with, so as many of them as write at the same time can pass it together,
    /// each by one adapter.
    pub(super) fn check_quota(
        &self,
        sequences: &Sequences,
        name: &AdapterName,
        package: &Package,
    ) -> Result<()> {
        match self.quota_of(&name.user)? {
            None => Ok(()),
            Some(quota) => self.check_kept(sequences, &name.user, quota, package.logical_bytes()),
        }
    }

    /// As [`check_quota`](Self::check_quota), against a listing of its own.
    pub(super) fn check_room(&self, user: &Name, need: u64) -> Result<()> {
        let Some(quota) = self.quota_of(user)? else {
            return Ok(());
        };
        let sequences = self.sequences(&layout::records(user))?;
        self.check_kept(&sequences, user, quota, need)
    }

    fn check_kept(&self, of: &Sequences, user: &Name, quota: u64, need: u64) -> Result<()> {
        let kept = self.kept_bytes(of)?;
        if kept.saturating_add(need) <= quota {
            return Ok(());
        }
        let message = format!("{user} keeps {kept} of {quota} bytes, the adapter needs {need}");
        let hint =
            "all versions count until they are collected: keep fewer of them, or raise the quota";
        Err(Error::new(Code::QuotaExceeded, message).hint(hint))
    }

    /// Logical bytes of all versions of a tenant that were not collected. One whose record is
    /// damaged does not say how many it has.
    pub(super) fn kept_bytes(&self, sequences: &Sequences) -> Result<u64> {
        let tasks = sequences.tasks().map(|(task, numbers)| {
            let subject = Subject::Adapter(task.clone());
            let key = move |n: &u64| sequences.key(&subject, *n);
            numbers.iter().map(key)
        });
        let keys: Vec<String> = tasks.flatten().collect();
        let mut kept: u64 = 0;
        for part in keys.chunks(AT_ONCE) {
            for read in self.records(part) {
                let bytes = match read {
                    Ok(read) => read.and_then(|r| r.version().map(|v| v.bytes)),
                    Err(e) if is_damage(&e) => None,
                    Err(e) => return Err(e),
                };
                kept = kept.saturating_add(bytes.unwrap_or(0));
            }
        }
        Ok(kept)
    }
}
