//! The quantised weights of a base, in the dtype that they are written in.

use std::sync::Arc;

use super::request::PlanOptions;
use crate::base::edits::ConfigEdits;
use crate::base::read_config;
use crate::error::{Code, Error, Result};
use crate::quant::{Held, KEYS, Quantised, QuantisedWeight};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Dtype;

/// The quantised weights of a base, as a plan has them.
#[derive(Debug, Clone)]
pub(super) struct Dequantised<'a> {
    weights: Arc<Quantised<'a>>,
    /// The dtype that they are written in.
    dtype: Dtype,
}

impl<'a> Dequantised<'a> {
    /// Of a base; `None` where it is not quantised.
    ///
    /// # Errors
    /// Those of [`Quantised::of`]; [`Code::Usage`] for a dtype that nothing can be written in, and for one that is
    /// asked for where nothing is quantised.
    pub(super) fn of(base: &'a Checkpoint, options: &PlanOptions) -> Result<Option<Self>> {
        let found = Quantised::of(base)?;
        if let Some(dtype) = options.dtype.filter(|d| found.is_none() || !d.is_float()) {
            let message = match found {
                None => "the base is not quantised: its tensors keep their dtypes".to_owned(),
                Some(_) => format!("weights cannot be dequantised to {dtype}"),
            };
            return Err(Error::new(Code::Usage, message).file(base.path()));
        }
        Ok(found.map(|weights| Self {
            dtype: options.dtype.unwrap_or_else(|| weights.dtype()),
            weights: Arc::new(weights),
        }))
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(super) fn weights(&self) -> &Arc<Quantised<'a>> {
        &self.weights
    }

    /// What the config no longer says, and the dtype that it does.
    ///
    /// # Errors
    /// Those of reading the config.
    pub(super) fn edit(&self, base: &Checkpoint, edits: &mut ConfigEdits) -> Result<()> {
        let config = read_config(base)?.unwrap_or_default();
        let name = match self.dtype {
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
            _ => "bfloat16",
        };
        let mut said = false;
        for (parent, object) in [
            (None, Some(&config)),
            (Some("text_config"), config.get("text_config")),
        ] {
            let Some(object) = object else { continue };
            for key in KEYS.iter().filter(|key| object.get(**key).is_some()) {
                match parent {
                    None => edits.remove(key),
                    Some(parent) => edits.remove_inside(parent, key),
                }
            }
            for key in ["dtype", "torch_dtype"] {
                if object.get(key).is_some() {
                    let path: Vec<&str> = parent.into_iter().chain([key]).collect();
                    edits.set(&path, name);
                    said = true;
                }
            }
        }
        if !said {
            edits.set(&["torch_dtype"], name);
        }
        Ok(())
    }

    /// Says that the weights are what the quantisation left of them.
    pub(super) fn note(&self) -> String {
        format!(
            "the base is quantised ({}): its weights are written dequantised, as {}",
            self.weights.kind(),
            self.dtype
        )
    }
}

/// The numbers of one quantised weight, for a tensor that is merged.
#[derive(Debug, Clone)]
pub(super) struct Numbers<'a> {
    weights: Arc<Quantised<'a>>,
    place: Location,
    dtype: Dtype,
    held: Arc<Held>,
}

impl<'a> Numbers<'a> {
    /// Those of the weight whose codes are at `place`, to be written in `dtype`.
    pub(super) fn of(weights: &Arc<Quantised<'a>>, place: Location, dtype: Dtype) -> Self {
        Self {
            weights: Arc::clone(weights),
            place,
            dtype,
            held: Arc::default(),
        }
    }

    fn weight(&self) -> Result<&QuantisedWeight<'a>> {
        let missing = || Error::new(Code::BaseDtype, "no quantised weight is stored there");
        self.weights.at(self.place).ok_or_else(missing)
    }

    /// Elements, rounded into the dtype that is written.
    pub(super) fn fill(&self, elements: std::ops::Range<usize>, out: &mut [u8]) -> Result<()> {
        self.weight()?
            .fill_held(&self.held, elements, self.dtype, out)
    }
}
