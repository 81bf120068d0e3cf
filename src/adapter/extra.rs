//! Full tensors that go with an adapter's low-rank updates.

use super::scaling::Scaling;
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, shape_text};

/// What an [`Extra`] does to its base tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtraRole {
    /// Replaces the tensor: PEFT's `modules_to_save`.
    Replace,
    /// Replaces a bias: PEFT's `bias="all"` and `"lora_only"` (`base_layer.bias`).
    Bias,
    /// Replaces the weight under an update: PEFT's saved `base_layer.weight` of embeddings.
    BaseLayer,
    /// Replaces rows of an embedding, those of [`Extra::rows`]: PEFT's `trainable_token_indices`.
    Rows,
    /// Is added to the bias of an adapted module, scaled like it: PEFT's `lora_bias`.
    AddBias(Scaling, usize),
}

/// A tensor that an adapter carries besides its tie groups.
#[derive(Debug, Clone)]
pub struct Extra {
    /// The base tensor's name, such as `lm_head.weight`.
    pub name: String,
    /// What it does to it.
    pub role: ExtraRole,
    /// The values; same shape as the base tensor, but for the number of rows with
    /// [`ExtraRole::Rows`].
    pub tensor: Tensor,
    /// With [`ExtraRole::Rows`], which row of the base tensor each row replaces, strictly ascending;
    /// else empty.
    pub rows: Vec<u32>,
}

impl Extra {
    /// What replaces, or is added to, a whole tensor of the base.
    pub fn new(name: impl Into<String>, role: ExtraRole, tensor: Tensor) -> Self {
        Self {
            name: name.into(),
            role,
            tensor,
            rows: Vec::new(),
        }
    }

    /// Whether `rows` says which row each row of the tensor replaces, and only with that role.
    pub(super) fn check_rows(&self) -> Result<()> {
        let ascending = self.rows.windows(2).all(|w| w[0] < w[1]);
        let fits = match (self.role, self.tensor.shape()) {
            (ExtraRole::Rows, [rows, _]) => *rows == self.rows.len() && *rows > 0 && ascending,
            (ExtraRole::Rows, _) => false,
            _ => self.rows.is_empty(),
        };
        match fits {
            true => Ok(()),
            false => {
                let message = format!(
                    "has shape {} and lists {} rows, which must be ascending, one for each of its own",
                    shape_text(self.tensor.shape()),
                    self.rows.len()
                );
                Err(Error::new(Code::ShapeDisagrees, message).tensor(&self.name))
            }
        }
    }
}
