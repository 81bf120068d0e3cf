//! The same adapter in another storage type.

use std::collections::BTreeMap;

use super::whole::Adapter;
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

impl Adapter {
    /// The adapter with its factors stored as `dtype`: F32, BF16, F16 (rounded to nearest even),
    /// or I8 with an F32 scale for each row ([`Tensor::quantised`]). Another adapter, with another
    /// root, unless nothing changes.
    ///
    /// Seeded factors stay seeded, in their own type, as their bytes take no place; extras keep
    /// theirs, since they replace what the base has in full.
    ///
    /// # Errors
    /// [`crate::Code::DtypeNotAllowed`] for another dtype; [`crate::Code::NonFinite`] naming the
    /// factor where a value is beyond it.
    pub fn to_dtype(&self, dtype: Dtype) -> Result<Self> {
        let mut out = self.clone();
        // Groups that share a tensor go on to: by where its bytes are, which `self` holds.
        let mut done: BTreeMap<_, Tensor> = BTreeMap::new();
        for (g, group) in out.groups.iter_mut().enumerate() {
            for (part, factor) in group.factors_mut() {
                let old = &factor.tensor;
                if factor.seed.is_some() {
                    continue;
                }
                if old.dtype() == dtype {
                    factor.tensor = old.clone().without_code();
                    continue;
                }
                let key = (old.data().id(), old.dtype(), old.shape().to_vec());
                let new = match done.get(&key) {
                    Some(new) => new.clone(),
                    None => Tensor::stored(dtype, key.2.clone(), &old.to_f32()?)
                        .map_err(|e| e.tensor(format!("g{g}.{}", part.name())))?,
                };
                factor.tensor = done.entry(key).or_insert(new).clone();
            }
        }
        Ok(out)
    }
}
