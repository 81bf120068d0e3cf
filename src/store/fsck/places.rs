//! What lies where a store has its objects, and is none.

use super::{Checked, Problem, foreign, problem};
use crate::error::{Code, Error, Result};
use crate::store::layout::{self, Moved};
use crate::store::{Name, Store};

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
            let e = Error::new(Code::StoreIrregular, stray.what);
            checked
                .problems
                .push(problem(user.as_ref(), None, &stray.path, &e));
        }
        if let Some(user) = only {
            self.check_level(
                &layout::tenant(user),
                &layout::IN_TENANT,
                Some(user),
                checked,
            )?;
            return Ok(vec![user.clone()]);
        }
        self.check_level("", &layout::IN_STORE, None, checked)?;
        let (names, objects) = self.backend.level(layout::TENANTS)?;
        checked.problems.extend(
            objects
                .iter()
                .filter(|e| e.regular)
                .map(|e| foreign(None, e)),
        );
        let mut tenants = Vec::new();
        for name in names {
            match name.parse::<Name>() {
                Ok(user) => tenants.push(user),
                Err(e) => {
                    let key = format!("{}/{name}", layout::TENANTS);
                    checked.problems.push(problem(None, None, &key, &e));
                }
            }
        }
        for user in &tenants {
            self.check_level(
                &layout::tenant(user),
                &layout::IN_TENANT,
                Some(user),
                checked,
            )?;
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
            let e = Error::new(Code::StoreRecord, "no folder of a store has such a name");
            checked.problems.push(problem(user, None, &key, &e));
        }
        let strange = objects.iter().filter(|e| e.key != layout::MARKER);
        // Links and devices are reported as strays.
        let strange: Vec<Problem> = strange
            .filter(|e| e.regular)
            .map(|e| foreign(user, e))
            .collect();
        checked.problems.extend(strange);
        Ok(())
    }

    /// The keys of the objects that repairs have set aside.
    pub(in crate::store) fn set_aside(&self) -> Result<Moved> {
        match self.backend.list(layout::DAMAGED) {
            Err(e) if crate::store::is_damage(&e) => Ok(Moved::default()),
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
