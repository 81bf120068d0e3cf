//! What has no low rank: whether it changed, and how it goes along.

use super::delta::Numbers;
use super::pairs::{Pair, Role};
use crate::adapter::{Extra, ExtraRole, ModuleKind};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, shape_text};

/// Elements that are compared at a time.
const BLOCK: usize = 1 << 18;
/// One row in so many may have changed of an embedding that goes along by its rows.
const FEW: usize = 4;

/// How two tensors differ.
enum Change {
    None,
    /// In these rows, and in no others.
    Rows(Vec<u32>),
    All,
}

/// What goes along of a tensor; nothing where both checkpoints have the same. It has all names of `names`.
///
/// # Errors
/// Those of reading; [`Code::BaseShape`] for a shape that the base has not, and no adapter can give it;
/// [`Code::NonFinite`].
pub(super) fn extras(pair: &Pair<'_>, names: &[&str]) -> Result<Vec<Extra>> {
    let change = match &pair.base {
        Some(base) if pair.shape == pair.base_shape => change(pair, base)?,
        Some(_) => resized(pair)?,
        None => Change::All,
    };
    let alone = names.len() == 1;
    let is_table = pair.role == Role::Embedding(ModuleKind::Embedding);
    let (role, rows) = match (change, pair.role) {
        (Change::None, _) => return Ok(Vec::new()),
        (Change::Rows(rows), _) if alone && is_table => (ExtraRole::Rows, rows),
        (_, Role::Bias) => (ExtraRole::Bias, Vec::new()),
        _ => (ExtraRole::Replace, Vec::new()),
    };
    let whole = tensor(&pair.tuned)?;
    let values = match rows.is_empty() {
        true => whole,
        false => of_rows(&whole, &rows)?,
    };
    let extra = |name: &&str| Extra {
        rows: rows.clone(),
        ..Extra::new(*name, role, values.clone())
    };
    Ok(names.iter().map(extra).collect())
}

/// Whether anything of a tensor changed.
///
/// # Errors
/// Those of reading.
pub(super) fn is_changed(pair: &Pair<'_>) -> Result<bool> {
    match &pair.base {
        Some(base) if pair.shape == pair.base_shape => {
            Ok(!matches!(change(pair, base)?, Change::None))
        }
        _ => Ok(true),
    }
}

/// Only the number of entries of an embedding, or of what goes with one, may be another.
fn resized(pair: &Pair<'_>) -> Result<Change> {
    let fits = match (&pair.shape[..], &pair.base_shape[..]) {
        ([_, own], [_, of_base]) => {
            own == of_base && matches!(pair.role, Role::Embedding(_)) || !pair.tied.is_empty()
        }
        ([_], [_]) => !pair.tied.is_empty(),
        _ => false,
    };
    match fits {
        true => Ok(Change::All),
        false => {
            let (own, of_base) = (shape_text(&pair.shape), shape_text(&pair.base_shape));
            let message = format!("the tuned model has it as {own}, the base as {of_base}");
            Err(Error::new(Code::BaseShape, message).tensor(&pair.name))
        }
    }
}

fn change(pair: &Pair<'_>, base: &Numbers<'_>) -> Result<Change> {
    if !base.are_floats() || !pair.tuned.are_floats() {
        return match base.same_bytes(&pair.tuned)? {
            true => Ok(Change::None),
            false => Err(Error::new(
                Code::BaseDtype,
                "differs, and is no tensor of floating-point numbers in both",
            )
            .tensor(&pair.name)),
        };
    }
    let count: usize = pair.shape.iter().product();
    let cols = match pair.shape[..] {
        [_, cols] => cols.max(1),
        _ => count.max(1),
    };
    let step = (BLOCK / cols).max(1) * cols;
    let (mut changed, mut rows) = (0usize, Vec::new());
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for start in (0..count).step_by(step) {
        let range = start..(start + step).min(count);
        one.resize(range.len(), 0.0);
        other.resize(range.len(), 0.0);
        base.fill(range.clone(), &mut one)?;
        pair.tuned.fill(range, &mut other)?;
        if let Some(at) = other.iter().position(|x| !x.is_finite()) {
            let message = format!("element {} of the tuned model is not finite", start + at);
            return Err(Error::new(Code::NonFinite, message).tensor(&pair.name));
        }
        for (row, (x, y)) in one.chunks(cols).zip(other.chunks(cols)).enumerate() {
            if x != y {
                changed += 1;
                rows.push((start / cols + row) as u32);
            }
        }
    }
    Ok(match changed {
        0 => Change::None,
        n if n * FEW <= count / cols => Change::Rows(rows),
        _ => Change::All,
    })
}

/// The tensor as it is stored, or as its library has it.
fn tensor(numbers: &Numbers<'_>) -> Result<Tensor> {
    let Some(weight) = numbers.weight() else {
        let (file, info) = numbers.checkpoint.at(numbers.place);
        return file.mapped(info);
    };
    let mut bytes = vec![0; weight.elements() * numbers.dtype().bits() / 8];
    weight.fill(0..weight.elements(), numbers.dtype(), &mut bytes)?;
    Tensor::new(numbers.dtype(), weight.shape.clone(), bytes)
}

fn of_rows(whole: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let cols = whole.shape().last().copied().unwrap_or(1);
    let size = cols * whole.dtype().bits() / 8;
    let mut bytes = Vec::with_capacity(rows.len() * size);
    for row in rows {
        let at = *row as usize * size;
        bytes.extend_from_slice(whole.data().get(at..at + size).unwrap_or_default());
    }
    Tensor::new(whole.dtype(), vec![rows.len(), cols], bytes)
}
