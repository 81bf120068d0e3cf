//! Rows of a quantised weight as numbers: what is read for them, and how their work is shared out.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::tensor::{Dtype, narrow_into};

/// Numbers that one thread decodes at a time.
const GRAIN: usize = 1 << 16;

/// The dtype in which a weight's own library gives its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// Always this.
    Fixed(Dtype),
    /// The one that it is asked for.
    Asked,
}

impl Native {
    /// The dtype of the numbers where `asked` is what the model is wanted in.
    pub fn of(self, asked: Dtype) -> Dtype {
        match self {
            Self::Fixed(dtype) => dtype,
            Self::Asked => asked,
        }
    }
}

/// How the rows of one weight are decoded.
pub(super) trait Decoder: fmt::Debug + Send + Sync {
    /// In which dtype the numbers come.
    fn native(&self) -> Native;

    /// Rows that are decoded together at the least.
    fn together(&self) -> usize {
        1
    }

    /// Reads what the rows need.
    fn load(&self, rows: Range<usize>) -> Result<Box<dyn Rows + '_>>;
}

/// What is read for some rows.
pub(super) trait Rows: Sync {
    /// The numbers of `rows`, all of them loaded, row by row into `out`: values of the native dtype
    /// where that is fixed; else f32, rounded into `asked` by the caller.
    fn decode(&self, rows: Range<usize>, asked: Dtype, out: &mut [f32]);
}

/// A part of the output, and the elements that it gets.
struct Piece<'o, T> {
    out: &'o mut [T],
    elements: Range<usize>,
}

/// Cuts the output of `elements` where rows end that are a multiple of `step`.
fn pieces<T>(
    elements: Range<usize>,
    cols: usize,
    step: usize,
    size: usize,
    out: &mut [T],
) -> Vec<Piece<'_, T>> {
    let mut pieces = Vec::new();
    let mut rest = out;
    let mut at = elements.start;
    while at < elements.end {
        let end = ((at / cols / step + 1) * step * cols).min(elements.end);
        let len = ((end - at) * size).min(rest.len());
        let (out, later) = std::mem::take(&mut rest).split_at_mut(len);
        pieces.push(Piece {
            out,
            elements: at..end,
        });
        rest = later;
        at = end;
    }
    pieces
}

/// Runs `each` on the numbers of every piece, in parallel.
fn run<T: Send>(
    decoder: &dyn Decoder,
    cols: usize,
    elements: Range<usize>,
    asked: Dtype,
    (out, size): (&mut [T], usize),
    each: impl Fn(&mut [f32], &mut [T]) + Sync,
) -> Result<()> {
    if elements.is_empty() || cols == 0 {
        return Ok(());
    }
    let rows = elements.start / cols..elements.end.div_ceil(cols);
    let loaded = decoder.load(rows)?;
    let together = decoder.together().max(1);
    let step = (GRAIN / cols / together).max(1) * together;
    let pieces = pieces(elements, cols, step, size, out);
    pieces
        .into_par_iter()
        .for_each_init(Vec::new, |values: &mut Vec<f32>, piece| {
            let Range { start, end } = piece.elements;
            let rows = start / cols..end.div_ceil(cols);
            values.clear();
            values.resize(rows.len() * cols, 0.0);
            loaded.decode(rows.clone(), asked, values);
            let skip = start - rows.start * cols;
            each(&mut values[skip..skip + (end - start)], piece.out);
        });
    Ok(())
}

/// The numbers of `elements` (counted row by row, rows of `cols`) rounded into `dtype`, as little-endian
/// bytes: those that the weight's library gives when it is asked for `dtype`.
pub(super) fn fill(
    decoder: &dyn Decoder,
    cols: usize,
    elements: Range<usize>,
    dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let size = dtype.bits() / 8;
    run(
        decoder,
        cols,
        elements,
        dtype,
        (out, size),
        |values, out| {
            narrow_into(dtype, values, out);
        },
    )
}

/// The numbers of `elements` as f32, exact: in the dtype that the library gives when it is asked for `asked`.
pub(super) fn values(
    decoder: &dyn Decoder,
    cols: usize,
    elements: Range<usize>,
    asked: Dtype,
    out: &mut [f32],
) -> Result<()> {
    let native = decoder.native();
    run(decoder, cols, elements, asked, (out, 1), |values, out| {
        if native == Native::Asked {
            super::codes::round(asked, values);
        }
        out.copy_from_slice(values);
    })
}
