//! Tie groups taken apart, without a number changed.

use crate::adapter::{Factor, FactorName, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The group of each target, over all layers.
pub(super) fn by_target(group: &TieGroup) -> Result<Vec<TieGroup>> {
    let mut first = 0;
    let of_target = |target: &crate::adapter::Target| {
        let rows = first..first + target.out;
        first = rows.end;
        Ok(TieGroup {
            b: rows_of(&group.b, 2, rows.clone())?,
            v: group.v.as_ref().map(|v| rows_of(v, 1, rows)).transpose()?,
            targets: vec![target.clone()],
            ..group.clone()
        })
    };
    match &group.targets[..] {
        [_] => Ok(vec![group.clone()]),
        targets => targets.iter().map(of_target).collect(),
    }
}

/// The group of each target in each layer.
pub(super) fn by_module(group: &TieGroup) -> Result<Vec<TieGroup>> {
    let mut modules = Vec::new();
    for target in by_target(group)? {
        match &group.layers {
            None => modules.push(target),
            Some(layers) => {
                for (at, layer) in layers.iter().enumerate() {
                    modules.push(in_layer(&target, at, *layer)?);
                }
            }
        }
    }
    Ok(modules)
}

/// A group in one of its layers.
fn in_layer(group: &TieGroup, at: usize, layer: u32) -> Result<TieGroup> {
    let experts = group.experts_or_one();
    let (layers, instances) = (group.instances() / experts.max(1), group.instances());
    let own = |name: FactorName, factor: &Factor| -> Result<Factor> {
        let matrix = matches!(name, FactorName::A | FactorName::B);
        let tensor = &factor.tensor;
        let stacked = match name {
            FactorName::A | FactorName::B | FactorName::C => tensor.shape().len() == 3,
            FactorName::U | FactorName::V => tensor.shape().len() == 2,
        };
        if !stacked {
            return Ok(factor.clone());
        }
        let extent = tensor.shape()[0];
        let part = match (extent == instances, extent == layers && experts > 1) {
            (true, _) if experts > 1 => tensor.slice_first(at * experts..(at + 1) * experts),
            // A vector keeps the axis of its layer; A and B have one only where they are stacked.
            (true, _) if !matrix => tensor.slice_first(at..at + 1),
            (true, _) => tensor.index_first(at),
            (_, true) if !matrix => tensor.slice_first(at..at + 1),
            (_, true) => tensor.index_first(at),
            _ => None,
        };
        Ok(Factor {
            tensor: part.ok_or_else(no_slice)?,
            trained: factor.trained,
            seed: None,
        })
    };
    let vector = |name, factor: &Option<Factor>| factor.as_ref().map(|f| own(name, f)).transpose();
    Ok(TieGroup {
        layers: Some(vec![layer]),
        a: own(FactorName::A, &group.a)?,
        b: own(FactorName::B, &group.b)?,
        core: vector(FactorName::C, &group.core)?,
        u: vector(FactorName::U, &group.u)?,
        v: vector(FactorName::V, &group.v)?,
        ..group.clone()
    })
}

/// Rows `rows` of a factor's axis before the last `axes - 1` ones.
fn rows_of(factor: &Factor, axes: usize, rows: std::ops::Range<usize>) -> Result<Factor> {
    let tensor = &factor.tensor;
    let tensor = match tensor.shape() {
        shape if shape.len() == axes => tensor.slice_first(rows).ok_or_else(no_slice)?,
        [extent, ..] => {
            let mut all = Vec::new();
            for at in 0..*extent {
                let one = tensor.index_first(at).ok_or_else(no_slice)?;
                all.push(one.slice_first(rows.clone()).ok_or_else(no_slice)?);
            }
            stacked(&all)?
        }
        [] => return Err(no_slice()),
    };
    Ok(Factor {
        tensor,
        trained: factor.trained,
        seed: None,
    })
}

/// Tensors of one shape along a new first axis; quantised ones are widened.
pub(super) fn stacked(all: &[Tensor]) -> Result<Tensor> {
    let first = all.first().ok_or_else(no_slice)?;
    let shape = [&[all.len()], first.shape()].concat();
    if first.dtype().is_float() && all.iter().all(|t| t.dtype() == first.dtype()) {
        let data: Vec<&[u8]> = all.iter().map(|t| &t.data()[..]).collect();
        return Tensor::new(first.dtype(), shape, data.concat());
    }
    let mut values = Vec::new();
    for tensor in all {
        values.extend(tensor.to_f32()?);
    }
    Tensor::from_f32(shape, &values)
}

fn no_slice() -> Error {
    Error::new(Code::ShapeDisagrees, "a factor lacks a layer of its group")
}
