//! Products with few rows on the left, as in generation: each number of a weight is read once, and the memory's speed is the limit.

use std::ops::Range;

use half::bf16;

use super::super::columns::by_rows;
use super::super::vector::{fold, vectorised};
use super::avx512;
use super::pack::Weight;
use super::product::Rows;
use crate::tensor::Dtype;

/// Bytes of a weight that one task reads.
const TASK: usize = 128 << 10;

/// x·Wᵀ over `pieces`, the rows of weights whose columns stand side by side in `out`: tokens × Σ rows, overwritten. `x` is
/// rounded to bf16, as the products with many rows round it.
pub(in super::super) fn few(x: &[f32], in_features: usize, pieces: &[Rows<'_>], out: &mut [f32]) {
    let step = TASK / (2 * in_features.max(1));
    let rows: Vec<Range<usize>> = pieces.iter().map(|(_, rows)| rows.clone()).collect();
    let x: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let pairs = avx512::is_there();
    let scratch = || vec![0u16; in_features];
    by_rows(&rows, step, out, scratch, |scratch, number, rows, part| {
        let weight = &pieces[number].0;
        match pairs && weight.dtype == Dtype::BF16 {
            true => {
                let rows = 2 * rows.start * in_features..2 * rows.end * in_features;
                avx512::dots(
                    bytemuck::cast_slice(&x),
                    &weight.bytes[rows],
                    in_features,
                    part,
                );
            }
            false => dots(&wide, weight, rows, scratch, part),
        }
    });
}

vectorised! {
    /// Σ x·w for each row of `x` and each of `rows`, w in bf16.
    fn dots(x: &[f32], weight: &Weight<'_>, rows: Range<usize>, scratch: &mut [u16], to: &mut [f32]) -> () {
        let count = rows.len();
        for (at, row) in rows.enumerate() {
            weight.read(row, 0, scratch);
            for (token, x) in x.chunks_exact(weight.columns).enumerate() {
                to[token * count + at] = dot(x, scratch);
            }
        }
    }
}

#[inline(always)]
fn dot(x: &[f32], w: &[u16]) -> f32 {
    let n = x.len().min(w.len());
    let (x, w) = (&x[..n], &w[..n]);
    let wide = |i: usize| f32::from_bits(u32::from(w[i]) << 16);
    fold(n, |acc, i| x[i].mul_add(wide(i), acc), 0.0, |a, b| a + b)
}
