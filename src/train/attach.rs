//! Adapters that exist already, on a model: to run with it, or to train on.

use candle_core::{DType, Tensor};

use super::model::{Branches, Model, ModulePlace};
use super::ops::Branch;
use super::template::{Group, Trainable, spans};
use crate::adapter::{Adapter, ModuleKind, Target, TieGroup};
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
    let mut branches = Branches::none(model.config().layers);
    for group in &adapter.groups {
        for (t, target) in group.targets.iter().enumerate() {
            for i in 0..group.instances() {
                let place = place(&modules, group, target, i)?;
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
        let groups = adapter.groups.iter().map(|group| adopt(group, &modules));
        Ok(Self::of_groups(groups.collect::<Result<_>>()?))
    }
}

fn adopt(group: &TieGroup, modules: &[ModulePlace]) -> Result<Group> {
    let of_layer = |i: usize| -> Result<Vec<&ModulePlace>> {
        let targets = group.targets.iter();
        targets.map(|t| place(modules, group, t, i)).collect()
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

/// Where a target of a tie group's `i`th layer is in the model.
fn place<'m>(
    modules: &'m [ModulePlace],
    group: &TieGroup,
    target: &Target,
    i: usize,
) -> Result<&'m ModulePlace> {
    let path = group.module_path(target, i);
    let place = find(modules, &path).ok_or_else(|| {
        Error::new(Code::UnmatchedModule, "the model has no such linear module").tensor(&path)
    })?;
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

/// The module of that path, or of one that differs in leading segments only.
pub(super) fn find<'a>(modules: &'a [ModulePlace], path: &str) -> Option<&'a ModulePlace> {
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let exact = modules.iter().find(|m| m.path == path);
    exact.or_else(|| {
        let mut like = modules
            .iter()
            .filter(|m| ends(&m.path, path) || ends(path, &m.path));
        let one = like.next();
        if like.next().is_some() { None } else { one }
    })
}
