//! How products are cut: panels of columns, blocks of K.

use std::ops::Range;

use super::tile::{PAIRED, STEP, WIDE};

/// Numbers of K that are packed at a time: 64 KiB of a panel, and as much of 32 rows of the left side. Deeper, and a group
/// leaves the second cache; less deep, and sums are read and written more often.
const DEPTH: usize = 1024;
/// Numbers of a packed panel.
pub(in super::super) const PACKED: usize = DEPTH / PAIRED * STEP;
/// Up to 32 columns of a product, side by side.
#[derive(Debug, Clone)]
pub(in super::super) struct Panel {
    /// In the product.
    pub(in super::super) columns: Range<usize>,
    /// What [`multiply`]'s packing is told, to find them in the weights.
    pub(in super::super) source: (usize, usize),
}

/// Some of K.
#[derive(Debug, Clone)]
pub(in super::super) struct Block {
    /// Columns of the left side.
    pub(in super::super) columns: Range<usize>,
    /// What packing is told.
    pub(in super::super) source: (usize, usize),
}

impl Panel {
    /// The most columns of one.
    pub(in super::super) const WIDEST: usize = WIDE;
}

impl Block {
    /// K, of which packing is told the same `source`, in blocks that are packed at a time.
    pub(in super::super) fn cut(
        columns: Range<usize>,
        source: usize,
    ) -> impl Iterator<Item = Self> {
        let first = columns.start;
        // About as many in each: a short one costs a pass over the sums as a long one does.
        let depth = columns.len().div_ceil(columns.len().div_ceil(DEPTH).max(1));
        let depth = depth.next_multiple_of(PAIRED).max(PAIRED);
        columns.clone().step_by(depth).map(move |start| Self {
            columns: start..(start + depth).min(columns.end),
            source: (source, start - first),
        })
    }

    /// Steps of K that it takes.
    pub(super) fn steps(&self) -> usize {
        self.columns.len().div_ceil(PAIRED)
    }
}
