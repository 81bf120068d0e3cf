//! The layers of a module as one tie group.

use std::collections::BTreeMap;

use crate::adapter::{Adapter, Factor, FactorName, ModuleKind, Scaling, TieGroup};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// What layers of one module have in common that can be put into one tie group.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    module: String,
    experts: Option<usize>,
    rank: usize,
    in_features: usize,
    out: usize,
    kind: ModuleKind,
    scaling: Scaling,
    factors: Vec<FactorKey>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct FactorKey {
    name: FactorName,
    dtype: Dtype,
    shape: Vec<usize>,
    trained: bool,
}

impl Key {
    /// `None` for a group of several targets or layers, or of none.
    fn of(group: &TieGroup) -> Option<Self> {
        let ([target], Some([_])) = (&group.targets[..], group.layers.as_deref()) else {
            return None;
        };
        let factors = group.factors().map(|(name, f)| FactorKey {
            name,
            dtype: f.tensor.dtype(),
            shape: f.tensor.shape().to_vec(),
            trained: f.trained,
        });
        Some(Self {
            module: target.module.clone(),
            experts: group.experts,
            rank: group.rank,
            in_features: group.in_features,
            out: target.out,
            kind: target.kind,
            scaling: group.scaling,
            factors: factors.collect(),
        })
    }
}

/// Puts the layers of one module into one tie group: vectors are stacked; A and B are kept once
/// where all layers have the same bytes, else stacked too.
///
/// Nothing is rounded, so every ΔW keeps its bits. Only groups of one target and one layer, as an
/// import makes them, are put together; others stay as they are.
///
/// # Errors
/// [`crate::Code::ShapeOverflow`] where a stack's size would overflow.
pub fn coalesce(adapter: &Adapter) -> Result<Adapter> {
    let mut modules: BTreeMap<Key, Vec<&TieGroup>> = BTreeMap::new();
    let mut groups = Vec::new();
    for group in &adapter.groups {
        match Key::of(group) {
            Some(key) => modules.entry(key).or_default().push(group),
            None => groups.push(shared_by_experts(group.clone())?),
        }
    }
    for mut layers in modules.into_values() {
        layers.sort_by(|a, b| a.layers.cmp(&b.layers));
        groups.push(shared_by_experts(stack(&layers)?)?);
    }
    let mut out = Adapter {
        groups,
        ..adapter.clone()
    };
    out.sort();
    Ok(out)
}

/// The group of one layer untied as well, as those of several are: the method of the whole is LoRA.
///
/// # Errors
/// [`crate::Code::ShapeOverflow`].
pub(crate) fn with_layer_axis(mut group: TieGroup) -> Result<TieGroup> {
    if group.layers.is_some() && group.is_tied() && group.instances() == 1 {
        for (_, factor) in group.factors_mut() {
            let (old, mut shape) = (&factor.tensor, factor.tensor.shape().to_vec());
            shape.insert(0, 1);
            factor.tensor = Tensor::new(old.dtype(), shape, old.data().to_vec())?;
        }
    }
    Ok(group)
}

/// One group of some groups of one layer.
fn stack(groups: &[&TieGroup]) -> Result<TieGroup> {
    let first = groups[0];
    if groups.len() == 1 {
        return Ok(first.clone());
    }
    let all = |pick: fn(&TieGroup) -> Option<&Factor>| -> Vec<&Factor> {
        groups.iter().filter_map(|g| pick(g)).collect()
    };
    let layers = groups
        .iter()
        .flat_map(|g| g.layers.iter().flatten().copied());
    Ok(TieGroup {
        layers: Some(layers.collect()),
        a: matrix(&all(|g| Some(&g.a)), first.experts)?,
        b: matrix(&all(|g| Some(&g.b)), first.experts)?,
        core: per_layer(&all(|g| g.core.as_ref()))?,
        u: per_layer(&all(|g| g.u.as_ref()))?,
        v: per_layer(&all(|g| g.v.as_ref()))?,
        ..first.clone()
    })
}

/// The same group, with an A or a B that all experts of each layer have, or all instances, kept once.
fn shared_by_experts(group: TieGroup) -> Result<TieGroup> {
    let Some(experts) = group.experts.filter(|e| *e > 1) else {
        return Ok(group);
    };
    let instances = group.instances();
    let once = |factor: Factor| -> Result<Factor> {
        let tensor = &factor.tensor;
        let [entries, own @ ..] = tensor.shape() else {
            return Ok(factor);
        };
        if own.len() != 2 || *entries != instances || tensor.data().is_empty() {
            return Ok(factor);
        }
        let size = tensor.data().len() / instances;
        let all: Vec<&[u8]> = tensor.data().chunks_exact(size).collect();
        let of_layer = |layer: &[&[u8]]| layer.iter().all(|own| *own == layer[0]);
        let (kept, shape) = if of_layer(&all) {
            (all[0].to_vec(), own.to_vec())
        } else if all.chunks_exact(experts).all(of_layer) {
            let first: Vec<&[u8]> = all.iter().copied().step_by(experts).collect();
            let shape = [&[first.len()], own].concat();
            (first.concat(), shape)
        } else {
            return Ok(factor);
        };
        Ok(Factor {
            tensor: Tensor::new(tensor.dtype(), shape, kept)?,
            trained: factor.trained,
            seed: None,
        })
    };
    Ok(TieGroup {
        a: once(group.a.clone())?,
        b: once(group.b.clone())?,
        ..group
    })
}

/// Factors whose first axis, of extent one, is the layer's.
fn per_layer(factors: &[&Factor]) -> Result<Option<Factor>> {
    let Some(first) = factors.first() else {
        return Ok(None);
    };
    let own = first.tensor.shape().get(1..).unwrap_or_default();
    Ok(Some(Factor {
        tensor: concat(factors, own)?,
        ..(*first).clone()
    }))
}

/// Factors without a layer axis: one where all are the same. Those of experts have an axis that is
/// continued.
fn matrix(factors: &[&Factor], experts: Option<usize>) -> Result<Factor> {
    let first = factors[0];
    if let (Some(_), [_, own @ ..]) = (experts, first.tensor.shape())
        && own.len() == 2
    {
        return Ok(Factor {
            tensor: concat(factors, own)?,
            trained: first.trained,
            seed: None,
        });
    }
    if factors.iter().all(|f| f.tensor.same_bytes(&first.tensor)) {
        return Ok(first.clone());
    }
    Ok(Factor {
        tensor: concat(factors, first.tensor.shape())?,
        trained: first.trained,
        seed: None,
    })
}

/// The tensors one after another; `own` is the shape of an instance's.
fn concat(factors: &[&Factor], own: &[usize]) -> Result<Tensor> {
    let first = &factors[0].tensor;
    let elements: usize = own.iter().product();
    let entries = factors.iter().map(|f| f.tensor.len() / elements.max(1));
    let mut shape = vec![entries.sum()];
    shape.extend_from_slice(own);
    let mut data = Vec::with_capacity(first.data().len() * factors.len());
    for factor in factors {
        data.extend_from_slice(factor.tensor.data());
    }
    Tensor::new(first.dtype(), shape, data)
}
