//! Σ w_i ΔW_i of the members of a class, exactly: in one factor where that is enough, else side by side.

use super::classes::Member;
use super::factor_sum::summed;
use super::join::{Numbers, join};
use crate::adapter::{Factor, Scaling, TieGroup};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// The sum as one group; `None` where nothing of it is left.
///
/// # Errors
/// Those of [`join`].
pub(super) fn exact(members: Vec<Member>, numbers: Numbers) -> Result<Option<TieGroup>> {
    let mut terms = summed(members)?;
    terms.retain(|m| m.scale() != 0.0);
    match &terms[..] {
        [] => Ok(None),
        [one] if numbers == Numbers::Kept => scaled(one).map(Some),
        several => join(several, numbers).map(Some),
    }
}

/// A group times its weight: in alpha, the sign in the factor with the fewest numbers.
fn scaled(member: &Member) -> Result<TieGroup> {
    let mut group = member.group.clone();
    if member.weight == 1.0 {
        return Ok(group);
    }
    let scale = member.scale();
    let alpha = scale.abs() * group.rank as f64;
    group.scaling = Scaling {
        alpha,
        ..Scaling::one(group.rank)
    };
    if scale < 0.0 {
        let smallest = group.factors_mut().min_by_key(|(_, f)| f.tensor.len());
        if let Some((_, factor)) = smallest {
            *factor = negated(factor)?;
        }
    }
    Ok(group)
}

/// The factor times −1, which rounds nothing in any type.
fn negated(factor: &Factor) -> Result<Factor> {
    let tensor = &factor.tensor;
    let values: Vec<f32> = tensor.to_f32()?.iter().map(|x| -x).collect();
    let dtype = match tensor.dtype().is_float() {
        true => tensor.dtype(),
        false => Dtype::F32,
    };
    Ok(Factor {
        tensor: Tensor::narrowed(dtype, tensor.shape().to_vec(), &values)?,
        trained: factor.trained,
        seed: None,
    })
}
