//! What lies where a store has its objects, and is none.

use super::finding::{Checked, Finding};
use crate::error::{Code, Result};
use crate::store::failure::is_damage;
use crate::store::handle::Store;
use crate::store::layout::{self, Moved};
use crate::store::name::Name;

impl Store {
    /// Reports what is not made as the layout says, level by level, and gives the tenants. What is
    /// among records and blobs is left to those who read them.
    pub(super) fn check_places(
        &self,
        only: Option<&Name>,
        checked: &mut Checked,
    ) -> Result<Vec<Name>> {
        for stray in self.backend.strays()? {
            let user = owner(&stray.path);
            let aside = stray.path.strip_prefix(layout::DAMAGED);
            let aside = aside.is_some_and(|rest| rest.starts_with('/'));
            let reported = is_reported_with_records(&stray.path);
            if aside || reported || only.is_some_and(|only| user.as_ref() != Some(only)) {
                continue;
            }
            let found = Finding::new(Code::StoreIrregular, stray.what);
            checked.report(user.as_ref(), None, &stray.path, &found);
        }
        let tenants = match only {
            Some(user) => vec![user.clone()],
            None => self.check_tenants(checked)?,
        };
        for user in &tenants {
            let folder = layout::tenant(user);
            self.check_level(&folder, &layout::IN_TENANT, Some(user), checked)?;
        }
        Ok(tenants)
    }

    /// Checks what lies above the tenants, and gives those.
    fn check_tenants(&self, checked: &mut Checked) -> Result<Vec<Name>> {
        self.check_level("", &layout::IN_STORE, None, checked)?;
        let (names, objects) = self.backend.level(layout::TENANTS)?;
        for entry in objects.iter().filter(|e| e.regular) {
            checked.report_foreign(None, entry);
        }
        let mut tenants = Vec::new();
        for name in names {
            match name.parse::<Name>() {
                Ok(user) => tenants.push(user),
                Err(e) => {
                    let key = format!("{}/{name}", layout::TENANTS);
                    checked.report(None, None, &key, &Finding::from(&e));
                }
            }
        }
        Ok(tenants)
    }

    /// Reports the folders and objects right below a folder that are not among these.
    fn check_level(
        &self,
        folder: &str,
        known: &[&str],
        user: Option<&Name>,
        checked: &mut Checked,
    ) -> Result<()> {
        let (names, objects) = self.backend.level(folder)?;
        for name in names.iter().filter(|n| !known.contains(&n.as_str())) {
            let key = match folder {
                "" => name.clone(),
                _ => format!("{folder}/{name}"),
            };
            let message = "no folder of a store has such a name";
            checked.report(user, None, &key, &Finding::new(Code::StoreRecord, message));
        }
        // Links and devices are reported as strays.
        let regular = objects.iter().filter(|e| e.regular);
        for entry in regular.filter(|e| e.key != layout::MARKER) {
            checked.report_foreign(user, entry);
        }
        Ok(())
    }

    /// The keys of the objects that repairs have set aside.
    pub(in crate::store) fn set_aside(&self) -> Result<Moved> {
        match self.backend.list(layout::DAMAGED) {
            Err(e) if is_damage(&e) => Ok(Moved::default()),
            listed => Ok(listed?
                .iter()
                .filter_map(|e| layout::parse_moved(&e.key).map(str::to_owned))
                .collect()),
        }
    }
}

/// The tenant below whose folder a path is.
fn owner(path: &str) -> Option<Name> {
    let below = path.strip_prefix(layout::TENANTS)?.strip_prefix('/')?;
    below.split('/').next()?.parse().ok()
}

/// Whether whoever reads a tenant's records or blobs comes upon a stray there: it has a plain name.
fn is_reported_with_records(path: &str) -> bool {
    layout::is_key(path) && path != layout::MARKER
}
