//! What other forms than a tied one make of the same modules: smaller types, and coded.

use serde::Serialize;

use super::coded::{CodeTarget, code};
use crate::adapter::error::{left_columns, product_norm, right_columns};
use crate::adapter::{Adapter, TieGroup};
use crate::error::Result;
use crate::tensor::Dtype;

/// A form of the LoRA. Bytes are those of the factors, errors relative, of all fitted modules together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CurveForm {
    /// Bytes of the factors in this form.
    pub bytes: u64,
    /// Its error.
    pub error: f64,
}

/// The LoRA coded at an error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CurveCoded {
    /// Bytes of the coded factors.
    pub bytes: u64,
    /// Its error.
    pub error: f64,
    /// Bytes that no code of Gaussian components of these energies needs less than at this error.
    pub bound_bytes: u64,
}

/// Errors at which the LoRA is coded for a curve.
const ERRORS: [f64; 11] = [
    0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01,
];

/// The factors of these groups of one module each in another type.
pub(super) fn stored(groups: &[TieGroup], dtype: Dtype) -> Result<CurveForm> {
    let before = Adapter {
        groups: groups.to_vec(),
        ..Adapter::default()
    };
    let after = before.to_dtype(dtype)?;
    let (mut off, mut all) = (0.0, 0.0);
    for (before, after) in groups.iter().zip(&after.groups) {
        let (one, two) = (before.low_rank(0, 0)?, after.low_rank(0, 0)?);
        let both = left_columns(&[(&one, 1.0), (&two, -1.0)]);
        off += product_norm(&both, &right_columns(&[&one, &two])).powi(2);
        let own = left_columns(&[(&one, 1.0)]);
        all += product_norm(&own, &right_columns(&[&one])).powi(2);
    }
    let factors = after.groups.iter().flat_map(TieGroup::factors);
    Ok(CurveForm {
        bytes: factors.map(|(_, f)| f.tensor.byte_len()).sum(),
        error: (off / all.max(f64::MIN_POSITIVE)).sqrt(),
    })
}

/// These groups coded, from few bytes to many.
pub(super) fn coded(groups: &[TieGroup]) -> Result<Vec<CurveCoded>> {
    let adapter = Adapter {
        groups: groups.to_vec(),
        ..Adapter::default()
    };
    let at = |error: &f64| {
        let (_, report) = code(&adapter, CodeTarget::Error(*error))?;
        Ok(CurveCoded {
            bytes: report.coded_bytes,
            error: report.error,
            bound_bytes: (report.bound * report.numbers as f64 / 8.0) as u64,
        })
    };
    ERRORS.iter().map(at).collect()
}
