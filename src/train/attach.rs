//! Adapters that exist already, on a model: to run with it, or to train on.

use std::collections::{HashMap, HashSet};

use candle_core::{DType, Tensor};

use super::model::{Branches, Model, ModulePlace};
use super::ops::Branch;
use super::template::{Group, Trainable, spans};
use crate::adapter::{Adapter, ModuleKind, Target, TieGroup};
use crate::base::names::resolve;
use crate::error::{Code, Error, Result};
use crate::tensor;

/// The branches of a finished adapter, of any kind that is a sum of low-rank updates of linear
/// modules.
///
/// # Errors
/// [`Code::UnmatchedModule`] and [`Code::BaseShape`] where it does not fit the model;
/// [`Code::UnsupportedAdapter`] where it holds more than low-rank updates.
pub fn attach(adapter: &Adapter, model: &Model) -> Result<Branches> {
    refuse_extras(adapter)?;
    let modules = model.modules();
    let places = Places::of(adapter, &modules)?;
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

impl Trainable {
    /// Lays an adapter out on `model`, to train what it marks as trained on from where it is.
    ///
    /// # Errors
    /// Those of [`attach`]; [`Code::UnsupportedAdapter`] for a tie group whose targets do not read one
    /// input in the model, whose A or B is larger than its modules, or whose u or v does not train.
    pub fn of(adapter: &Adapter, model: &Model) -> Result<Self> {
        refuse_extras(adapter)?;
        let modules = model.modules();
        let places = Places::of(adapter, &modules)?;
        let groups = adapter.groups.iter().map(|group| adopt(group, &places));
        Ok(Self::of_groups(groups.collect::<Result<_>>()?))
    }
}

fn adopt(group: &TieGroup, all: &Places<'_>) -> Result<Group> {
    let of_layer = |i: usize| -> Result<Vec<&ModulePlace>> {
        let targets = group.targets.iter();
        targets.map(|t| all.get(group, t, i)).collect()
    };
    let torn = || {
        let message = "its modules do not read one input of one layer in the model";
        let name = group.targets.first().map_or("", |t| t.module.as_str());
        Error::new(Code::UnsupportedAdapter, message).tensor(name)
    };
    if [&group.u, &group.v]
        .into_iter()
        .flatten()
        .any(|f| !f.trained)
    {
        let name = group.targets.first().map_or("", |t| t.module.as_str());
        return Err(Error::new(Code::UnsupportedAdapter, "its u or v does not train").tensor(name));
    }
    let first = of_layer(0)?;
    let slot = first.first().ok_or_else(torn)?.slot;
    let layout = spans(&first);
    let mut layers = Vec::with_capacity(group.instances());
    for i in 0..group.instances() {
        let places = of_layer(i)?;
        let layer = places.first().ok_or_else(torn)?.layer;
        let together = places.iter().all(|p| (p.slot, p.layer) == (slot, layer));
        if !together || spans(&places) != layout {
            return Err(torn());
        }
        layers.push(layer as u32);
    }
    let exact = |tensor: &tensor::Tensor, shape: [usize; 2]| tensor.shape().ends_with(&shape);
    if !exact(&group.a.tensor, [group.rank, group.in_features])
        || !exact(&group.b.tensor, [group.total_out(), group.rank])
    {
        let message = "its A or B is larger than its modules, and so is no tensor to train";
        let name = group.targets.first().map_or("", |t| t.module.as_str());
        return Err(Error::new(Code::UnsupportedAdapter, message).tensor(name));
    }
    Ok(Group {
        a: group.a.tensor.to_f32()?,
        b: group.b.tensor.to_f32()?,
        shape: group.clone(),
        slot,
        layers,
        spans: layout,
    })
}

fn refuse_extras(adapter: &Adapter) -> Result<()> {
    let Some(extra) = adapter.extras.first() else {
        return Ok(());
    };
    let message = format!("the adapter also changes `{}` outright", extra.name);
    Err(Error::new(Code::UnsupportedAdapter, message).hint("merge it, and run the result"))
}

/// Where the modules of an adapter are in the model.
struct Places<'m>(HashMap<String, &'m ModulePlace>);

impl<'m> Places<'m> {
    fn of(adapter: &Adapter, modules: &'m [ModulePlace]) -> Result<Self> {
        let paths: Vec<String> = adapter.modules().into_iter().map(|m| m.path).collect();
        let found = find(modules, &paths)?;
        Ok(Self(paths.into_iter().zip(found).collect()))
    }

    /// That of a target in a tie group's `i`th layer, whose shape it must have.
    fn get(&self, group: &TieGroup, target: &Target, i: usize) -> Result<&'m ModulePlace> {
        let path = group.module_path(target, i);
        let place = *self.0.get(&path).ok_or_else(|| absent(&path))?;
        if (place.out, place.in_features) != (target.out, group.in_features)
            || target.kind != ModuleKind::Linear
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

/// The modules that one adapter means by these paths, found as a merge finds its weights.
///
/// # Errors
/// [`Code::UnmatchedModule`], [`Code::AmbiguousModule`].
pub(super) fn find<'m>(
    modules: &'m [ModulePlace],
    paths: &[String],
) -> Result<Vec<&'m ModulePlace>> {
    let known: HashMap<&str, &ModulePlace> = modules.iter().map(|m| (m.path.as_str(), m)).collect();
    let found = resolve(&known, paths, &[], |_| false);
    let found = found.map_err(|e| match (e.code(), e.tensor_name()) {
        (Code::UnmatchedModule, Some(path)) => absent(path),
        _ => e,
    })?;
    let mut taken = HashSet::new();
    let places = found.into_iter().zip(paths);
    let distinct = |(place, path): (Option<&'m ModulePlace>, &String)| {
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
    use crate::train::model::Slot;

    fn at(path: &str, layer: usize) -> ModulePlace {
        ModulePlace {
            layer,
            slot: Slot::Qkv,
            path: path.to_owned(),
            out: 4,
            in_features: 4,
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
        for prefix in ["model.", "", "base.model."] {
            let wanted = [1, 0].map(|l| format!("{prefix}layers.{l}.q_proj"));
            let found = find(&modules, &wanted).unwrap();
            assert_eq!(found.iter().map(|m| m.layer).collect::<Vec<_>>(), [1, 0]);
        }
        let wanted = paths(&["layers.0.q_proj", "layers.2.q_proj"]);
        let e = find(&modules, &wanted).unwrap_err();
        assert_eq!(e.code(), Code::UnmatchedModule);
        let wanted = paths(&["layers.0.q_proj", "model.layers.0.q_proj"]);
        let e = find(&modules, &wanted).unwrap_err();
        assert_eq!(e.code(), Code::AmbiguousModule);
    }
}
