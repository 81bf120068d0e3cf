//! Methods on the elements of ΔW, which is then cut to a rank. One module is dense at a time.

use rayon::prelude::*;

use super::classes::{Class, Member};
use super::elementwise::{Elementwise, Update};
use super::leading::{Leading, leading, singular_squares};
use super::truncated::Truncated;
use crate::adapter::error::ratio;
use crate::adapter::{Adapter, Factor, Scaling, TieGroup};
use crate::convert::coalesce;
use crate::error::{Code, Error, Result};
use crate::fit::{Budget, ranks_within};
use crate::progress::Progress;
use crate::tensor::{Dtype, Tensor, product};

/// Elements of the largest ΔW that is made dense: those of embeddings of the largest vocabularies.
const MOST_ELEMENTS: usize = 1 << 31;
/// Rows of ΔW that one task computes.
const ROWS: usize = 64;

/// The groups of classes of one module each, within a budget.
///
/// # Errors
/// [`Code::ManifestLimit`] above [`MOST_ELEMENTS`]; [`Code::UnsupportedTargetParameters`] for experts; those of [`leading`] and
/// [`ranks_within`]; that of `progress`.
pub(super) fn of_deltas(
    classes: &[Class],
    method: &Elementwise,
    (budget, dtype): (Budget, Dtype),
    rest: &Adapter,
    progress: Progress<'_>,
) -> Result<Truncated> {
    classes.iter().try_for_each(check)?;
    let ranks = match budget {
        Budget::Rank(rank) => vec![rank; classes.len()],
        _ => {
            let squares = classes.iter().map(|class| {
                progress.check()?;
                let first = &class.members[0].group;
                let squares = singular_squares(&dense(class, method)?, first.in_features)?;
                Ok((first, squares))
            });
            ranks_within(&squares.collect::<Result<Vec<_>>>()?, rest, budget)?
        }
    };
    let (mut groups, mut off, mut square) = (Vec::new(), 0.0, 0.0);
    for (class, rank) in classes.iter().zip(ranks) {
        progress.advance(class.modules())?;
        let delta = dense(class, method)?;
        let first = &class.members[0].group;
        let found = leading(&delta, first.in_features, rank)?;
        square += found.square;
        match written(first, found, dtype)? {
            None => off += squared(&delta),
            Some(group) => {
                off += distance(&delta, &group)?;
                groups.push(group);
            }
        }
    }
    let alone = Adapter {
        groups,
        ..Adapter::default()
    };
    Ok(Truncated {
        groups: coalesce(&alone)?.groups,
        bound: None,
        cut: Some(ratio(off.sqrt(), square.sqrt())),
    })
}

fn check(class: &Class) -> Result<()> {
    let group = &class.members[0].group;
    let target = &group.targets[0];
    if target.out.saturating_mul(group.in_features) > MOST_ELEMENTS {
        let message = format!(
            "its update has {} × {} elements, the limit of methods on ΔW is {MOST_ELEMENTS}",
            target.out, group.in_features
        );
        let module = group.module_path(target, 0);
        return Err(Error::new(Code::ManifestLimit, message)
            .tensor(module)
            .hint("use `cat` or `svd`, which work on factors"));
    }
    if !target.kind.is_parameter() {
        return Ok(());
    }
    let message = "an update of a parameter, of experts above all, is not cut to a rank";
    Err(Error::new(Code::UnsupportedTargetParameters, message)
        .tensor(&target.module)
        .hint("use `cat`, or a method on A and B"))
}

/// ΔW of the class, out × in, row by row: each adapter's with its scaling inside, then by the method.
fn dense(class: &Class, method: &Elementwise) -> Result<Vec<f32>> {
    let first = &class.members[0].group;
    let n = first.in_features;
    let update = |member: &Member| -> Result<Update> {
        let low = member.group.low_rank(0, 0)?;
        let s = low.scale as f32;
        let mut values = vec![0.0; low.out * n];
        let bands = values.par_chunks_mut(ROWS * n);
        bands
            .zip(low.left.par_chunks(ROWS * low.rank))
            .for_each(|(to, left)| {
                to.copy_from_slice(&product(left, &low.right, low.rank, n));
                to.iter_mut().for_each(|x| *x *= s);
            });
        Ok(Update {
            input: member.input,
            weight: member.weight as f32,
            values,
        })
    };
    let updates = class.members.iter().map(update).collect::<Result<_>>()?;
    let name = first.module_path(&first.targets[0], 0);
    method.apply(&format!("{name}.weight"), n, updates)
}

/// Factors as a group; `None` at rank 0.
fn written(group: &TieGroup, found: Leading, dtype: Dtype) -> Result<Option<TieGroup>> {
    let (rank, n, out) = (found.rank, group.in_features, group.total_out());
    if rank == 0 {
        return Ok(None);
    }
    let factor = |shape, values: &[f32]| Tensor::stored(dtype, shape, values).map(Factor::trained);
    Ok(Some(TieGroup {
        rank,
        scaling: Scaling::one(rank),
        a: factor(vec![rank, n], &found.a)?,
        b: factor(vec![out, rank], &found.b)?,
        core: None,
        u: None,
        v: None,
        ..group.clone()
    }))
}

fn squared(values: &[f32]) -> f64 {
    let of = |band: &[f32]| band.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let bands: Vec<f64> = values.par_chunks(1 << 16).map(of).collect();
    bands.iter().sum()
}

/// ‖ΔW − B·A‖²_F of the factors as they are stored.
fn distance(delta: &[f32], group: &TieGroup) -> Result<f64> {
    let low = group.low_rank(0, 0)?;
    let (n, r) = (low.in_features, low.rank);
    let of_row = |(row, left): (&[f32], &[f32])| {
        let mut off: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        for (k, b) in left.iter().enumerate() {
            for (off, a) in off.iter_mut().zip(&low.right[k * n..(k + 1) * n]) {
                *off -= f64::from(*b) * f64::from(*a);
            }
        }
        off.iter().map(|x| x * x).sum::<f64>()
    };
    let rows = delta
        .par_chunks(n.max(1))
        .zip(low.left.par_chunks(r.max(1)));
    let rows: Vec<f64> = rows.map(of_row).collect();
    Ok(rows.iter().sum())
}
