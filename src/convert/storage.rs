//! An adapter in a smaller type.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::verify::{AdaptersReport, verify_adapters};

/// The adapter with its factors stored as `dtype`, F32, BF16, F16, or I8 with a scale for each row
/// ([`Adapter::to_dtype`]), and how far every target's ΔW is from what it was.
///
/// # Errors
/// Those of [`Adapter::to_dtype`].
pub fn store_as(adapter: &Adapter, dtype: Dtype) -> Result<(Adapter, AdaptersReport)> {
    let stored = adapter.to_dtype(dtype)?;
    let none = BTreeMap::new();
    let report = verify_adapters((adapter, &none), (&stored, &none))?;
    Ok((stored, report))
}
