//! The heads of a layer, and what a sequence has kept of its past.

use std::ops::Range;

use candle_core::Tensor;

use super::super::linear::Products;

/// The heads of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Number of query heads.
    pub q: usize,
    /// Number of key and value heads, a divisor of `q`.
    pub kv: usize,
    /// Columns of a head.
    pub dim: usize,
    /// Scores are multiplied by it before the softmax.
    pub scale: f32,
    /// Scores are then cap · tanh(scores / cap), where there is a cap.
    pub cap: Option<f32>,
    /// A query sees so many keys: its own and those just before. None for all.
    pub window: Option<usize>,
    /// How the fused form multiplies.
    pub products: Products,
}

impl Heads {
    /// Columns of [q k v].
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    /// Where query head `h` has its q, k and v in [q k v].
    pub(super) fn columns(&self, h: usize) -> [usize; 3] {
        let group = h / (self.q / self.kv);
        [h, self.q + group, self.q + self.kv + group].map(|place| place * self.dim)
    }

    /// Key columns for the query at `position`.
    pub(super) fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        first..position + 1
    }
}

/// Keys and values of one sequence so far, those of the present rows included.
#[derive(Debug, Clone)]
pub struct Past {
    /// At least `len` rows of kv · dim columns.
    pub keys: Tensor,
    /// As `keys`.
    pub values: Tensor,
    /// Rows in use.
    pub len: usize,
}
