//! The layers of a site as one tie group.

use super::config::Trained;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

use crate::adapter::Factor;

/// One tensor of the same tensor of every layer: the first, where all are it.
///
/// # Errors
/// [`Code::TargetMismatch`] where one differs: weights that are tied are one in NeMo.
pub(super) fn tied(all: &[Tensor]) -> Result<Tensor> {
    match all {
        [first, others @ ..] if others.iter().all(|t| t.same_bytes(first)) => Ok(first.clone()),
        _ => {
            let message = "differs between layers, and the config says that they share it";
            Err(Error::new(Code::TargetMismatch, message))
        }
    }
}

/// One tensor with an axis for the layers.
///
/// # Errors
/// [`Code::FactorShape`] where layers have several shapes or dtypes.
pub(super) fn stacked(all: &[Tensor]) -> Result<Tensor> {
    let unfit = || {
        Error::new(
            Code::FactorShape,
            "has several shapes or dtypes in the layers",
        )
    };
    let first = all.first().ok_or_else(unfit)?;
    let alike = |t: &Tensor| t.shape() == first.shape() && t.dtype() == first.dtype();
    if !all.iter().all(alike) {
        return Err(unfit());
    }
    let shape = [&[all.len()], first.shape()].concat();
    let data: Vec<u8> = all.iter().flat_map(|t| t.data().iter().copied()).collect();
    Tensor::new(first.dtype(), shape, data)
}

/// A factor, by whether it was trained.
pub(super) fn factor(tensor: Tensor, trained: bool) -> Factor {
    match trained {
        true => Factor::trained(tensor),
        false => Factor::frozen(tensor),
    }
}

/// u and v of a group, (layers, r) and (layers, out), where layers have them.
pub(super) fn vectors(
    u: Option<Vec<Tensor>>,
    v: Option<Vec<Tensor>>,
    trained: Trained,
) -> Result<[Option<Factor>; 2]> {
    let of = |all: Option<Vec<Tensor>>, trained: bool| {
        let stacked = all.map(|all| stacked(&all)).transpose()?;
        Ok::<_, Error>(stacked.map(|t| factor(t, trained)))
    };
    Ok([of(u, trained.u)?, of(v, trained.v)?])
}
