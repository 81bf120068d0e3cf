//! Scores, the probabilities that they become, and their slopes.

use std::ops::Range;

use super::super::head::cap_all;
use super::super::vector::{exp, exp_sum, max, vectorised};
use super::heads::Heads;

/// A block of scores: some query rows against the keys that they see.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Position of the first query.
    pub(super) position: usize,
    /// Position of the first key.
    pub(super) first: usize,
    /// Number of keys, and of scores from one row to the next.
    pub(super) keys: usize,
    /// What scores are still to be multiplied by.
    pub(super) scale: f32,
}

impl Block {
    /// The columns that row `i` sees.
    fn visible(self, heads: &Heads, i: usize) -> Range<usize> {
        let seen = heads.visible(self.position + i);
        seen.start - self.first..seen.end - self.first
    }
}

vectorised! {
    /// Scores to probabilities, zero where nothing is seen, and the logarithm of each row's sum of exponentials.
    pub(super) fn softmax(
        heads: &Heads,
        scores: &mut [f32],
        block: Block,
        sums: &mut [f32],
    ) -> () {
        for (i, (row, sum)) in scores.chunks_exact_mut(block.keys).zip(sums).enumerate() {
            let seen = block.visible(heads, i);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            multiply(row, block.scale);
            if let Some(cap) = heads.cap {
                cap_all(row, cap);
            }
            let top = max(row);
            let total = exp_sum(row, top);
            let scale = 1.0 / total;
            for x in row.iter_mut() {
                *x *= scale;
            }
            *sum = top + total.ln();
        }
    }
}

vectorised! {
    /// Scores to probabilities, and dP to dS = P·(dP − Σ dO·O) · the block's scale, both zero where nothing is seen.
    pub(super) fn slope(
        heads: &Heads,
        scores: &mut [f32],
        slopes: &mut [f32],
        block: Block,
        sums_along: [&[f32]; 2],
    ) -> () {
        let [sums, along] = sums_along;
        let rows = scores.chunks_exact_mut(block.keys);
        let rows = rows.zip(slopes.chunks_exact_mut(block.keys));
        for (i, ((p, d), (sum, along))) in rows.zip(sums.iter().zip(along)).enumerate() {
            // By value: a loop that reads them anew for each number is no vector loop.
            let (sum, along) = (*sum, *along);
            let seen = block.visible(heads, i);
            for row in [&mut *p, &mut *d] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            let (p, d) = (&mut p[seen.clone()], &mut d[seen]);
            multiply(p, block.scale);
            if let Some(cap) = heads.cap {
                cap_all(p, cap);
                let rate = 1.0 / cap;
                for (y, d) in p.iter_mut().zip(d) {
                    let slope = block.scale * (1.0 - (*y * rate) * (*y * rate));
                    *y = exp(*y - sum);
                    *d = *y * (*d - along) * slope;
                }
                continue;
            }
            for (p, d) in p.iter_mut().zip(d) {
                *p = exp(*p - sum);
                *d = *p * (*d - along) * block.scale;
            }
        }
    }
}

#[inline(always)]
fn multiply(x: &mut [f32], scale: f32) {
    if scale != 1.0 {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}
