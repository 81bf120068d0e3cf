//! Where the modules of an adapter are in a model, and its branches there.

use std::collections::{HashMap, HashSet};

use candle_core::{DType, Tensor};

use super::ops::{Branch, Span};
use crate::adapter::{Adapter, Target, TieGroup};
use crate::base::architecture::Architecture;
use crate::base::names::{Names, whole_places};
use crate::error::{Code, Error, Result};
use crate::model::{Branches, Model, ModulePlace};

/// The branches of a finished adapter, of any kind that is a sum of low-rank updates of linear
/// modules.
///
/// # Errors
/// [`Code::UnmatchedModule`] and [`Code::BaseShape`] where it does not fit the model;
/// [`Code::UnsupportedAdapter`] where it holds more than low-rank updates.
pub fn attach(adapter: &Adapter, model: &Model) -> Result<Branches> {
    refuse_extras(adapter)?;
    let modules = model.modules();
    let places = Places::of(adapter, &modules, model)?;
    let mut branches = Branches::none(model.config().layers);
    for group in &adapter.groups {
        for (t, target) in group.targets.iter().enumerate() {
            for i in 0..group.instances() {
                let place = places.get(group, target, i)?;
                let low = group.low_rank(i, t)?;
                let on = |values: Vec<f32>, rows, cols| -> Result<Tensor> {
                    let factor = Tensor::from_vec(values, (rows, cols), model.device())?;
                    match model.dtype() {
                        DType::F64 => Ok(factor.to_dtype(DType::F64)?),
                        _ => Ok(factor),
                    }
                };
                let branch = Branch {
                    a: on(low.right, low.rank, low.in_features)?,
                    b: on(low.left, low.out, low.rank)?,
                    scale: low.scale,
                    spans: place.spans.clone(),
                    wanted: [false; 2],
                };
                branches.push(place.layer, place.slot, branch);
            }
        }
    }
    Ok(branches)
}

pub(crate) fn refuse_extras(adapter: &Adapter) -> Result<()> {
    let Some(extra) = adapter.extras.first() else {
        return refuse_experts(adapter);
    };
    let message = format!("the adapter also changes `{}` outright", extra.name);
    Err(Error::new(Code::UnsupportedAdapter, message).hint("merge it, and run the result"))
}

/// Experts run as parts of the base.
fn refuse_experts(adapter: &Adapter) -> Result<()> {
    let targets = adapter.groups.iter().flat_map(|g| {
        let of_experts = |t: &&Target| g.experts.is_some() || t.module.contains(".experts.");
        g.targets.iter().filter(of_experts)
    });
    match targets.into_iter().next() {
        None => Ok(()),
        Some(target) => Err(Error::new(
            Code::UnsupportedAdapter,
            "adapters on experts are not run: experts run as parts of the base",
        )
        .tensor(&target.module)
        .hint("merge it, and run the result")),
    }
}

/// Where the rows of modules, one after the other, go; neighbours made one.
pub(crate) fn spans(places: &[&ModulePlace]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut row = 0;
    for place in places {
        spans.extend(place.spans.iter().map(|s| Span {
            row: row + s.row,
            ..*s
        }));
        row += place.out;
    }
    let mut out: Vec<Span> = Vec::new();
    for span in spans {
        match out.last_mut() {
            Some(last)
                if last.row + last.len == span.row && last.column + last.len == span.column =>
            {
                last.len += span.len;
            }
            _ => out.push(span),
        }
    }
    out
}

/// Where the modules of an adapter are in the model.
pub(crate) struct Places<'m>(HashMap<String, &'m ModulePlace>);

impl<'m> Places<'m> {
    /// `modules` are those of `model`.
    pub(crate) fn of(adapter: &Adapter, modules: &'m [ModulePlace], model: &Model) -> Result<Self> {
        let paths: Vec<String> = adapter.modules().into_iter().map(|m| m.path).collect();
        let found = find(modules, &paths, model)?;
        Ok(Self(paths.into_iter().zip(found).collect()))
    }

    /// That of a target in a tie group's `i`th layer, whose shape it must have.
    pub(crate) fn get(
        &self,
        group: &TieGroup,
        target: &Target,
        i: usize,
    ) -> Result<&'m ModulePlace> {
        let path = group.module_path(target, i);
        let place = *self.0.get(&path).ok_or_else(|| absent(&path))?;
        if (place.out, place.in_features) != (target.out, group.in_features)
            || target.kind != place.kind
        {
            let message = format!(
                "the model's weight is {}×{}, the adapter's update {}×{}",
                place.out, place.in_features, target.out, group.in_features
            );
            return Err(Error::new(Code::BaseShape, message).tensor(&path));
        }
        Ok(place)
    }
}

/// The modules that one adapter means by these paths, renamed so, found as a merge finds its weights.
///
/// # Errors
/// [`Code::UnmatchedModule`], [`Code::AmbiguousModule`].
pub(crate) fn find<'m>(
    modules: &'m [ModulePlace],
    paths: &[String],
    model: &Model,
) -> Result<Vec<&'m ModulePlace>> {
    let renames = model.checkpoint().renames();
    find_by(modules, paths, model.architecture(), renames)
}

fn find_by<'m>(
    modules: &'m [ModulePlace],
    paths: &[String],
    architecture: &Architecture,
    renames: &[(String, String)],
) -> Result<Vec<&'m ModulePlace>> {
    let paths_there = modules.iter().map(|m| m.path.as_str());
    let known: HashMap<&str, usize> = paths_there.zip(0..).collect();
    let found = Names::new(&known, architecture).resolve(paths, renames, |_| false);
    let found = found.and_then(|f| whole_places(paths, f)).map_err(|e| {
        match (e.code(), e.tensor_name()) {
            (Code::UnmatchedModule, Some(path)) => absent(path),
            _ => e,
        }
    })?;
    let mut taken = HashSet::new();
    let places = found.into_iter().zip(paths);
    let distinct = |(place, path): (Option<usize>, &String)| {
        let place = place.and_then(|i| modules.get(i));
        let place = place.ok_or_else(|| absent(path))?;
        if !taken.insert(&place.path) {
            let message = "two names of the adapter lead to one module of the model";
            return Err(Error::new(Code::AmbiguousModule, message).tensor(path));
        }
        Ok(place)
    };
    places.map(distinct).collect()
}

fn absent(path: &str) -> Error {
    Error::new(Code::UnmatchedModule, "the model has no such linear module").tensor(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{Extra, ExtraRole, ModuleKind};
    use crate::model::Slot;
    use crate::tensor::{Dtype, Tensor};

    /// Breaks where a model runs with a part of an adapter only.
    #[test]
    fn what_replaces_a_tensor_is_not_run() {
        let values = Tensor::narrowed(Dtype::F32, vec![2], &[1.0, 2.0]).unwrap();
        let adapter = Adapter {
            extras: vec![Extra::new("norm.weight", ExtraRole::Replace, values)],
            ..Adapter::default()
        };
        let e = refuse_extras(&adapter).unwrap_err();
        assert_eq!(e.code(), Code::UnsupportedAdapter);
    }

    fn at(path: &str, layer: usize) -> ModulePlace {
        ModulePlace {
            layer,
            slot: Slot::Qkv,
            path: path.to_owned(),
            out: 4,
            in_features: 4,
            kind: ModuleKind::Linear,
            spans: Vec::new(),
        }
    }

    /// Breaks where a model runs with an adapter on other modules than a merge would change.
    #[test]
    fn modules_are_found_as_a_merge_finds_its_weights() {
        let modules = [
            at("model.layers.0.q_proj", 0),
            at("model.layers.1.q_proj", 1),
        ];
        let paths = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let none = Architecture::default();
        for prefix in ["model.", "", "base.model."] {
            let wanted = [1, 0].map(|l| format!("{prefix}layers.{l}.q_proj"));
            let found = find_by(&modules, &wanted, &none, &[]).unwrap();
            assert_eq!(found.iter().map(|m| m.layer).collect::<Vec<_>>(), [1, 0]);
        }
        let wanted = paths(&["backbone.0.q_proj"]);
        assert!(find_by(&modules, &wanted, &none, &[]).is_err());
        let renames = [("backbone".to_owned(), "model.layers".to_owned())];
        assert_eq!(
            find_by(&modules, &wanted, &none, &renames).unwrap()[0].layer,
            0
        );
        let wanted = paths(&["layers.0.q_proj", "layers.2.q_proj"]);
        let e = find_by(&modules, &wanted, &none, &[]).unwrap_err();
        assert_eq!(e.code(), Code::UnmatchedModule);
        let wanted = paths(&["layers.0.q_proj", "model.layers.0.q_proj"]);
        let e = find_by(&modules, &wanted, &none, &[]).unwrap_err();
        assert_eq!(e.code(), Code::AmbiguousModule);
    }
}
