//! Products with few rows on the left, as in generation: each number of a weight is read once, and the memory's speed is the limit.

use half::bf16;
use rayon::prelude::*;

use super::super::vector::{fold, vectorised};
use super::product::Rows;

/// Bytes of a weight that one task reads.
const TASK: usize = 128 << 10;

/// x·Wᵀ over `pieces`, the rows of weights whose columns stand side by side in `out`: tokens × Σ rows, overwritten. `x` is
/// rounded to bf16, as the products with many rows round it.
pub(in super::super) fn few(x: &[f32], in_features: usize, pieces: &[Rows<'_>], out: &mut [f32]) {
    let tokens = x.len() / in_features.max(1);
    let width: usize = pieces.iter().map(|(_, rows)| rows.len()).sum();
    let x: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let step = (TASK / (2 * in_features.max(1))).max(1);
    let (mut tasks, mut column) = (Vec::new(), 0);
    for (weight, rows) in pieces {
        for start in rows.clone().step_by(step) {
            let rows = start..(start + step).min(rows.end);
            tasks.push((weight, rows.clone(), column));
            column += rows.len();
        }
    }
    let parts: Vec<Vec<f32>> = tasks
        .par_iter()
        .map_init(
            || vec![0u16; in_features],
            |scratch, (weight, rows, _)| {
                let mut part = vec![0.0; tokens * rows.len()];
                for (at, row) in rows.clone().enumerate() {
                    weight.read(row, 0, scratch);
                    for (token, x) in x.chunks_exact(in_features).enumerate() {
                        part[token * rows.len() + at] = dot(x, scratch);
                    }
                }
                part
            },
        )
        .collect();
    for ((_, rows, column), part) in tasks.iter().zip(&parts) {
        for (out, part) in out.chunks_mut(width).zip(part.chunks(rows.len())) {
            out[*column..column + rows.len()].copy_from_slice(part);
        }
    }
}

vectorised! {
    /// Σ x·w, w in bf16.
    fn dot(x: &[f32], w: &[u16]) -> f32 {
        let n = x.len().min(w.len());
        let (x, w) = (&x[..n], &w[..n]);
        let wide = |i: usize| f32::from_bits(u32::from(w[i]) << 16);
        fold(n, |acc, i| x[i].mul_add(wide(i), acc), 0.0, |a, b| a + b)
    }
}
