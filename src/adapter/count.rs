//! What a method would train on a model of a given shape, without any weights.

use serde_json::Value;

use super::factor::FactorName;
use super::limits::{MAX_LAYERS, MAX_RANK};
use super::method::Method;
use crate::error::{Code, Error, Result};

/// The attention projections of a model, as the paper adapts them: q, k and v share one A
/// (r × input), and B has the rows of q, then k, then v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: u64,
    /// Input features of q, k and v: the model's hidden size.
    pub input: u64,
    /// Output features of q, k and v; k and v are narrower with grouped-query attention.
    pub outs: [u64; 3],
}

impl Shape {
    /// The shape that a model's `config.json` describes (Hugging Face's keys; those of the text
    /// model where a multimodal config nests it).
    ///
    /// # Errors
    /// [`Code::ModelConfig`]: no JSON object, a value is missing, zero or no whole number, the
    /// heads do not divide the hidden size and `head_dim` is not given, or a width overflows.
    pub fn from_config(json: &[u8]) -> Result<Self> {
        let wrong = |message: String| Error::new(Code::ModelConfig, message);
        let config: Value =
            serde_json::from_slice(json).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        let config = match config.get("text_config") {
            Some(nested) if nested.is_object() => nested,
            _ => &config,
        };
        let optional = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 => Ok(Some(n)),
                _ => Err(wrong(format!("`{key}` is not a whole number above zero"))),
            },
        };
        let required =
            |key: &str| optional(key)?.ok_or_else(|| wrong(format!("`{key}` is missing")));
        let layers = required("num_hidden_layers")?;
        let input = required("hidden_size")?;
        let heads = required("num_attention_heads")?;
        let kv_heads = optional("num_key_value_heads")?.unwrap_or(heads);
        let head = match optional("head_dim")? {
            Some(head) => head,
            None if input.is_multiple_of(heads) => input / heads,
            None => return Err(wrong(format!("hidden_size {input} over {heads} heads"))),
        };
        let width = |heads: u64| {
            let width = heads.checked_mul(head);
            width.ok_or_else(|| wrong(format!("{heads} heads of {head} overflow")))
        };
        let (q, kv) = (width(heads)?, width(kv_heads)?);
        Ok(Self {
            layers,
            input,
            outs: [q, kv, kv],
        })
    }

    /// Numbers that `method` trains at `rank`, each tied tensor counted once.
    ///
    /// # Errors
    /// [`Code::Usage`]: as for [`Shape::template`]; `custom` is no template.
    pub fn parameters(&self, method: Method, rank: u64) -> Result<u64> {
        let (Some(trains), Some(tied)) = (method.trains(), method.is_tied()) else {
            return Err(Error::new(Code::Usage, "`custom` does not say what trains"));
        };
        self.template(trains, tied, rank)
    }

    /// Numbers in the factors `trains` at `rank`: with `tied` one A and one B, else a pair for
    /// each layer; C (rank × rank), u (rank entries) and v (one for each row of B) are always per
    /// layer.
    ///
    /// # Errors
    /// [`Code::Usage`]: more than [`MAX_LAYERS`] layers or above [`MAX_RANK`], either of them
    /// zero, or a count beyond 64 bits.
    pub fn template(&self, trains: &[FactorName], tied: bool, rank: u64) -> Result<u64> {
        for (what, value, limit) in [
            ("layers", self.layers, MAX_LAYERS),
            ("rank", rank, MAX_RANK),
        ] {
            if value == 0 || value > limit as u64 {
                let message = format!("{what} {value} is not between 1 and {limit}");
                return Err(Error::new(Code::Usage, message));
            }
        }
        let pairs = if tied { 1 } else { self.layers };
        let count = || {
            let [q, k, v] = self.outs;
            let output = q.checked_add(k)?.checked_add(v)?;
            trains.iter().try_fold(0u64, |sum, part| {
                let (copies, length) = match part {
                    FactorName::A => (pairs, rank.checked_mul(self.input)?),
                    FactorName::B => (pairs, rank.checked_mul(output)?),
                    FactorName::C => (self.layers, rank.checked_mul(rank)?),
                    FactorName::U => (self.layers, rank),
                    FactorName::V => (self.layers, output),
                };
                sum.checked_add(copies.checked_mul(length)?)
            })
        };
        count().ok_or_else(|| Error::new(Code::Usage, "the parameters overflow a 64-bit count"))
    }
}

/// `part` of `whole` in tenths of a percent, a half rounded up, as the paper prints P%; `None`
/// of nothing, or beyond 64 bits.
pub fn percent_tenths(part: u64, whole: u64) -> Option<u64> {
    let (part, whole) = (u128::from(part), u128::from(whole));
    u64::try_from((2000 * part + whole).checked_div(2 * whole)?).ok()
}

#[cfg(test)]
mod tests;
