//! Names that lead to something: a checkpoint's, or any others.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::safetensors::{Checkpoint, Location};

/// The names there are.
pub(crate) trait Known {
    /// What a name leads to.
    type Place: Copy;

    /// Where exactly this name leads.
    fn locate(&self, name: &str) -> Option<Self::Place>;

    /// All names.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// Prefixes that stand for others of these names, as a caller says.
    fn renames(&self) -> &[(String, String)] {
        &[]
    }

    /// The file that an error is about.
    fn path(&self) -> Option<&Path> {
        None
    }
}

impl Known for Checkpoint {
    type Place = Location;

    fn locate(&self, name: &str) -> Option<Location> {
        Checkpoint::locate(self, name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().keys().map(String::as_str)
    }

    fn renames(&self) -> &[(String, String)] {
        Checkpoint::renames(self)
    }

    fn path(&self) -> Option<&Path> {
        Some(Checkpoint::path(self))
    }
}

impl<P: Copy> Known for HashMap<&str, P> {
    type Place = P;

    fn locate(&self, name: &str) -> Option<P> {
        self.get(name).copied()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.keys().copied()
    }
}

impl<P: Copy> Known for BTreeMap<&str, P> {
    type Place = P;

    fn locate(&self, name: &str) -> Option<P> {
        self.get(name).copied()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.keys().copied()
    }
}
