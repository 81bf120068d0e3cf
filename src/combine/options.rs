//! What a combination is asked for.

use super::method::CombineMethod;
use crate::blend::Election;
use crate::error::{Code, Error, Result};
use crate::fit::Budget;
use crate::format::WriteOptions;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// How to combine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CombineOptions<'a> {
    /// How adapters become one.
    pub method: CombineMethod,
    /// What bounds a truncation; the highest rank of the adapters where it is `None`.
    pub budget: Option<Budget>,
    /// The share of elements that is kept, above 0 and at most 1; only methods that keep a part take one.
    pub density: Option<f64>,
    /// Which elements are dropped at random.
    pub seed: u64,
    /// How the sign of an element is elected, as PEFT's `majority_sign_method`.
    pub signs: Election,
    /// What the result is stored in: F32, BF16, F16, or I8 with a scale for each row. `None`: F32, but for
    /// [`CombineMethod::Cat`], which keeps the numbers of A and B as they are.
    pub dtype: Option<Dtype>,
    /// The base: the adapters have to be of it, and the result carries its fingerprint.
    pub base: Option<&'a Checkpoint>,
    /// How the file is written.
    pub write: WriteOptions,
}

impl CombineOptions<'_> {
    /// A method with nothing else said.
    pub fn new(method: CombineMethod) -> Self {
        Self {
            method,
            budget: None,
            density: None,
            seed: 0,
            signs: Election::Total,
            dtype: None,
            base: None,
            write: WriteOptions::default(),
        }
    }

    /// # Errors
    /// [`Code::Usage`] for what the method does not have, or needs.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(Code::Usage, message));
        let method = self.method;
        match self.density {
            None if method.is_sparse() => {
                let message = format!("`{method}` needs the share of elements to keep");
                let error = Error::new(Code::Usage, message);
                return Err(error.hint("give a density above 0 and at most 1, which keeps all"));
            }
            Some(_) if !method.is_sparse() => {
                return wrong(format!(
                    "`{method}` keeps all elements, and takes no density"
                ));
            }
            Some(d) if !(d > 0.0 && d <= 1.0) => {
                return wrong(format!("density {d} is not above 0 and at most 1"));
            }
            _ => {}
        }
        if self.budget.is_some() && !method.truncates() {
            let message = format!("`{method}` cuts nothing, and takes no rank, error or size");
            let error = Error::new(Code::Usage, message);
            return Err(error.hint("`svd` does, and every method whose name ends so"));
        }
        let bytes = matches!(self.budget, Some(Budget::Bytes(_)));
        match bytes && self.dtype.is_some_and(|d| d != Dtype::F32) {
            true => wrong("a number of bytes is shared out in F32 alone".into()),
            false => self.budget.map_or(Ok(()), Budget::check),
        }
    }
}
