//! How many bytes a file has besides its factors.

use std::collections::BTreeMap;

use super::unit::Unit;
use crate::adapter::{Adapter, Extra, Factor, Scaling, Target, TieGroup, split_layer};
use crate::error::Result;
use crate::format::{WriteOptions, encoded_len};
use crate::tensor::Tensor;

/// What an entry of the header has more than that of a tie group of single numbers: digits.
const DIGITS: u64 = 192;
/// Bytes of the header for one extra, without its names and rows.
const EXTRA: u64 = 512;

/// Bytes of what goes along whole, each tensor once.
pub(super) fn extra_bytes(extras: &[Vec<Extra>]) -> u64 {
    let first = extras.iter().filter_map(|same| same.first());
    first.map(|e| e.tensor.byte_len()).sum()
}

/// A little more than the bytes of a file with these ranks that are no tensor's.
///
/// # Errors
/// Those of [`encoded_len`].
pub(super) fn header_bytes(
    units: &[Unit<'_>],
    ranks: &[usize],
    extras: &[Vec<Extra>],
    bits: usize,
) -> Result<u64> {
    let mut alike: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (unit, rank) in units.iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
        let (module, layer) = split_layer(&unit.name);
        let key = (
            module,
            *rank,
            unit.shape,
            unit.kind,
            unit.experts,
            layer.is_some(),
        );
        alike.entry(key).or_default().extend(layer);
    }
    let mut groups = Vec::with_capacity(alike.len());
    for (number, ((module, _, _, kind, experts, layered), layers)) in alike.into_iter().enumerate()
    {
        let entries = layered.then_some(layers.len() * experts.unwrap_or(1));
        let entries = entries.or(experts);
        let factor = |part: usize| -> Result<Factor> {
            let shape = entries.into_iter().chain([1, 1]).collect();
            // Equal tensors are stored once.
            let values = vec![(2 * number + part + 1) as f32; entries.unwrap_or(1)];
            Tensor::from_f32(shape, &values).map(Factor::trained)
        };
        groups.push(TieGroup {
            layers: layered.then_some(layers),
            experts,
            rank: 1,
            in_features: 1,
            scaling: Scaling::one(1),
            a: factor(0)?,
            b: factor(1)?,
            core: None,
            u: None,
            v: None,
            targets: vec![Target {
                module,
                out: 1,
                kind,
            }],
        });
    }
    let count = groups.len() as u64;
    let mut adapter = Adapter {
        groups,
        ..Adapter::default()
    };
    adapter.sort();
    let of_groups = encoded_len(&adapter, &WriteOptions::default())?;
    let of_extras = extras.iter().flatten();
    let of_extras = of_extras.map(|e| EXTRA + 2 * e.name.len() as u64 + 8 * e.rows.len() as u64);
    // Scales of rows.
    let scales = if bits == 8 { 2 * count * DIGITS } else { 0 };
    Ok(of_groups + count * DIGITS + scales + of_extras.sum::<u64>() + 512)
}
