//! The rules that make the manifest of an adapter unique: order, names, no double, no unused.

use std::collections::BTreeSet;

use super::limits::{MAX_PROVENANCE, MAX_TENSORS, MAX_TEXT_BYTES};
use super::manifest::{Manifest, SCALES};
use super::parts::{Base, Group};
use crate::adapter::Adapter;
use crate::error::{Code, Error, Result};

impl Manifest {
    pub(super) fn check_limits(&self) -> Result<()> {
        let limit = |what: &str, n: usize, max: usize| {
            Err(Error::new(
                Code::ManifestLimit,
                format!("{n} {what}, the limit is {max}"),
            ))
        };
        if self.tensors.len() > MAX_TENSORS {
            return limit("tensors", self.tensors.len(), MAX_TENSORS);
        }
        if self.provenance.len() > MAX_PROVENANCE {
            return limit("provenance entries", self.provenance.len(), MAX_PROVENANCE);
        }
        let base = self
            .base
            .iter()
            .flat_map(|b| b.name.iter().chain(&b.revision));
        let texts = self
            .provenance
            .iter()
            .flat_map(|(k, v)| [k, v])
            .chain(base)
            .chain(&self.task);
        match texts.map(String::len).max() {
            Some(n) if n > MAX_TEXT_BYTES => limit("bytes in one text", n, MAX_TEXT_BYTES),
            _ => Ok(()),
        }
    }

    /// The rules that make the manifest of an adapter unique: order, names, no double, no unused.
    pub(super) fn check_canonical_structure(&self, adapter: &Adapter) -> Result<()> {
        // Validation refused equal ones, so ascending is the one order.
        let groups_ascend = adapter.groups.is_sorted_by(|a, b| a.order(b).is_lt());
        if !groups_ascend || !adapter.extras.is_sorted_by_key(|e| &e.name) {
            return not_canonical("groups or extras are not in canonical order");
        }
        if adapter.method().name() != self.method {
            return not_canonical(format!(
                "method `{}`, and the groups are those of `{}`",
                self.method,
                adapter.method()
            ));
        }
        let features = self.features();
        if self.requires != features {
            return not_canonical(format!(
                "requires {:?}, and uses {features:?}",
                self.requires
            ));
        }
        if self.base == Some(Base::default()) {
            return not_canonical("`base` says nothing, and is there");
        }
        self.check_seeds()?;
        self.check_coded()?;
        self.check_uses()?;
        self.check_contents()
    }

    /// Only factors are made from seeds.
    fn check_seeds(&self) -> Result<()> {
        let factors = self.groups.iter().flat_map(Group::names);
        let factors: BTreeSet<&String> = factors.map(|(_, name)| name).collect();
        let seeded = self.tensors.iter().filter(|(_, t)| t.seed.is_some());
        if let Some((name, _)) = seeded.into_iter().find(|(n, _)| !factors.contains(n)) {
            return not_canonical(format!("tensor `{name}` has a seed, and is no factor"));
        }
        Ok(())
    }

    /// Only factors are coded: extras replace what the base has in full, and scales are few.
    fn check_coded(&self) -> Result<()> {
        let scales = self.tensors.values().filter_map(|t| t.scales.as_ref());
        let mut others = scales.chain(self.extras.iter().map(|x| &x.tensor));
        let is_coded = |name: &&String| {
            let entry = self.tensors.get(*name);
            entry.is_some_and(|t| t.coded.is_some())
        };
        match others.find(is_coded) {
            None => Ok(()),
            Some(name) => not_canonical(format!("tensor `{name}` is coded, and is no factor")),
        }
    }

    /// Every tensor is used, and named by where it is used first.
    fn check_uses(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut used = |name: &str, own: String| -> Result<()> {
            if seen.contains(name) || name == own {
                seen.insert(name.to_owned());
                return Ok(());
            }
            not_canonical(format!(
                "tensor `{name}` is first used where its name would be `{own}`"
            ))
        };
        for (i, group) in self.groups.iter().enumerate() {
            group.check_trained()?;
            for (part, name) in group.names() {
                let own = format!("g{i}.{}", part.name());
                if let Some(scales) = self.tensors.get(name).and_then(|t| t.scales.as_ref()) {
                    used(scales, format!("{own}{SCALES}"))?;
                }
                used(name, own)?;
            }
        }
        for (i, extra) in self.extras.iter().enumerate() {
            used(&extra.tensor, format!("x{i}"))?;
        }
        if let Some(unused) = self.tensors.keys().find(|n| !seen.contains(*n)) {
            return Err(Error::new(
                Code::TensorUnused,
                "described, and used by no group or extra",
            )
            .tensor(unused));
        }
        Ok(())
    }

    /// No content is described twice.
    fn check_contents(&self) -> Result<()> {
        let mut contents = BTreeSet::new();
        for (name, t) in &self.tensors {
            if !contents.insert((&t.dtype, &t.shape, t.sha256, &t.scales, t.coded)) {
                return not_canonical(format!("tensor `{name}` has the content of another one"));
            }
        }
        Ok(())
    }
}

fn not_canonical(message: impl Into<String>) -> Result<()> {
    Err(Error::new(Code::ManifestNotCanonical, message))
}
