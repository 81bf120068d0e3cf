//! Attention in f32 on the processor, by this project's kernels: 64 rows of scores at a time.

use std::ops::Range;

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::super::head::cap_all;
use super::super::vector::{exp, exp_sum, max, vectorised};
use super::super::{f32s, tensor};
use super::heads::{Heads, Past};
use crate::error::Result;

/// Query rows handled at a time.
const BLOCK: usize = 64;

/// As [`super::attention`].
pub(super) fn forward(
    qkv: &Tensor,
    heads: &Heads,
    sequences: &[Range<usize>],
    past: Option<&[Past]>,
) -> Result<(Tensor, Vec<f32>)> {
    let (tokens, width) = qkv.dims2()?;
    let qkv = f32s(qkv)?;
    let cached: Result<Vec<_>> = past
        .unwrap_or_default()
        .iter()
        .map(|p| Ok((f32s(&p.keys)?, f32s(&p.values)?, p.len)))
        .collect();
    let cached = cached?;
    let w = heads.kv * heads.dim;
    let sides: Vec<Sides<'_>> = (sequences.iter().enumerate())
        .map(|(s, range)| {
            let rows = &qkv[range.start * width..range.end * width];
            let q = MatRef::from_row_major_slice(rows, range.len(), width);
            let (k, v) = match cached.get(s) {
                None => (
                    q.subcols(heads.q * heads.dim, w),
                    q.subcols((heads.q + heads.kv) * heads.dim, w),
                ),
                Some((keys, values, len)) => (
                    MatRef::from_row_major_slice(&keys[..len * w], *len, w),
                    MatRef::from_row_major_slice(&values[..len * w], *len, w),
                ),
            };
            Sides { q, k, v }
        })
        .collect();
    let tasks = tasks(sequences.len(), heads.q);
    let parts: Vec<_> = (tasks.par_iter())
        .map_init(Vec::new, |scores, (s, h)| {
            forward_head(heads, &sides[*s], *h, scores)
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

/// As [`super::attention_backward`].
pub(super) fn backward(
    [dout, qkv, out]: [&Tensor; 3],
    sums: &[f32],
    heads: &Heads,
    sequences: &[Range<usize>],
) -> Result<Tensor> {
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
            backward_head(heads, &given, *h, buffers)
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

/// A block of scores: some query rows against the keys that they see.
#[derive(Clone, Copy)]
struct Block {
    /// Position of the first query.
    position: usize,
    /// Position of the first key.
    first: usize,
    /// Number of keys.
    keys: usize,
}

impl Block {
    /// The columns that row `i` sees.
    fn visible(self, heads: &Heads, i: usize) -> Range<usize> {
        let seen = heads.visible(self.position + i);
        seen.start - self.first..seen.end - self.first
    }
}

/// One sequence: rows of [q …], and all keys and values that it sees.
struct Sides<'a> {
    q: MatRef<'a, f32>,
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
}

fn forward_head(
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
        let block = Block {
            position: before + start,
            first,
            keys,
        };
        softmax(heads, scores, block, &mut sums[start..start + n]);
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
        block: Block,
        sums: &mut [f32],
    ) -> () {
        for (i, (row, sum)) in scores.chunks_exact_mut(block.keys).zip(sums).enumerate() {
            let seen = block.visible(heads, i);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
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

/// One sequence of the backward: [q k v], and one head's columns of the output and its gradient.
struct Given<'a> {
    qkv: MatRef<'a, f32>,
    out: MatRef<'a, f32>,
    dout: MatRef<'a, f32>,
    sums: &'a [f32],
}

/// dq, dk and dv of one sequence and query head, rows × dim.
fn backward_head(
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
        let block = Block {
            position: start,
            first,
            keys,
        };
        slope(heads, probabilities, slopes, block, [sums, &along]);
        let p = MatRef::from_row_major_slice(probabilities, n, keys);
        let d = MatRef::from_row_major_slice(slopes, n, keys);
        let dv = dv.rb_mut().subrows_mut(first, keys);
        matmul(dv, Accum::Add, p.transpose(), dout, 1.0, Par::Seq);
        let dk = dk.rb_mut().subrows_mut(first, keys);
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
        block: Block,
        sums_along: [&[f32]; 2],
    ) -> () {
        let [sums, along] = sums_along;
        let rows = scores.chunks_exact_mut(block.keys);
        let rows = rows.zip(slopes.chunks_exact_mut(block.keys));
        for (i, ((p, d), (sum, along))) in rows.zip(sums.iter().zip(along)).enumerate() {
            let seen = block.visible(heads, i);
            for row in [&mut *p, &mut *d] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            let (p, d) = (&mut p[seen.clone()], &mut d[seen]);
            if let Some(cap) = heads.cap {
                cap_all(p, cap);
                let rate = 1.0 / cap;
                for (y, d) in p.iter_mut().zip(d) {
                    let slope = 1.0 - (*y * rate) * (*y * rate);
                    *y = exp(*y - sum);
                    *d = *y * (*d - along) * slope;
                }
                continue;
            }
            for (p, d) in p.iter_mut().zip(d) {
                *p = exp(*p - sum);
                *d = *p * (*d - along);
            }
        }
    }
}
