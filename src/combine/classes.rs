//! What of several adapters is about the same modules.

use std::collections::{BTreeMap, BTreeSet};

use super::input::CombineInput;
use super::split::{by_module, by_target};
use crate::adapter::{Adapter, Factor, FactorName, Target, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// What one adapter has of a class.
#[derive(Clone)]
pub(super) struct Member {
    /// Which adapter.
    pub(super) input: usize,
    /// Its weight, without the group's own scaling.
    pub(super) weight: f64,
    pub(super) group: TieGroup,
}

impl Member {
    /// The weight with the scaling.
    pub(super) fn scale(&self) -> f64 {
        self.weight * self.group.scaling.factor(self.group.rank)
    }
}

/// Groups of several adapters with the same targets in the same layers: at most one of each adapter.
pub(super) struct Class {
    pub(super) members: Vec<Member>,
}

impl Class {
    /// Modules of all adapters in it.
    pub(super) fn modules(&self) -> u64 {
        let of = |m: &Member| m.group.instances() * m.group.targets.len();
        self.members.iter().map(of).sum::<usize>() as u64
    }
}

/// A group, and whose it is.
struct Piece {
    input: usize,
    group: TieGroup,
}

/// How far adapters are taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Apart {
    /// Groups that are tied over layers stay, where all adapters that have their modules tie them alike.
    WhereNeeded,
    /// As `WhereNeeded`, and only groups without u, v and core over the same layers stay.
    Vectors,
    /// One module at a time.
    Modules,
}

/// All groups of all adapters in classes, in the order of their modules.
///
/// # Errors
/// [`Code::AdaptersConflict`] naming a module that has one shape or layout in one adapter, and another in another.
pub(super) fn classes(inputs: &[CombineInput], apart: Apart) -> Result<Vec<Class>> {
    let mut pieces = Vec::new();
    for (input, of) in inputs.iter().enumerate() {
        for group in &of.adapter.groups {
            let group = widened(group)?;
            let groups = match stays(&group, apart) {
                true => vec![group],
                false => by_module(&group)?,
            };
            pieces.extend(groups.into_iter().map(|group| Piece { input, group }));
        }
    }
    loop {
        let split = torn(&pieces, apart);
        if split.is_empty() {
            break;
        }
        let mut next = Vec::with_capacity(pieces.len());
        for (at, piece) in pieces.into_iter().enumerate() {
            let groups = match (split.contains(&at), piece.group.targets.len()) {
                (false, _) => vec![piece.group],
                (true, 1) => by_module(&piece.group)?,
                (true, _) => by_target(&piece.group)?,
            };
            let input = piece.input;
            next.extend(groups.into_iter().map(|group| Piece { input, group }));
        }
        pieces = next;
    }
    let mut found: BTreeMap<Key, Vec<Member>> = BTreeMap::new();
    let keys = keys(&pieces, apart);
    for (piece, key) in pieces.into_iter().zip(keys) {
        found.entry(key).or_default().push(Member {
            input: piece.input,
            weight: inputs[piece.input].weight,
            group: piece.group,
        });
    }
    let aligned = |members: Vec<Member>| {
        check_alike(inputs, &members)?;
        aligned(members)
    };
    found.into_values().map(aligned).collect()
}

fn stays(group: &TieGroup, apart: Apart) -> bool {
    let vectors = group.factors().count() > 2;
    match apart {
        Apart::WhereNeeded => is_tied_over_layers(group),
        Apart::Vectors => is_tied_over_layers(group) && !vectors,
        Apart::Modules => false,
    }
}

fn is_tied_over_layers(group: &TieGroup) -> bool {
    group.is_tied() && group.experts.is_none() && group.layers.as_ref().is_some_and(|l| l.len() > 1)
}

/// What groups of one class have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Tied: the targets, the width, and the layers where they have to be the same.
    Tied(Vec<Target>, usize, Option<Vec<u32>>),
    /// The weight of one module.
    Module(String),
}

fn keys(pieces: &[Piece], apart: Apart) -> Vec<Key> {
    let mut count: BTreeMap<(usize, &[Target], usize), usize> = BTreeMap::new();
    for p in pieces.iter().filter(|p| is_tied_over_layers(&p.group)) {
        let of = (p.input, &p.group.targets[..], p.group.in_features);
        *count.entry(of).or_default() += 1;
    }
    let several: BTreeSet<(&[Target], usize)> = count
        .iter()
        .filter(|(_, n)| **n > 1)
        .map(|((_, targets, n), _)| (*targets, *n))
        .collect();
    let key = |p: &Piece| {
        let (targets, n) = (&p.group.targets, p.group.in_features);
        match is_tied_over_layers(&p.group) {
            false => Key::Module(weights(&p.group).remove(0)),
            true => {
                let layers = apart == Apart::Vectors || several.contains(&(&targets[..], n));
                let layers = layers.then(|| p.group.layers.clone().unwrap_or_default());
                Key::Tied(targets.clone(), n, layers)
            }
        }
    };
    pieces.iter().map(key).collect()
}

/// The names of the weights that a group is about.
fn weights(group: &TieGroup) -> Vec<String> {
    let alone = Adapter {
        groups: vec![group.clone()],
        ..Adapter::default()
    };
    alone.base_tensors()
}

/// The tied groups of which another adapter has a module otherwise.
fn torn(pieces: &[Piece], apart: Apart) -> BTreeSet<usize> {
    let keys = keys(pieces, apart);
    let mut whose: BTreeMap<String, &Key> = BTreeMap::new();
    let mut bad: BTreeSet<&Key> = BTreeSet::new();
    for (piece, key) in pieces.iter().zip(&keys) {
        for weight in weights(&piece.group) {
            match whose.get(&weight) {
                Some(other) if *other != key => bad.extend([*other, key]),
                Some(_) => {}
                None => {
                    whose.insert(weight, key);
                }
            }
        }
    }
    let is_bad = |at: &usize| matches!(keys[*at], Key::Tied(..)) && bad.contains(&keys[*at]);
    (0..pieces.len()).filter(is_bad).collect()
}

/// A group with quantised factors in F32, which holds them exactly.
fn widened(group: &TieGroup) -> Result<TieGroup> {
    let mut group = group.clone();
    for (_, factor) in group.factors_mut() {
        let tensor = &factor.tensor;
        if !tensor.dtype().is_float() {
            factor.tensor = Tensor::from_f32(tensor.shape().to_vec(), &tensor.to_f32()?)?;
        }
    }
    Ok(group)
}

fn check_alike(inputs: &[CombineInput], members: &[Member]) -> Result<()> {
    let Some((first, others)) = members.split_first() else {
        return Ok(());
    };
    let shape = |m: &Member| {
        let targets = m.group.targets.iter().map(|t| (t.out, t.kind));
        let targets: Vec<_> = targets.collect();
        (targets, m.group.in_features, m.group.experts)
    };
    match others.iter().find(|m| shape(m) != shape(first)) {
        None => Ok(()),
        Some(other) => {
            let target = &first.group.targets[0];
            let text = |m: &Member| {
                let (targets, n, experts) = shape(m);
                let (out, kind) = targets[0];
                let of = experts.map_or_else(String::new, |e| format!(", {e} experts"));
                format!("{out} × {n} ({kind:?}{of}) in `{}`", inputs[m.input].label)
            };
            let message = format!("its update is {} and {}", text(first), text(other));
            Err(Error::new(Code::AdaptersConflict, message)
                .tensor(first.group.module_path(target, 0))
                .hint(
                    "the adapters are of different bases, or say otherwise how one base is stored",
                ))
        }
    }
}

/// Members over the same layers: one that lacks some gets them, with u (or its core) zero there.
fn aligned(mut members: Vec<Member>) -> Result<Class> {
    let layers = |m: &Member| m.group.layers.clone();
    let first = members.first().and_then(layers);
    if members.len() > 1
        && is_tied_over_layers(&members[0].group)
        && members.iter().any(|m| layers(m) != first)
    {
        let all: BTreeSet<u32> = members.iter().filter_map(layers).flatten().collect();
        let all: Vec<u32> = all.into_iter().collect();
        let before: Vec<TieGroup> = members.iter().map(|m| m.group.clone()).collect();
        for member in &mut members {
            member.group = over(&member.group, &all, &before)?;
        }
    }
    Ok(Class { members })
}

/// A tied group over more layers, with an update of zero in those that it lacked, and there the v of another group
/// that has them.
fn over(group: &TieGroup, all: &[u32], others: &[TieGroup]) -> Result<TieGroup> {
    let (r, m) = (group.rank, group.total_out());
    let own: Vec<u32> = group.layers.clone().unwrap_or_default();
    let place = |of: &[u32], layer: u32| of.binary_search(&layer).ok();
    let spread = |factor: &Factor, width: usize| -> Result<Vec<f32>> {
        let values = factor.tensor.to_f32()?;
        let mut out = vec![0.0; all.len() * width];
        for (to, layer) in out.chunks_exact_mut(width).zip(all) {
            if let Some(at) = place(&own, *layer) {
                to.copy_from_slice(&values[at * width..(at + 1) * width]);
            }
        }
        Ok(out)
    };
    let factor = |old: Option<&Factor>, shape: Vec<usize>, values: &[f32]| -> Result<Factor> {
        Ok(Factor {
            tensor: Tensor::from_f32(shape, values)?,
            trained: old.is_none_or(|f| f.trained),
            seed: None,
        })
    };
    let ones = factor(None, vec![own.len(), r], &vec![1.0; own.len() * r])?;
    let mut out = group.clone();
    out.layers = Some(all.to_vec());
    match &group.core {
        Some(core) => {
            out.core = Some(factor(
                Some(core),
                vec![all.len(), r, r],
                &spread(core, r * r)?,
            )?);
        }
        None => {
            let u = group.u.as_ref().unwrap_or(&ones);
            out.u = Some(factor(Some(u), vec![all.len(), r], &spread(u, r)?)?);
        }
    }
    if let Some(v) = &group.v {
        let mut values = spread(v, m)?;
        for (to, layer) in values.chunks_exact_mut(m).zip(all) {
            if place(&own, *layer).is_none() {
                to.copy_from_slice(&foreign(others, *layer, m)?);
            }
        }
        out.v = Some(factor(Some(v), vec![all.len(), m], &values)?);
    }
    Ok(out)
}

/// The v that one of some groups has in a layer; ones where none has.
fn foreign(groups: &[TieGroup], layer: u32, m: usize) -> Result<Vec<f32>> {
    for group in groups {
        let at = group
            .layers
            .as_ref()
            .and_then(|l| l.binary_search(&layer).ok());
        if let (Some(at), Some(v)) = (at, &group.v) {
            let row = v.tensor.index_first(at);
            return row.map_or_else(|| Ok(vec![1.0; m]), |row| row.to_f32());
        }
    }
    Ok(vec![1.0; m])
}

/// The factor of a name that a group has.
pub(super) fn factor_of(group: &TieGroup, name: FactorName) -> Option<&Factor> {
    match name {
        FactorName::A => Some(&group.a),
        FactorName::B => Some(&group.b),
        FactorName::C => group.core.as_ref(),
        FactorName::U => group.u.as_ref(),
        FactorName::V => group.v.as_ref(),
    }
}
