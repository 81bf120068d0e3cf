//! Products with few tokens, shared out by rows of the weights.

use std::ops::Range;

use rayon::prelude::*;

/// Fills `out`, tokens × all rows of the pieces side by side: `make` is told a piece's number and up to `step` of its rows, and
/// fills tokens × rows of numbers. What `start` makes is kept from one to the next on a thread.
pub(super) fn by_rows<S>(
    pieces: &[Range<usize>],
    step: usize,
    out: &mut [f32],
    start: impl Fn() -> S + Sync + Send,
    make: impl Fn(&mut S, usize, Range<usize>, &mut [f32]) + Sync + Send,
) {
    let width: usize = pieces.iter().map(Range::len).sum();
    let tokens = out.len() / width.max(1);
    let (mut tasks, mut column) = (Vec::new(), 0);
    for (number, piece) in pieces.iter().enumerate() {
        for first in piece.clone().step_by(step.max(1)) {
            let rows = first..(first + step.max(1)).min(piece.end);
            tasks.push((number, rows.clone(), column));
            column += rows.len();
        }
    }
    let parts: Vec<Vec<f32>> = tasks
        .par_iter()
        .map_init(start, |kept, (number, rows, _)| {
            let mut part = vec![0.0; tokens * rows.len()];
            make(kept, *number, rows.clone(), &mut part);
            part
        })
        .collect();
    for ((_, rows, column), part) in tasks.iter().zip(&parts) {
        for (out, part) in out.chunks_mut(width).zip(part.chunks(rows.len())) {
            out[*column..column + rows.len()].copy_from_slice(part);
        }
    }
}
