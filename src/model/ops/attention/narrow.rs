//! Attention of one head on the processor with products of bf16 numbers, as autocast has them: queries, keys, values,
//! probabilities and gradients are rounded where they are multiplied, sums and all else are f32.

use super::super::bf16::{Kernel, Side, UNIT, View, add_product, transposed};
use super::super::vector::{dot, vectorised};
use super::heads::Heads;
use super::scores::{Block, slope, softmax};

/// Query rows handled at a time: a multiple of [`UNIT`].
const BLOCK: usize = 64;

/// Buffers of a thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Queries, and gradients of the output.
    rows: [Side; 2],
    turned: [Side; 2],
    /// Keys and values.
    all: [Side; 3],
    /// Probabilities, and their slopes.
    scores: [Vec<f32>; 2],
    right: [Side; 2],
    left: Side,
}

/// Some query rows, and the keys that they see, from a whole unit on.
struct Part {
    start: usize,
    rows: usize,
    block: Block,
}

impl Part {
    /// Those of `rows` queries, of which the first is at position `before`.
    fn all(heads: &Heads, rows: usize, before: usize) -> impl Iterator<Item = Self> {
        (0..rows).step_by(BLOCK).map(move |start| {
            let n = BLOCK.min(rows - start);
            let first = heads.visible(before + start).start / UNIT * UNIT;
            let block = Block {
                position: before + start,
                first,
                keys: padded(before + start + n - first),
                scale: heads.scale,
            };
            Self {
                start,
                rows: n,
                block,
            }
        })
    }

    /// The keys, in units.
    fn units(&self) -> std::ops::Range<usize> {
        let first = self.block.first / UNIT;
        first..first + self.block.keys / UNIT
    }
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(UNIT)
}

/// The output, rows × dim, and the logarithm of each row's sum, for q (rows × dim), k and v (at least as many rows, the
/// last of which are the queries').
pub(super) fn forward_head(
    kernel: Kernel,
    heads: &Heads,
    [q, k, v]: [View<'_>; 3],
    scratch: &mut Scratch,
) -> (Vec<f32>, Vec<f32>) {
    let Scratch {
        rows: [queries, _],
        all: [keys, values, _],
        scores: [scores, _],
        left: probabilities,
        ..
    } = scratch;
    keys.right_of_transpose(k);
    values.right(v);
    let (rows, wide) = (q.rows(), padded(heads.dim));
    let mut out = vec![0.0; padded(rows) * wide];
    let mut sums = vec![0.0; rows];
    kernel.ready(|| {
        for part in Part::all(heads, rows, k.rows() - rows) {
            let (start, n, block) = (part.start, part.rows, part.block);
            queries.left(q.part(start, n));
            scores.resize(padded(n) * block.keys, 0.0);
            let right = (&*keys, part.units(), 0);
            add_product(kernel, queries, right, (scores, block.keys), false);
            let own = &mut scores[..n * block.keys];
            softmax(heads, own, block, &mut sums[start..start + n]);
            probabilities.left(View::new(own, block.keys, [n, block.keys]));
            let right = (&*values, 0..wide / UNIT, part.units().start);
            let to = (&mut out[start * wide..], wide);
            add_product(kernel, probabilities, right, to, false);
        }
    });
    (narrowed(out, wide, [rows, heads.dim]), sums)
}

/// One head of one sequence of the backward, each rows × dim, and the logarithms of the rows' sums.
pub(super) struct Given<'a> {
    /// Queries, keys and values.
    pub(super) qkv: [View<'a>; 3],
    /// The output and its gradient.
    pub(super) out: [View<'a>; 2],
    pub(super) sums: &'a [f32],
}

/// dq, dk and dv, each rows × dim.
pub(super) fn backward_head(
    kernel: Kernel,
    heads: &Heads,
    given: &Given<'_>,
    scratch: &mut Scratch,
) -> [Vec<f32>; 3] {
    let Scratch {
        rows: [queries, gradients],
        turned: [queries_turned, gradients_turned],
        all: [keys_turned, values_turned, keys],
        scores: [probabilities, slopes],
        right: [right_probabilities, right_slopes],
        left: left_slopes,
    } = scratch;
    let ([q, k, v], [out, dout]) = (given.qkv, given.out);
    keys_turned.right_of_transpose(k);
    values_turned.right_of_transpose(v);
    keys.right(k);
    let (rows, wide) = (q.rows(), padded(heads.dim));
    let long = padded(rows);
    let mut dq = vec![0.0; long * wide];
    // Both turned: their right sides are then P and dS as they are.
    let (mut dk, mut dv) = (vec![0.0; wide * long], vec![0.0; wide * long]);
    let mut along = vec![0.0; rows];
    dots(out, dout, &mut along);
    kernel.ready(|| {
        for part in Part::all(heads, rows, 0) {
            let (start, n, block) = (part.start, part.rows, part.block);
            let (q, dout) = (q.part(start, n), dout.part(start, n));
            queries.left(q);
            gradients.left(dout);
            queries_turned.left_of_transpose(q);
            gradients_turned.left_of_transpose(dout);
            let products = [
                (&*queries, &*keys_turned, &mut *probabilities),
                (&*gradients, &*values_turned, &mut *slopes),
            ];
            for (left, right, to) in products {
                to.resize(padded(n) * block.keys, 0.0);
                let right = (right, part.units(), 0);
                add_product(kernel, left, right, (to, block.keys), false);
            }
            let size = n * block.keys;
            let (p, d) = (&mut probabilities[..size], &mut slopes[..size]);
            let range = start..start + n;
            let lines = [&given.sums[range.clone()], &along[range]];
            slope(heads, p, d, block, lines);
            right_probabilities.right(View::new(p, block.keys, [n, block.keys]));
            let d = View::new(d, block.keys, [n, block.keys]);
            right_slopes.right(d);
            left_slopes.left(d);
            let products = [
                (&*gradients_turned, &*right_probabilities, &mut dv),
                (&*queries_turned, &*right_slopes, &mut dk),
            ];
            for (left, right, to) in products {
                let right = (right, 0..block.keys / UNIT, 0);
                let to = (&mut to[block.first..], long);
                add_product(kernel, left, right, to, true);
            }
            let right = (&*keys, 0..wide / UNIT, part.units().start);
            let to = (&mut dq[start * wide..], wide);
            add_product(kernel, left_slopes, right, to, false);
        }
    });
    let turned = |x: &[f32]| transposed(x, long, [heads.dim, rows]);
    let (dk, dv) = (turned(&dk), turned(&dv));
    [narrowed(dq, wide, [rows, heads.dim]), dk, dv]
}

/// The first rows and columns of `x`, whose rows begin `stride` apart.
fn narrowed(mut x: Vec<f32>, stride: usize, [rows, columns]: [usize; 2]) -> Vec<f32> {
    if stride != columns {
        for row in 1..rows {
            x.copy_within(row * stride..row * stride + columns, row * columns);
        }
    }
    x.truncate(rows * columns);
    x
}

vectorised! {
    /// Σ x·y of each row.
    fn dots(x: View<'_>, y: View<'_>, to: &mut [f32]) -> () {
        for (row, to) in to.iter_mut().enumerate() {
            *to = dot(x.row(row), y.row(row));
        }
    }
}
