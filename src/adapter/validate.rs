//! What no reader may assume of an adapter: names, shapes, uniqueness, limits, alpha.

use std::collections::BTreeSet;

use super::factor::FactorName;
use super::group::TieGroup;
use super::limits::{MAX_EXPERTS, MAX_GROUPS, MAX_LAYERS, MAX_MODULES, MAX_RANK};
use super::names::check_name;
use super::target::{ModuleKind, Target};
use super::whole::{Adapter, Module};
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
        for modules in self.modules().chunk_by(Module::shares_weight) {
            if let Some(twice) = seen.replace(self.weight_name(&modules[0])) {
                let path = &modules[0].path;
                let message = format!("`{path}` is adapted by two tie groups (`{twice}`)");
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
        self.validate_experts()?;
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

    /// Experts belong to parameters, and only a parameter with experts may be transposed.
    fn validate_experts(&self) -> Result<()> {
        if let Some(experts) = self.experts
            && !(1..=MAX_EXPERTS).contains(&experts)
        {
            let message = format!("{experts} experts, the limits are 1 to {MAX_EXPERTS}");
            return Err(Error::new(Code::ManifestLimit, message));
        }
        let fits = |t: &Target| match t.kind {
            ModuleKind::Parameter => true,
            ModuleKind::ParameterTransposed => self.experts.is_some(),
            _ => self.experts.is_none(),
        };
        match self.targets.iter().find(|t| !fits(t)) {
            None => Ok(()),
            Some(target) => {
                let message = "experts go with parameters, and transposed parameters with experts";
                Err(Error::new(Code::ShapeDisagrees, message).tensor(&target.module))
            }
        }
    }

    /// Whether a leading axis may have this extent: an entry for each instance, or for each layer.
    fn stacks(&self, extent: usize) -> bool {
        let layers = self.layers.as_ref().map(Vec::len);
        let instances = (layers.is_some() || self.experts.is_some()).then(|| self.instances());
        Some(extent) == layers || Some(extent) == instances
    }

    fn validate_shapes(&self) -> Result<()> {
        let (r, n, m) = (self.rank, self.in_features, self.total_out());
        let layers = self.layers.as_ref().map(Vec::len);
        let has_axis = layers.is_some() || self.experts.is_some();
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
                ([l, extents @ ..], FactorName::C | FactorName::U | FactorName::V) if has_axis => {
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
            if !fits || stacked.is_some_and(|extent| !self.stacks(extent)) {
                let message = format!(
                    "{} has shape {}, which does not fit rank {r}, in {n}, out {m}, {} layers{}",
                    part.name(),
                    shape_text(shape),
                    layers.map_or("no".to_owned(), |l| l.to_string()),
                    self.experts
                        .map_or_else(String::new, |e| format!(", {e} experts")),
                );
                return Err(Error::new(Code::ShapeDisagrees, message));
            }
        }
        Ok(())
    }
}
