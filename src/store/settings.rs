//! The store's settings, and what holds where their last record is damaged.

use super::cache::KnownSettings;
use super::failure::{ATTEMPTS, conflict, is_damage};
use super::handle::Store;
use super::layout::{self, Subject};
use super::name::Name;
use super::record::{Body, Settings};
use crate::error::{Code, Error, Result};

impl Store {
    /// Changes the settings.
    ///
    /// # Errors
    /// [`Code::StoreConflict`]; [`Code::StoreBackend`].
    pub fn configure(&mut self, change: impl Fn(&mut Settings)) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let sequences = self.sequences(layout::STORE_RECORDS)?;
            let mut settings = self.read_settings()?.settings;
            change(&mut settings);
            let body = Body::Settings(settings.clone());
            if self.append(&sequences, &Subject::Settings, body)?.is_some() {
                self.known = KnownSettings {
                    settings,
                    lost: false,
                };
                return Ok(());
            }
        }
        Err(conflict("the settings"))
    }

    /// The last settings that can be read. Where those are not the last that were written, a
    /// warning says so; the damaged record stays where it is.
    pub(super) fn read_settings(&self) -> Result<KnownSettings> {
        let sequences = match self.sequences(layout::STORE_RECORDS) {
            Err(e) if is_damage(&e) => {
                self.warn(format!("the settings cannot be read: {e}"));
                return Ok(KnownSettings {
                    lost: true,
                    ..KnownSettings::default()
                });
            }
            sequences => sequences?,
        };
        let mut damaged = None;
        let numbers = sequences.numbers.get(&Subject::Settings);
        for number in numbers.into_iter().flatten().rev() {
            let key = sequences.key(&Subject::Settings, *number);
            let wrong = match self.record(&key) {
                Ok(None) => continue,
                Ok(Some(read)) => match read.record.body {
                    Body::Settings(settings) => {
                        if let Some(e) = damaged {
                            self.warn(format!("{e}; the settings of {key} hold instead"));
                        }
                        return Ok(KnownSettings {
                            settings,
                            lost: false,
                        });
                    }
                    _ => self.foreign(&sequences, &Subject::Settings, *number),
                },
                Err(e) if is_damage(&e) => e,
                Err(e) => return Err(e),
            };
            damaged.get_or_insert(wrong);
        }
        let lost = damaged.is_some();
        if let Some(e) = damaged {
            self.warn(format!(
                "{e}; no settings can be read, so quotas are not known"
            ));
        }
        Ok(KnownSettings {
            settings: Settings::default(),
            lost,
        })
    }

    /// Most logical bytes that a tenant may have; none where there is no limit.
    ///
    /// # Errors
    /// [`Code::QuotaUnknown`] where a limit may have been set, and no record of it can be read.
    pub(super) fn quota_of(&self, user: &Name) -> Result<Option<u64>> {
        if self.known.lost {
            let message = "the settings are damaged, so the quota is not known";
            return Err(Error::new(Code::QuotaUnknown, message)
                .file(self.backend.address())
                .hint(
                    "set quotas anew with `tlkit store quota`, or see `tlkit store fsck --repair`",
                ));
        }
        let settings = &self.known.settings;
        let own = settings.quotas.get(user).copied();
        Ok(own.or(settings.quota))
    }

    /// Notes something that the operator has to know, and that did not stop the work.
    pub(super) fn warn(&self, text: String) {
        let warnings = &mut self.cache().warnings;
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// What was found damaged, and worked around, since the store was opened or this was last asked.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.cache().warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::sample;
    use super::*;
    use crate::store::Backend;

    fn store() -> Store {
        Store::init_in(Backend::open("memory:").unwrap(), 0).unwrap()
    }

    fn reopen(store: &Store) -> Store {
        Store::open_in(store.backend().clone()).unwrap()
    }

    fn flip(store: &Store, number: u64) {
        let key = layout::record(layout::STORE_RECORDS, &Subject::Settings, number);
        let mut bytes = store
            .backend()
            .read(&key, 10_000)
            .unwrap()
            .unwrap()
            .to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.backend().replace(&key, bytes).unwrap();
    }

    /// Breaks where one damaged record stops the store, a quota is forgotten, or the damage is not
    /// told.
    #[test]
    fn the_last_good_settings_hold() {
        let mut store = store();
        let package = sample(1, &[1000]);
        store.configure(|s| s.quota = Some(10)).unwrap();
        store.configure(|s| s.quota = Some(20)).unwrap();
        flip(&store, 2);
        let mut store = reopen(&store);
        assert_eq!(store.settings().quota, Some(10));
        assert!(store.take_warnings()[0].contains("settings@0000000002"));
        let put = store.put(&"u/t".parse().unwrap(), &package, None);
        assert_eq!(put.unwrap_err().code(), Code::QuotaExceeded);
        flip(&store, 1);
        let damaged = reopen(&store);
        assert_eq!(damaged.take_warnings().len(), 1);
        let put = damaged.put(&"u/t".parse().unwrap(), &package, None);
        assert_eq!(put.unwrap_err().code(), Code::QuotaUnknown);
        assert_eq!(damaged.tenants().unwrap(), []);
        // New settings need no repair.
        store.configure(|s| s.quota = None).unwrap();
        let store = reopen(&store);
        assert_eq!(store.take_warnings(), Vec::<String>::new());
        store.put(&"u/t".parse().unwrap(), &package, None).unwrap();
    }
}
