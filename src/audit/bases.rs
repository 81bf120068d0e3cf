//! The bases that adapters were trained over, where they are given: how their weights are stored.
//!
//! What an adapter calls its base is compared with what the bases are called. It is never followed: it may be anybody's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::row::Row;
use crate::base::Called;
use crate::error::{Error, Result};
use crate::quant::kind_of_base;

/// The base models that an audit was given.
#[derive(Debug, Default)]
pub(super) struct Bases(Vec<Base>);

#[derive(Debug)]
struct Base {
    /// As it was given, and without links.
    paths: [PathBuf; 2],
    called: Called,
    kind: String,
}

impl Bases {
    /// # Errors
    /// Those of [`kind_of_base`], and [`Code::NotFound`](crate::Code::NotFound).
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| {
            let failed = |e| Error::io(path, "open", e);
            Ok(Base {
                paths: [
                    path.canonicalize().map_err(failed)?,
                    std::path::absolute(path).map_err(failed)?,
                ],
                called: Called::of(path)?,
                kind: kind_of_base(path)?,
            })
        };
        paths.iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Says of each row how the base is stored that it was trained over, where that is known.
    pub(super) fn tell(&self, rows: &mut [Row]) {
        let mut kinds: BTreeMap<String, Option<String>> = BTreeMap::new();
        for row in rows {
            let Some(name) = &row.base else { continue };
            let kind = kinds.entry(name.clone());
            row.base_stored = kind.or_insert_with(|| self.kind(name)).clone();
        }
    }

    /// How the base of a name is stored: that at this path, else one of those given, if all that are called so agree.
    fn kind(&self, name: &str) -> Option<String> {
        let path = Path::new(name);
        let at_path = self.0.iter().find(|b| b.paths.iter().any(|p| p == path));
        if let Some(base) = at_path {
            return Some(base.kind.clone());
        }
        let mut called = self.0.iter().filter(|b| b.is_called(name));
        let first = called.next()?;
        let agree = called.all(|b| b.kind == first.kind);
        agree.then(|| first.kind.clone())
    }
}

impl Base {
    /// Whether the last part of a name is that of the base's own, or of its folder.
    fn is_called(&self, name: &str) -> bool {
        let last = |name: &str| {
            let name = name.trim_end_matches(['/', '\\']);
            let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
            last.to_lowercase()
        };
        let own = self.called.own.iter().chain([&self.called.folder]);
        own.map(|own| last(own)).any(|own| own == last(name))
    }
}
