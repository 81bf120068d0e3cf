//! Ranks of tie groups that share a number of bytes.

use rayon::prelude::*;

use super::modules::ModuleSet;
use super::select::Selection;
use super::solver::problem::singular_squares;
use super::solver::untied::NUMBER_BYTES;
use crate::adapter::{Adapter, Factor, Scaling, TieGroup};
use crate::error::{Code, Error, Result};
use crate::format::{WriteOptions, encoded_len};
use crate::tensor::Tensor;

/// Ranks with which the file of a fit has at most so many bytes, packing aside.
///
/// Every set of modules gets rank 1. Each further rank goes to the one whose error it lowers most for its
/// bytes, as the largest singular triplets tell: they are seldom far from the best fit, and cost no
/// fit to know.
///
/// # Errors
/// [`Code::Usage`] where the bytes do not hold rank 1 of all sets.
pub(super) fn ranks_within(selection: &Selection, bytes: u64) -> Result<Vec<usize>> {
    let spectra: Vec<Vec<f64>> = selection.sets.iter().map(spectrum).collect::<Result<_>>()?;
    let smallest: Vec<usize> = spectra.iter().map(|s| s.len().min(1)).collect();
    let least = file_bytes(selection, &smallest)?;
    if least > bytes {
        let message = format!("{bytes} bytes do not hold all tie groups at rank 1");
        return Err(Error::new(Code::Usage, message).hint(format!("at least {least}")));
    }
    let mut left = bytes - least;
    loop {
        let ranks = spend(selection, &spectra, left);
        // The header grows with the digits of the sizes.
        match file_bytes(selection, &ranks)?.checked_sub(bytes) {
            None | Some(0) => return Ok(ranks),
            Some(over) => left = left.saturating_sub(over),
        }
    }
}

/// Squared singular values of all layers of a set, descending; none where all updates are zero.
fn spectrum(set: &ModuleSet) -> Result<Vec<f64>> {
    let updates = set.updates()?;
    let layers: Vec<Vec<f64>> = updates
        .par_iter()
        .map(|layer| singular_squares(layer))
        .collect::<Result<_>>()?;
    let mut squares: Vec<f64> = layers.into_iter().flatten().filter(|s| *s > 0.0).collect();
    squares.sort_by(|a, b| b.total_cmp(a));
    Ok(squares)
}

/// Rank 1 for every set, and what `left` bytes buy beyond it.
fn spend(selection: &Selection, spectra: &[Vec<f64>], mut left: u64) -> Vec<usize> {
    let cost = |f: usize| NUMBER_BYTES * selection.sets[f].numbers() as u64;
    let of_family = |(f, s): (usize, &Vec<f64>)| -> Vec<(f64, usize)> {
        let gain = |square: &f64| (square / cost(f) as f64, f);
        s.iter().skip(1).map(gain).collect()
    };
    let mut terms: Vec<(f64, usize)> = spectra.iter().enumerate().flat_map(of_family).collect();
    // Stable, so that equal gains keep the order of the sets.
    terms.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut ranks: Vec<usize> = spectra.iter().map(|s| s.len().min(1)).collect();
    for (_, f) in terms {
        if let Some(rest) = left.checked_sub(cost(f)) {
            (left, ranks[f]) = (rest, ranks[f] + 1);
        }
    }
    ranks
}

/// Bytes of the file with tie groups of these ranks; a set of rank 0 stays as it is.
fn file_bytes(selection: &Selection, ranks: &[usize]) -> Result<u64> {
    let mut groups = selection.rest.groups.clone();
    for (number, (set, rank)) in selection.sets.iter().zip(ranks).enumerate() {
        match rank {
            0 => groups.extend(set.sources.iter().cloned()),
            _ => groups.push(set_stand_in(set, *rank, number)?),
        }
    }
    file_len(&selection.rest, groups)
}

/// Bytes of the file of an adapter with these groups in place of its own.
pub(super) fn file_len(adapter: &Adapter, groups: Vec<TieGroup>) -> Result<u64> {
    let mut adapter = Adapter {
        groups,
        ..adapter.clone()
    };
    adapter.sort();
    encoded_len(&adapter, &WriteOptions::default())
}

/// A tensor of a shape that no other number gives: equal ones are stored once.
pub(super) fn stand_in(number: usize, shape: Vec<usize>) -> Result<Tensor> {
    let values = vec![(number + 1) as f32; shape.iter().product()];
    Tensor::from_f32(shape, &values)
}

/// A tie group of a set's shapes whose tensors are no other set's: equal ones are stored once.
fn set_stand_in(set: &ModuleSet, rank: usize, number: usize) -> Result<TieGroup> {
    let (layers, n, out) = (set.layers.len(), set.in_features(), set.out());
    let factor =
        |part: usize, shape: Vec<usize>| stand_in(3 * number + part, shape).map(Factor::trained);
    Ok(TieGroup {
        core: None,
        layers: Some(set.layers.clone()),
        experts: None,
        rank,
        in_features: n,
        scaling: Scaling::one(rank),
        a: factor(0, vec![rank, n])?,
        b: factor(1, vec![out, rank])?,
        u: Some(factor(2, vec![layers, rank])?),
        v: None,
        targets: set.targets.clone(),
    })
}
