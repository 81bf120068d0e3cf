//! Attention on the processor, by this project's kernels: 64 rows of scores at a time.

use std::ops::Range;

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::super::bf16::View;
use super::super::fresh::zeros;
use super::super::{f32s, tensor};
use super::heads::{Heads, Past};
use super::narrow::{self, Given};
use super::scores::{Block, slope, softmax};
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
    let tasks = tasks(sequences.len(), heads.q);
    let parts: Vec<_> = (tasks.par_iter())
        .map_init(Scratch::default, |scratch, (s, h)| {
            let range = &sequences[*s];
            let rows = &qkv[range.start * width..range.end * width];
            let columns = heads.columns(*h);
            let own = |column| view(rows, width, column, heads.dim);
            let sides = match cached.get(*s) {
                None => columns.map(own),
                Some((keys, values, len)) => {
                    let column = columns[1] - heads.q * heads.dim;
                    let [k, v] = [keys, values].map(|x| view(&x[..len * w], w, column, heads.dim));
                    [own(columns[0]), k, v]
                }
            };
            match heads.products.kernel().filter(|_| range.len() >= FEW) {
                Some(kernel) => narrow::forward_head(kernel, heads, sides, &mut scratch.narrow),
                None => forward_head(heads, sides.map(matrix), &mut scratch.scores[0]),
            }
        })
        .collect();
    let width = heads.q * heads.dim;
    let mut out = zeros(tokens * width);
    let mut sums = vec![0.0; tokens * heads.q];
    for ((s, h), (_, sum)) in tasks.iter().zip(&parts) {
        for (t, sum) in sequences[*s].clone().zip(sum) {
            sums[t * heads.q + h] = *sum;
        }
    }
    let each = of_each(&mut out, sequences, width);
    each.into_par_iter().enumerate().for_each(|(s, to)| {
        for (h, (part, _)) in parts[s * heads.q..][..heads.q].iter().enumerate() {
            let column = h * heads.dim;
            for (to, part) in to.chunks_exact_mut(width).zip(part.chunks_exact(heads.dim)) {
                to[column..column + heads.dim].copy_from_slice(part);
            }
        }
    });
    Ok((tensor(out, tokens, width)?, sums))
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
        .map_init(Scratch::default, |scratch, (s, h)| {
            let range = &sequences[*s];
            let rows = |stride: usize| range.start * stride..range.end * stride;
            let sums: Vec<f32> = range.clone().map(|t| sums[t * heads.q + h]).collect();
            let given = Given {
                qkv: (heads.columns(*h))
                    .map(|column| view(&qkv[rows(width)], width, column, heads.dim)),
                out: [&out, &dout].map(|x| view(&x[rows(wide)], wide, h * heads.dim, heads.dim)),
                sums: &sums,
            };
            match heads.products.kernel().filter(|_| range.len() >= FEW) {
                Some(kernel) => narrow::backward_head(kernel, heads, &given, &mut scratch.narrow),
                None => backward_head(heads, &given, &mut scratch.scores),
            }
        })
        .collect();
    let mut dqkv = zeros(tokens * width);
    let each = of_each(&mut dqkv, sequences, width);
    each.into_par_iter().enumerate().for_each(|(s, to)| {
        for (h, parts) in parts[s * heads.q..][..heads.q].iter().enumerate() {
            for (part, column) in parts.iter().zip(heads.columns(h)) {
                for (to, part) in to.chunks_exact_mut(width).zip(part.chunks_exact(heads.dim)) {
                    let to = &mut to[column..column + heads.dim];
                    to.iter_mut().zip(part).for_each(|(to, x)| *to += x);
                }
            }
        }
    });
    tensor(dqkv, tokens, width)
}

/// The rows of each sequence, of `width` numbers.
fn of_each<'a>(
    mut all: &'a mut [f32],
    sequences: &[Range<usize>],
    width: usize,
) -> Vec<&'a mut [f32]> {
    let own = |range: &Range<usize>| all.split_off_mut(..range.len() * width);
    let each = sequences.iter().map(own);
    each.map(Option::unwrap_or_default).collect()
}

/// Below this many rows a sequence's products are in f32: packing what it sees would cost more than they do.
const FEW: usize = 16;

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    narrow: narrow::Scratch,
    /// Scores, and their slopes.
    scores: [Vec<f32>; 2],
}

/// All rows of `x`, `stride` numbers each, and `dim` columns from `column` on.
fn view(x: &[f32], stride: usize, column: usize, dim: usize) -> View<'_> {
    let rows = x.len() / stride.max(1);
    View::new(x.get(column..).unwrap_or_default(), stride, [rows, dim])
}

fn matrix(view: View<'_>) -> MatRef<'_, f32> {
    let (values, stride) = view.whole();
    MatRef::from_row_major_slice_with_stride(values, view.rows(), view.columns(), stride)
}

/// Every (sequence, query head), in order.
fn tasks(sequences: usize, heads: usize) -> Vec<(usize, usize)> {
    (0..sequences)
        .flat_map(|s| (0..heads).map(move |h| (s, h)))
        .collect()
}

/// As [`narrow::forward_head`], in f32.
fn forward_head(
    heads: &Heads,
    [q, k, v]: [MatRef<'_, f32>; 3],
    scores: &mut Vec<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (q.nrows(), heads.dim);
    let before = k.nrows() - rows;
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
            scale: 1.0,
        };
        softmax(heads, scores, block, &mut sums[start..start + n]);
        let s = MatRef::from_row_major_slice(scores, n, keys);
        let o = &mut out[start * dim..(start + n) * dim];
        let o = MatMut::from_row_major_slice_mut(o, n, dim);
        matmul(o, Accum::Replace, s, v.subrows(first, keys), 1.0, Par::Seq);
    }
    (out, sums)
}

/// As [`narrow::backward_head`], in f32.
fn backward_head(
    heads: &Heads,
    given: &Given<'_>,
    [probabilities, slopes]: &mut [Vec<f32>; 2],
) -> [Vec<f32>; 3] {
    let [q, k, v] = given.qkv.map(matrix);
    let [out, dout] = given.out.map(matrix);
    let (rows, dim) = (q.nrows(), heads.dim);
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
        let dout = dout.subrows(start, n);
        probabilities.resize(n * keys, 0.0);
        slopes.resize(n * keys, 0.0);
        let p = MatMut::from_row_major_slice_mut(probabilities, n, keys);
        matmul(p, Accum::Replace, qs, ks.transpose(), heads.scale, Par::Seq);
        let d = MatMut::from_row_major_slice_mut(slopes, n, keys);
        matmul(d, Accum::Replace, dout, vs.transpose(), 1.0, Par::Seq);
        let along: Vec<f32> = (0..n)
            .map(|i| {
                let (o, d) = (out.row(start + i), dout.row(i));
                (0..dim).fold(0.0, |acc, j| acc + o[j] * d[j])
            })
            .collect();
        let sums = &given.sums[start..start + n];
        let block = Block {
            position: start,
            first,
            keys,
            scale: 1.0,
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
