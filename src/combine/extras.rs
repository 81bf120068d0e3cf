//! What adapters carry besides their low-rank updates.

use std::collections::BTreeMap;

use super::elementwise::{Elementwise, Update};
use super::input::CombineInput;
use crate::adapter::{Adapter, Extra, ExtraRole, Scaling};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, shape_text};

/// What one adapter adds to a bias.
pub(super) struct Added {
    /// Which adapter.
    pub(super) input: usize,
    pub(super) weight: f64,
    pub(super) scaling: f64,
    pub(super) values: Vec<f32>,
}

/// The extras of the result. What replaces a tensor of the base stays where every adapter has it with the same bytes;
/// what is added to a bias is summed by `add`.
///
/// # Errors
/// [`Code::AdaptersConflict`] for a tensor that only some replace, or each with another.
pub(super) fn extras(
    inputs: &[CombineInput],
    add: impl Fn(&str, Vec<Added>) -> Result<Vec<f32>>,
) -> Result<Vec<Extra>> {
    let mut names: BTreeMap<&str, Vec<(&CombineInput, &Extra)>> = BTreeMap::new();
    for input in inputs {
        for extra in &input.adapter.extras {
            names.entry(&extra.name).or_default().push((input, extra));
        }
    }
    let one = |(name, all): (&str, Vec<(&CombineInput, &Extra)>)| {
        let added = |e: &Extra| matches!(e.role, ExtraRole::AddBias(..));
        match all.iter().all(|(_, e)| added(e)) {
            true => summed(name, &all, inputs, &add),
            false => kept(name, &all, inputs).cloned(),
        }
    };
    names.into_iter().map(one).collect()
}

/// The tensor that all adapters put into the base's place.
fn kept<'e>(
    name: &str,
    all: &[(&CombineInput, &'e Extra)],
    inputs: &[CombineInput],
) -> Result<&'e Extra> {
    let (first, extra) = all[0];
    let conflict = |message: String| {
        Err(Error::new(Code::AdaptersConflict, message)
            .tensor(name)
            .hint("tensors that replace one of the base cannot be weighted; combine the adapters without them"))
    };
    let same = |e: &Extra| {
        e.role == extra.role && e.rows == extra.rows && e.tensor.same_bytes(&extra.tensor)
    };
    if let Some((other, _)) = all.iter().find(|(_, e)| !same(e)) {
        return conflict(format!(
            "`{}` and `{}` replace it with different values",
            first.label, other.label
        ));
    }
    let has = |i: &&CombineInput| all.iter().any(|(of, _)| std::ptr::eq(*of, *i));
    match inputs.iter().find(|i| !has(i)) {
        Some(without) => conflict(format!(
            "`{}` replaces it, and `{}` leaves the base's",
            first.label, without.label
        )),
        None => Ok(extra),
    }
}

fn summed(
    name: &str,
    all: &[(&CombineInput, &Extra)],
    inputs: &[CombineInput],
    add: &impl Fn(&str, Vec<Added>) -> Result<Vec<f32>>,
) -> Result<Extra> {
    let shape = all[0].1.tensor.shape();
    let mut parts = Vec::with_capacity(all.len());
    for (input, extra) in all {
        let ExtraRole::AddBias(scaling, rank) = extra.role else {
            continue;
        };
        if extra.tensor.shape() != shape {
            let message = format!(
                "`{}` adds {} values to it, `{}` {}",
                all[0].0.label,
                shape_text(shape),
                input.label,
                shape_text(extra.tensor.shape())
            );
            return Err(Error::new(Code::AdaptersConflict, message).tensor(name));
        }
        let at = inputs.iter().position(|i| std::ptr::eq(i, *input));
        parts.push(Added {
            input: at.unwrap_or_default(),
            weight: input.weight,
            scaling: scaling.factor(rank),
            values: extra.tensor.to_f32()?,
        });
    }
    let values = add(name, parts)?;
    let role = ExtraRole::AddBias(Scaling::one(1), 1);
    let tensor = Tensor::from_f32(shape.to_vec(), &values)?;
    Ok(Extra::new(name, role, tensor))
}

/// Gives what is added to a bias the scaling of the module's update, as PEFT has it.
///
/// # Errors
/// Those of [`Tensor::to_f32`].
pub(super) fn scale_with_modules(result: &mut Adapter) -> Result<()> {
    let modules = result.modules().into_iter();
    let modules: BTreeMap<String, usize> = modules.map(|m| (m.path, m.group)).collect();
    for extra in &mut result.extras {
        let module = extra
            .name
            .strip_suffix(".bias")
            .and_then(|m| modules.get(m));
        let (ExtraRole::AddBias(..), Some(at)) = (extra.role, module) else {
            continue;
        };
        let group = &result.groups[*at];
        let s = group.scaling.factor(group.rank);
        let values = extra.tensor.to_f32()?;
        let values: Vec<f32> = values.iter().map(|x| (f64::from(*x) / s) as f32).collect();
        extra.tensor = Tensor::from_f32(extra.tensor.shape().to_vec(), &values)?;
        extra.role = ExtraRole::AddBias(group.scaling, group.rank);
    }
    Ok(())
}

/// Σ w·s·values, rounded once.
pub(super) fn weighted_sum(parts: &[Added]) -> Vec<f32> {
    let mut sum = vec![0.0f64; parts.first().map_or(0, |p| p.values.len())];
    for part in parts {
        let scale = part.weight * part.scaling;
        for (to, x) in sum.iter_mut().zip(&part.values) {
            *to += scale * f64::from(*x);
        }
    }
    sum.iter().map(|x| *x as f32).collect()
}

/// The update of the bias by a method for elements: each adapter's has its scaling inside.
pub(super) fn by_elements(name: &str, parts: Vec<Added>, method: &Elementwise) -> Result<Vec<f32>> {
    let update = |part: Added| {
        let scaled = part
            .values
            .iter()
            .map(|x| (part.scaling * f64::from(*x)) as f32);
        Update {
            input: part.input,
            weight: part.weight as f32,
            values: scaled.collect(),
        }
    };
    let len = parts.first().map_or(0, |p| p.values.len());
    method.apply(name, len, parts.into_iter().map(update).collect())
}
