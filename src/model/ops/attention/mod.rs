//! Causal attention over sequences laid end to end, without padding.
//!
//! Rows of the input are [q heads, k heads, v heads]; query head h reads key head h / (q / kv).
//! The fused form never holds more than 64 rows of scores; its backward computes them again from
//! the logarithm of their sum, as FlashAttention does.

mod composed;

use std::ops::Range;

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::vector::{exp, fold, max, vectorised};
use super::{f32s, is_fused, tensor};
use crate::error::Result;

pub use composed::Masks;

/// Query rows handled at a time.
const BLOCK: usize = 64;

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
    /// A query sees so many keys: its own and those just before. None for all.
    pub window: Option<usize>,
}

impl Heads {
    /// Columns of [q k v].
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    /// Key columns for the query at `position`.
    fn visible(&self, position: usize) -> Range<usize> {
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

/// Attention output, tokens × q·dim, and the logarithm of each row's sum of exponentials,
/// tokens × q, which only the fused backward needs.
///
/// With `past`, one for each sequence, keys and values come from there, and the present rows are
/// its last. `masks` is to be one for all layers of a batch, on one device and in one type.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn attention(
    qkv: &Tensor,
    heads: &Heads,
    sequences: &[Range<usize>],
    past: Option<&[Past]>,
    masks: &Masks,
) -> Result<(Tensor, Vec<f32>)> {
    if !is_fused(qkv) {
        return Ok((
            composed::forward(qkv, heads, sequences, past, masks)?,
            Vec::new(),
        ));
    }
    let (tokens, width) = qkv.dims2()?;
    let qkv = f32s(qkv)?;
    let cached: Result<Vec<_>> = past
        .unwrap_or_default()
        .iter()
        .map(|p| Ok((f32s(&p.keys)?, f32s(&p.values)?, p.len)))
        .collect();
    let cached = cached?;
    let sides: Vec<Sides<'_>> = (sequences.iter().enumerate())
        .map(|(s, range)| {
            let rows = &qkv[range.start * width..range.end * width];
            let q = MatRef::from_row_major_slice(rows, range.len(), width);
            match cached.get(s) {
                None => Sides {
                    q,
                    k: q.subcols(heads.q * heads.dim, heads.kv * heads.dim),
                    v: q.subcols((heads.q + heads.kv) * heads.dim, heads.kv * heads.dim),
                },
                Some((keys, values, len)) => {
                    let w = heads.kv * heads.dim;
                    Sides {
                        q,
                        k: MatRef::from_row_major_slice(&keys[..len * w], *len, w),
                        v: MatRef::from_row_major_slice(&values[..len * w], *len, w),
                    }
                }
            }
        })
        .collect();
    let tasks = tasks(sequences.len(), heads.q);
    let parts: Vec<_> = (tasks.par_iter())
        .map_init(Vec::new, |scores, (s, h)| {
            forward(heads, &sides[*s], *h, scores)
        })
        .collect();
    let mut out = vec![0.0; tokens * heads.q * heads.dim];
    let mut sums = vec![0.0; tokens * heads.q];
    for ((s, h), (part, sum)) in tasks.iter().zip(&parts) {
        for (i, t) in sequences[*s].clone().enumerate() {
            let column = t * heads.q * heads.dim + h * heads.dim;
            out[column..column + heads.dim]
                .copy_from_slice(&part[i * heads.dim..(i + 1) * heads.dim]);
            sums[t * heads.q + h] = sum[i];
        }
    }
    Ok((tensor(out, tokens, heads.q * heads.dim)?, sums))
}

/// The gradient with respect to `qkv`, of its shape; `out` and `sums` are what [`attention`] gave.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn attention_backward(
    dout: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    sums: &[f32],
    heads: &Heads,
    sequences: &[Range<usize>],
    masks: &Masks,
) -> Result<Tensor> {
    if !is_fused(qkv) {
        return composed::backward([dout, qkv, out], heads, sequences, masks);
    }
    let (tokens, width) = qkv.dims2()?;
    let (qkv, out, dout) = (f32s(qkv)?, f32s(out)?, f32s(dout)?);
    let wide = heads.q * heads.dim;
    let tasks = tasks(sequences.len(), heads.q);
    let parts: Vec<_> = (tasks.par_iter())
        .map_init(Default::default, |buffers, (s, h)| {
            let range = &sequences[*s];
            let matrix = |x, cols| {
                let rows: &[f32] = x;
                let rows = &rows[range.start * cols..range.end * cols];
                MatRef::from_row_major_slice(rows, range.len(), cols)
            };
            let sums: Vec<f32> = range.clone().map(|t| sums[t * heads.q + h]).collect();
            let (column, dim) = (h * heads.dim, heads.dim);
            let given = Given {
                qkv: matrix(&qkv, width),
                out: matrix(&out, wide).subcols(column, dim),
                dout: matrix(&dout, wide).subcols(column, dim),
                sums: &sums,
            };
            backward(heads, &given, *h, buffers)
        })
        .collect();
    let mut dqkv = vec![0.0; tokens * width];
    let group = heads.q / heads.kv;
    for ((s, h), [dq, dk, dv]) in tasks.iter().zip(&parts) {
        let places = [*h, heads.q + h / group, heads.q + heads.kv + h / group];
        for (part, place) in [dq, dk, dv].into_iter().zip(places) {
            for (t, part) in sequences[*s].clone().zip(part.chunks_exact(heads.dim)) {
                let to = &mut dqkv[t * width + place * heads.dim..][..heads.dim];
                to.iter_mut().zip(part).for_each(|(to, x)| *to += x);
            }
        }
    }
    tensor(dqkv, tokens, width)
}

/// Every (sequence, query head), in order.
fn tasks(sequences: usize, heads: usize) -> Vec<(usize, usize)> {
    (0..sequences)
        .flat_map(|s| (0..heads).map(move |h| (s, h)))
        .collect()
}

/// One sequence: rows of [q …], and all keys and values that it sees.
struct Sides<'a> {
    q: MatRef<'a, f32>,
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
}

fn forward(
    heads: &Heads,
    sides: &Sides<'_>,
    h: usize,
    scores: &mut Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (sides.q.nrows(), heads.dim);
    let before = sides.k.nrows() - rows;
    let g = h / (heads.q / heads.kv) * dim;
    let (q, k, v) = (
        sides.q.subcols(h * dim, dim),
        sides.k.subcols(g, dim),
        sides.v.subcols(g, dim),
    );
    let mut out = vec![0.0; rows * dim];
    let mut sums = vec![0.0; rows];
    for start in (0..rows).step_by(BLOCK) {
        let n = BLOCK.min(rows - start);
        let first = heads.visible(before + start).start;
        let keys = before + start + n - first;
        scores.resize(n * keys, 0.0);
        let s = MatMut::from_row_major_slice_mut(scores, n, keys);
        let (q, k) = (q.subrows(start, n), k.subrows(first, keys));
        matmul(s, Accum::Replace, q, k.transpose(), heads.scale, Par::Seq);
        softmax(
            heads,
            scores,
            keys,
            [before + start, first],
            &mut sums[start..start + n],
        );
        let s = MatRef::from_row_major_slice(scores, n, keys);
        let o = &mut out[start * dim..(start + n) * dim];
        let o = MatMut::from_row_major_slice_mut(o, n, dim);
        matmul(o, Accum::Replace, s, v.subrows(first, keys), 1.0, Par::Seq);
    }
    (out, sums)
}

vectorised! {
    fn softmax(
        heads: &Heads,
        scores: &mut [f32],
        keys: usize,
        position_first: [usize; 2],
        sums: &mut [f32],
    ) -> () {
        let [position, first] = position_first;
        for (i, (row, sum)) in scores.chunks_exact_mut(keys).zip(sums).enumerate() {
            let seen = heads.visible(position + i);
            let seen = seen.start - first..seen.end - first;
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let top = max(row);
            for x in row.iter_mut() {
                *x = exp(*x - top);
            }
            let total = fold(row.len(), |acc, i| acc + row[i], 0.0, |a, b| a + b);
            let scale = 1.0 / total;
            for x in row.iter_mut() {
                *x *= scale;
            }
            *sum = top + total.ln();
        }
    }
}

/// One sequence of the backward: [q k v], and one head's columns of the output and its gradient.
struct Given<'a> {
    qkv: MatRef<'a, f32>,
    out: MatRef<'a, f32>,
    dout: MatRef<'a, f32>,
    sums: &'a [f32],
}

/// dq, dk and dv of one sequence and query head, rows × dim.
fn backward(
    heads: &Heads,
    given: &Given<'_>,
    h: usize,
    (probabilities, slopes): &mut (Vec<f32>, Vec<f32>),
) -> [Vec<f32>; 3] {
    let (rows, dim) = (given.qkv.nrows(), heads.dim);
    let g = h / (heads.q / heads.kv);
    let q = given.qkv.subcols(h * dim, dim);
    let k = given.qkv.subcols((heads.q + g) * dim, dim);
    let v = given.qkv.subcols((heads.q + heads.kv + g) * dim, dim);
    let mut parts = [
        vec![0.0; rows * dim],
        vec![0.0; rows * dim],
        vec![0.0; rows * dim],
    ];
    let [dq, dk, dv] = &mut parts;
    let [mut dq, mut dk, mut dv] =
        [dq, dk, dv].map(|m| MatMut::from_row_major_slice_mut(m, rows, dim));
    for start in (0..rows).step_by(BLOCK) {
        let n = BLOCK.min(rows - start);
        let first = heads.visible(start).start;
        let keys = start + n - first;
        let (qs, ks, vs) = (
            q.subrows(start, n),
            k.subrows(first, keys),
            v.subrows(first, keys),
        );
        let dout = given.dout.subrows(start, n);
        probabilities.resize(n * keys, 0.0);
        slopes.resize(n * keys, 0.0);
        let p = MatMut::from_row_major_slice_mut(probabilities, n, keys);
        matmul(p, Accum::Replace, qs, ks.transpose(), heads.scale, Par::Seq);
        let d = MatMut::from_row_major_slice_mut(slopes, n, keys);
        matmul(d, Accum::Replace, dout, vs.transpose(), 1.0, Par::Seq);
        let along: Vec<f32> = (0..n)
            .map(|i| {
                let (o, d) = (given.out.row(start + i), dout.row(i));
                (0..dim).fold(0.0, |acc, j| acc + o[j] * d[j])
            })
            .collect();
        let sums = &given.sums[start..start + n];
        slope(
            heads,
            probabilities,
            slopes,
            [start, first, keys],
            [sums, &along],
        );
        let p = MatRef::from_row_major_slice(probabilities, n, keys);
        let d = MatRef::from_row_major_slice(slopes, n, keys);
        let seen = (first, keys);
        let dv = dv.rb_mut().subrows_mut(seen.0, seen.1);
        matmul(dv, Accum::Add, p.transpose(), dout, 1.0, Par::Seq);
        let dk = dk.rb_mut().subrows_mut(seen.0, seen.1);
        matmul(dk, Accum::Add, d.transpose(), qs, heads.scale, Par::Seq);
        let dq = dq.rb_mut().subrows_mut(start, n);
        matmul(dq, Accum::Replace, d, ks, heads.scale, Par::Seq);
    }
    parts
}

vectorised! {
    /// Scores to probabilities, and dP to dS = P·(dP − Σ dO·O), both zero where nothing is seen.
    fn slope(
        heads: &Heads,
        scores: &mut [f32],
        slopes: &mut [f32],
        start_first_keys: [usize; 3],
        sums_along: [&[f32]; 2],
    ) -> () {
        let [start, first, keys] = start_first_keys;
        let [sums, along] = sums_along;
        let rows = scores.chunks_exact_mut(keys).zip(slopes.chunks_exact_mut(keys));
        for (i, ((p, d), (sum, along))) in rows.zip(sums.iter().zip(along)).enumerate() {
            let seen = heads.visible(start + i);
            let seen = seen.start - first..seen.end - first;
            for row in [&mut *p, &mut *d] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            for (p, d) in p[seen.clone()].iter_mut().zip(&mut d[seen]) {
                *p = exp(*p - sum);
                *d = *p * (*d - along);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, is_slope, random};
    use super::*;
    use candle_core::DType;

    fn wide(t: &Tensor) -> Tensor {
        t.to_dtype(DType::F64).unwrap()
    }

    #[test]
    fn fused_attention_equals_the_composed_one_and_that_its_differences() {
        for (kv, window) in [(4, None), (2, None), (1, Some(5)), (2, Some(70))] {
            let heads = Heads {
                q: 4,
                kv,
                dim: 6,
                scale: 0.4,
                window,
            };
            // The last three are of one length, and go through the composed form together.
            let sequences = [0..1, 1..140, 140..163, 163..186, 186..209];
            let qkv = (random(209, heads.width(), 1) * 2.0).unwrap();
            let dout = random(209, 24, 2);
            let masks = Masks::default();
            let (out, sums) = attention(&qkv, &heads, &sequences, None, &masks).unwrap();
            let (right, _) = attention(&wide(&qkv), &heads, &sequences, None, &masks).unwrap();
            close(&out, &right, 1e-5);
            let dqkv =
                attention_backward(&dout, &qkv, &out, &sums, &heads, &sequences, &masks).unwrap();
            let right = attention_backward(
                &wide(&dout),
                &wide(&qkv),
                &right,
                &[],
                &heads,
                &sequences,
                &masks,
            )
            .unwrap();
            close(&dqkv, &right, 1e-5);

            let direction = wide(&random(209, heads.width(), 3));
            let loss = |step: f64| {
                let moved = (wide(&qkv) + (&direction * step).unwrap()).unwrap();
                let (out, _) = attention(&moved, &heads, &sequences, None, &masks).unwrap();
                let loss = (out * wide(&dout)).unwrap().sum_all().unwrap();
                loss.to_scalar::<f64>().unwrap()
            };
            is_slope(&right, &direction, loss, 1.0);
        }
    }

    #[test]
    fn cached_keys_give_the_rows_of_the_whole() {
        let heads = Heads {
            q: 4,
            kv: 2,
            dim: 6,
            scale: 0.4,
            window: Some(9),
        };
        let qkv = random(30, heads.width(), 1);
        let (whole, _) = attention(
            &qkv,
            &heads,
            std::slice::from_ref(&(0..30)),
            None,
            &Masks::default(),
        )
        .unwrap();
        let last = qkv.narrow(0, 27, 3).unwrap().contiguous().unwrap();
        let column = |start| qkv.narrow(1, start, 12).unwrap().contiguous().unwrap();
        let past = Past {
            keys: column(24),
            values: column(36),
            len: 30,
        };
        for wide in [DType::F32, DType::F64] {
            let past = Past {
                keys: past.keys.to_dtype(wide).unwrap(),
                values: past.values.to_dtype(wide).unwrap(),
                len: 30,
            };
            let last = last.to_dtype(wide).unwrap();
            let (rows, _) = attention(
                &last,
                &heads,
                std::slice::from_ref(&(0..3)),
                Some(&[past]),
                &Masks::default(),
            )
            .unwrap();
            close(&rows, &whole.narrow(0, 27, 3).unwrap(), 1e-5);
        }
    }
}
