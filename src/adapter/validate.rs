//! What no reader may assume of an adapter: names, shapes, uniqueness, limits, alpha.

use std::collections::BTreeSet;

use super::factor::FactorName;
use super::group::TieGroup;
use super::limits::{MAX_GROUPS, MAX_LAYERS, MAX_MODULES, MAX_RANK};
use super::names::check_name;
use super::whole::Adapter;
use crate::error::{Code, Error, Result};
use crate::tensor::{not_float, shape_text};

impl Adapter {
    /// Checks what no reader may assume: names, shapes, uniqueness, limits, alpha.
    ///
    /// # Errors
    /// [`Code::ManifestLimit`], [`Code::BadName`], [`Code::ShapeDisagrees`], [`Code::BadAlpha`],
    /// [`Code::DuplicateTarget`], [`Code::DtypeNotAllowed`].
    pub fn validate(&self) -> Result<()> {
        if self.groups.len() > MAX_GROUPS {
            let message = format!(
                "{} tie groups, the limit is {MAX_GROUPS}",
                self.groups.len()
            );
            return Err(Error::new(Code::ManifestLimit, message));
        }
        for group in &self.groups {
            group.validate()?;
        }
        let count = |g: &TieGroup| g.instances().saturating_mul(g.targets.len());
        let modules = self.groups.iter().map(count).fold(0, usize::saturating_add);
        if modules > MAX_MODULES {
            let message = format!("{modules} adapted modules, the limit is {MAX_MODULES}");
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let mut seen = BTreeSet::new();
        for module in self.modules() {
            if let Some(twice) = seen.replace(module.path) {
                let message = format!("`{twice}` is adapted by two tie groups");
                return Err(Error::new(Code::DuplicateTarget, message));
            }
        }
        let mut seen = BTreeSet::new();
        for extra in &self.extras {
            check_name(&extra.name, false)?;
            extra.check_rows()?;
            if !extra.tensor.dtype().is_float() {
                return Err(not_float(extra.tensor.dtype()).tensor(&extra.name));
            }
            if !seen.insert(&extra.name) {
                let message = format!("`{}` is replaced twice", extra.name);
                return Err(Error::new(Code::DuplicateTarget, message));
            }
        }
        Ok(())
    }
}

impl TieGroup {
    fn validate(&self) -> Result<()> {
        let limit = |what: &str, n: usize, max: usize| {
            Error::new(
                Code::ManifestLimit,
                format!("{what} {n}, the limits are 1 to {max}"),
            )
        };
        if self.rank == 0 || self.rank > MAX_RANK {
            return Err(limit("rank", self.rank, MAX_RANK));
        }
        if self.in_features == 0
            || self.targets.is_empty()
            || self.targets.iter().any(|t| t.out == 0)
        {
            return Err(Error::new(
                Code::ShapeDisagrees,
                "a tie group needs targets, each with inputs and outputs",
            ));
        }
        if let Some(layers) = &self.layers {
            if layers.is_empty() || layers.len() > MAX_LAYERS {
                return Err(limit("number of layers", layers.len(), MAX_LAYERS));
            }
            if layers.windows(2).any(|w| w[0] >= w[1])
                || layers.iter().any(|l| *l as usize >= MAX_LAYERS)
            {
                let message =
                    format!("layers {layers:?} are not ascending numbers below {MAX_LAYERS}");
                return Err(Error::new(Code::BadName, message));
            }
        }
        let mut outs = self.targets.iter().map(|t| t.out);
        if outs.try_fold(0usize, usize::checked_add).is_none() {
            let message = "the targets have more outputs than any B has rows";
            return Err(Error::new(Code::ShapeDisagrees, message));
        }
        for target in &self.targets {
            check_name(&target.module, self.layers.is_some())?;
        }
        self.scaling.validate(self.rank)?;
        self.validate_shapes()
    }

    fn validate_shapes(&self) -> Result<()> {
        let (r, n, m) = (self.rank, self.in_features, self.total_out());
        let layers = self.layers.as_ref().map(Vec::len);
        if self.core.is_some() && self.u.is_some() {
            let message = "a tie group has both C and u, which take one place";
            return Err(Error::new(Code::ShapeDisagrees, message));
        }
        for (part, factor) in self.factors() {
            let shape = factor.tensor.shape();
            if !factor.tensor.is_real() {
                return Err(not_float(factor.tensor.dtype()).tensor(part.name()));
            }
            let (extents, stacked) = match (shape, part) {
                ([l, extents @ ..], FactorName::A | FactorName::B) if extents.len() == 2 => {
                    (extents, Some(*l))
                }
                ([l, extents @ ..], FactorName::C | FactorName::U | FactorName::V)
                    if layers.is_some() =>
                {
                    (extents, Some(*l))
                }
                _ => (shape, None),
            };
            let fits = match (part, extents) {
                (FactorName::A, [rows, columns]) => *rows == r && *columns >= n,
                (FactorName::B, [rows, columns]) => *rows >= m && *columns == r,
                (FactorName::C, [rows, columns]) => *rows == r && *columns == r,
                (FactorName::U, [len]) => *len == r,
                (FactorName::V, [len]) => *len == m,
                _ => false,
            };
            if !fits || (stacked.is_some() && stacked != layers) {
                let message = format!(
                    "{} has shape {}, which does not fit rank {r}, in {n}, out {m}, {} layers",
                    part.name(),
                    shape_text(shape),
                    layers.map_or("no".to_owned(), |l| l.to_string()),
                );
                return Err(Error::new(Code::ShapeDisagrees, message));
            }
        }
        Ok(())
    }
}
