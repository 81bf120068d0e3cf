//! Tensors that an adapter has whole, and the base as rows of a larger one: the bias of a joint projection's query.

use super::fit::{both_replace, misfit, mixed, weighted};
use super::plan::{Addition, RowReplacement, TensorPlan};
use super::region::Span;
use super::request::{MergeInput, PlanOptions};
use crate::adapter::{Extra, ExtraRole};
use crate::base::cut::{Chunk, Cut, Flip, Found, Piece};
use crate::error::Result;
use crate::safetensors::{Checkpoint, Location};

/// The rows of one tensor that an extra is, where it is that; a method weighs whole tensors alone.
pub(super) fn rows_of(
    extra: &Extra,
    found: Option<&Found<Location>>,
    options: &PlanOptions,
) -> Option<Piece<Location>> {
    let listed = extra.role == ExtraRole::Rows || options.method.is_some();
    match found?.pieces[..] {
        [piece] if piece.of == Cut::WHOLE && !listed => rows(piece.at).map(|_| piece),
        _ => None,
    }
}

fn rows(at: Cut) -> Option<Chunk> {
    let plain = at.index.is_none() && at.flip == Flip::No;
    at.chunk.filter(|chunk| chunk.axis == 0 && plain)
}

/// Adds to, or replaces, the rows `at` of a tensor by an adapter's extra of that index.
///
/// # Errors
/// [`Code::BaseShape`] where extents do not fit; [`Code::AdaptersConflict`] where other adapters change these rows,
/// too.
pub(super) fn add(
    base: &Checkpoint,
    tensor: &mut TensorPlan,
    inputs: &[MergeInput],
    (index, e): (usize, usize),
    at: Cut,
    options: &PlanOptions,
) -> Result<()> {
    let input = &inputs[index];
    let extra = &input.adapter.extras[e];
    let needs = extra.tensor.shape();
    let chunk = rows(at).filter(|_| at.extents(&tensor.shape).as_deref() == Some(needs));
    let first = tensor.shape.first().copied().unwrap_or_default();
    let Some(part) = chunk.and_then(|chunk| Span::chunk(first, chunk)) else {
        return Err(misfit(base, tensor, needs));
    };
    if let ExtraRole::AddBias(scaling, rank) = extra.role {
        let low_rank = |a: &Addition| matches!(a, Addition::Module { .. } | Addition::Part { .. });
        if tensor.additions.iter().any(low_rank) {
            return Err(mixed(tensor));
        }
        let scale = weighted(input, scaling.factor(rank), options)?;
        tensor.additions.push(Addition::Bias {
            input: index,
            extra: e,
            part: Some(part),
            scale,
        });
        return Ok(());
    }
    let meets = |r: &&RowReplacement| r.part.is_none_or(|other| !other.is_apart(&part));
    let rows = tensor.row_replacements.iter().find(meets);
    let other = rows
        .map(|r| r.input)
        .or_else(|| tensor.replace.map(|(input, _)| input));
    if let Some(other) = other {
        return Err(both_replace(&inputs[other], input, &extra.name));
    }
    tensor.row_replacements.push(RowReplacement {
        input: index,
        extra: e,
        part: Some(part),
    });
    Ok(())
}
