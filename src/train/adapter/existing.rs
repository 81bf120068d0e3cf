//! An adapter that exists already, as one to train on from where it is.

use super::group::Group;
use super::layout::TrainingAdapter;
use crate::adapter::{Adapter, TieGroup};
use crate::error::{Code, Error, Result};
use crate::model::{Model, ModulePlace, Places, refuse_extras, spans};
use crate::tensor::Tensor;

impl TrainingAdapter {
    /// Lays an adapter out on `model`, to train what it marks as trained on from where it is.
    ///
    /// # Errors
    /// Those of [`attach`](crate::model::attach); [`Code::UnsupportedAdapter`] for a tie group whose
    /// targets do not read one input in the model, whose A or B is larger than its modules, or whose u
    /// or v does not train.
    pub fn of(adapter: &Adapter, model: &Model) -> Result<Self> {
        refuse_extras(adapter)?;
        let modules = model.modules();
        let places = Places::of(adapter, &modules, model)?;
        let groups = adapter.groups.iter().map(|group| lay_out(group, &places));
        Ok(Self::of_groups(groups.collect::<Result<_>>()?))
    }
}

fn lay_out(group: &TieGroup, all: &Places<'_>) -> Result<Group> {
    let unsupported = |message: &str| {
        let name = group.targets.first().map_or("", |t| t.module.as_str());
        Error::new(Code::UnsupportedAdapter, message).tensor(name)
    };
    let scattered = || unsupported("its modules do not read one input of one layer in the model");
    if [&group.u, &group.v]
        .into_iter()
        .flatten()
        .any(|f| !f.trained)
    {
        return Err(unsupported("its u or v does not train"));
    }
    let of_layer = |i: usize| -> Result<Vec<&ModulePlace>> {
        let targets = group.targets.iter();
        targets.map(|t| all.get(group, t, i)).collect()
    };
    let first = of_layer(0)?;
    let slot = first.first().ok_or_else(scattered)?.slot;
    let layout = spans(&first);
    let mut layers = Vec::with_capacity(group.instances());
    for i in 0..group.instances() {
        let places = of_layer(i)?;
        let layer = places.first().ok_or_else(scattered)?.layer;
        let together = places.iter().all(|p| (p.slot, p.layer) == (slot, layer));
        if !together || spans(&places) != layout {
            return Err(scattered());
        }
        layers.push(layer as u32);
    }
    let exact = |tensor: &Tensor, shape: [usize; 2]| tensor.shape().ends_with(&shape);
    if !exact(&group.a.tensor, [group.rank, group.in_features])
        || !exact(&group.b.tensor, [group.total_out(), group.rank])
    {
        return Err(unsupported(
            "its A or B is larger than its modules, and so is no tensor to train",
        ));
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
