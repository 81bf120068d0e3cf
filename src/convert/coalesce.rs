use std::collections::BTreeMap;

use crate::adapter::{Adapter, Factor, Part, TieGroup};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// Puts the layers of one module into one tie group: vectors are stacked; A and B are kept once
/// where all layers have the same bytes, else stacked too.
///
/// Nothing is rounded, so every ΔW keeps its bits. Only groups of one target and one layer, as an
/// import makes them, are put together; others stay as they are.
///
/// # Errors
/// [`crate::Code::ShapeOverflow`] where a stack's size would overflow.
pub fn coalesce(adapter: &Adapter) -> Result<Adapter> {
    type Key = (
        String,
        usize,
        usize,
        usize,
        (u64, bool),
        Vec<(Part, Dtype, Vec<usize>, bool)>,
    );
    let mut families: BTreeMap<Key, Vec<&TieGroup>> = BTreeMap::new();
    let mut groups = Vec::new();
    for group in &adapter.groups {
        let single =
            group.targets.len() == 1 && group.layers.as_ref().is_some_and(|l| l.len() == 1);
        if !single {
            groups.push(group.clone());
            continue;
        }
        let target = &group.targets[0];
        let factors = group
            .factors()
            .map(|(p, f)| (p, f.tensor.dtype(), f.tensor.shape().to_vec(), f.trained))
            .collect();
        let rs = group.scaling.rule == crate::adapter::ScalingRule::AlphaOverSqrtRank;
        let scaling = (group.scaling.alpha.to_bits(), rs);
        let kind = target.kind as usize;
        let key = (
            target.module.clone(),
            group.rank,
            group.in_features,
            target.out * 4 + kind,
            scaling,
            factors,
        );
        families.entry(key).or_default().push(group);
    }
    for mut family in families.into_values() {
        family.sort_by(|a, b| a.layers.cmp(&b.layers));
        groups.push(stack_family(&family)?);
    }
    let mut out = Adapter {
        groups,
        ..adapter.clone()
    };
    out.sort();
    Ok(out)
}

fn stack_family(family: &[&TieGroup]) -> Result<TieGroup> {
    let first = family[0];
    if family.len() == 1 {
        return Ok(first.clone());
    }
    let parts = |pick: fn(&TieGroup) -> Option<&Factor>| -> Vec<&Factor> {
        family.iter().filter_map(|g| pick(g)).collect()
    };
    let vector = |factors: Vec<&Factor>| -> Result<Option<Factor>> {
        factors
            .first()
            .map(|first| {
                Ok(Factor {
                    tensor: concat_layers(&factors, false)?,
                    ..(*first).clone()
                })
            })
            .transpose()
    };
    Ok(TieGroup {
        layers: Some(
            family
                .iter()
                .flat_map(|g| g.layers.iter().flatten().copied())
                .collect(),
        ),
        a: matrix(&parts(|g| Some(&g.a)))?,
        b: matrix(&parts(|g| Some(&g.b)))?,
        core: vector(parts(|g| g.core.as_ref()))?,
        u: vector(parts(|g| g.u.as_ref()))?,
        v: vector(parts(|g| g.v.as_ref()))?,
        ..first.clone()
    })
}

fn matrix(factors: &[&Factor]) -> Result<Factor> {
    let first = factors[0];
    if factors.iter().all(|f| f.tensor.same_bytes(&first.tensor)) {
        return Ok(first.clone());
    }
    Ok(Factor {
        tensor: concat_layers(factors, true)?,
        trained: first.trained,
        seed: None,
    })
}

/// The tensors one after another; `new_axis` puts the layer axis before theirs, else their first
/// axis, of extent one, becomes it.
fn concat_layers(factors: &[&Factor], new_axis: bool) -> Result<Tensor> {
    let first = &factors[0].tensor;
    let own = if new_axis {
        first.shape()
    } else {
        &first.shape()[1..]
    };
    let mut shape = vec![factors.len()];
    shape.extend_from_slice(own);
    let mut data = Vec::with_capacity(first.data().len() * factors.len());
    for factor in factors {
        data.extend_from_slice(factor.tensor.data());
    }
    Tensor::new(first.dtype(), shape, data)
}
