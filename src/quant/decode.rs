//! Rows of a quantised weight as numbers: what is read for them, and how their work is shared out.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::codes::CODES;
use super::held::Held;
use crate::error::Result;
use crate::tensor::{Dtype, look_up, narrow_into};

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

/// A decoded number as it is wanted. Few numbers occur in a weight of few bits, so decoders make tables of them.
pub(super) trait Number: Copy + Default + Send {
    /// Of a value that is exact in f32; rounded to nearest even into `asked`, where this is no f32.
    fn of(value: f32, asked: Dtype) -> Self;

    /// Of each of some values, into `out`.
    fn of_all(values: &[f32], asked: Dtype, out: &mut [Self]) {
        for (o, v) in out.iter_mut().zip(values) {
            *o = Self::of(*v, asked);
        }
    }

    /// The number of each code, of which the low four bits count, into `out`.
    fn look_up(numbers: &[Self; CODES], codes: &[u8], out: &mut [Self]) {
        for (o, code) in out.iter_mut().zip(codes) {
            *o = numbers[usize::from(*code) & (CODES - 1)];
        }
    }
}

impl Number for f32 {
    fn of(value: f32, _asked: Dtype) -> Self {
        value
    }
}

/// The little-endian bytes of F16 or BF16.
impl Number for [u8; 2] {
    fn of(value: f32, asked: Dtype) -> Self {
        match asked {
            Dtype::F16 => f16::from_f32(value).to_le_bytes(),
            _ => bf16::from_f32(value).to_le_bytes(),
        }
    }

    fn of_all(values: &[f32], asked: Dtype, out: &mut [Self]) {
        narrow_into(asked, values, out.as_flattened_mut());
    }

    fn look_up(numbers: &[Self; CODES], codes: &[u8], out: &mut [Self]) {
        look_up(numbers, codes, out);
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

    /// Whether the codes of some rows lie together, so that each thread reads for itself.
    fn lies_by_rows(&self) -> bool {
        true
    }

    /// Reads what the rows need.
    fn load(&self, rows: Range<usize>, held: &Held) -> Result<Box<dyn Rows + '_>>;
}

/// What is read for some rows.
pub(super) trait Decode: Sync {
    /// The numbers of `rows`, all of them loaded, row by row into `out`: values of the native dtype where that is
    /// fixed, else f32, made into what is wanted.
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]);
}

/// [`Decode`] for each kind of number.
pub(super) trait Rows: Sync {
    fn floats(&self, rows: Range<usize>, asked: Dtype, out: &mut [f32]);
    fn halves(&self, rows: Range<usize>, asked: Dtype, out: &mut [[u8; 2]]);
}

impl<R: Decode> Rows for R {
    fn floats(&self, rows: Range<usize>, asked: Dtype, out: &mut [f32]) {
        self.decode(rows, asked, out);
    }

    fn halves(&self, rows: Range<usize>, asked: Dtype, out: &mut [[u8; 2]]) {
        self.decode(rows, asked, out);
    }
}

/// Which part of which weight is wanted, and as what.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'w> {
    pub(super) decoder: &'w dyn Decoder,
    pub(super) held: &'w Held,
    /// Elements of a row.
    pub(super) cols: usize,
    /// Counted row by row.
    pub(super) elements: Range<usize>,
    /// F32, F16 or BF16.
    pub(super) dtype: Dtype,
}

/// A part of the output, and the elements that it gets.
struct Piece<'o, N> {
    out: &'o mut [N],
    elements: Range<usize>,
}

impl Wanted<'_> {
    /// Cuts the output where rows end that are a multiple of `step`.
    fn pieces<'o, N>(&self, step: usize, out: &'o mut [N]) -> Vec<Piece<'o, N>> {
        let mut pieces = Vec::new();
        let mut rest = out;
        let Range { start: mut at, end } = self.elements;
        while at < end {
            let stop = ((at / self.cols / step + 1) * step * self.cols).min(end);
            let len = (stop - at).min(rest.len());
            let (out, later) = std::mem::take(&mut rest).split_at_mut(len);
            pieces.push(Piece {
                out,
                elements: at..stop,
            });
            rest = later;
            at = stop;
        }
        pieces
    }

    /// Runs `decode` for every piece of the output, in parallel.
    fn run<N: Number>(
        &self,
        out: &mut [N],
        decode: impl Fn(&dyn Rows, Range<usize>, &mut [N]) + Sync,
    ) -> Result<()> {
        if self.elements.is_empty() || self.cols == 0 {
            return Ok(());
        }
        let rows_of = |e: &Range<usize>| e.start / self.cols..e.end.div_ceil(self.cols);
        let load = |e: &Range<usize>| self.decoder.load(rows_of(e), self.held);
        let all = match self.decoder.lies_by_rows() {
            true => None,
            false => Some(load(&self.elements)?),
        };
        let together = self.decoder.together().max(1);
        let step = (GRAIN / self.cols / together).max(1) * together;
        let one = |piece: Piece<'_, N>| {
            let own = match &all {
                None => Some(load(&piece.elements)?),
                Some(_) => None,
            };
            let Some(loaded) = own.as_ref().or(all.as_ref()) else {
                return Ok(());
            };
            let rows = rows_of(&piece.elements);
            let skip = piece.elements.start - rows.start * self.cols;
            if skip == 0 && piece.out.len() == rows.len() * self.cols {
                decode(&**loaded, rows, piece.out);
                return Ok(());
            }
            let mut whole = vec![N::default(); rows.len() * self.cols];
            decode(&**loaded, rows, &mut whole);
            piece
                .out
                .copy_from_slice(&whole[skip..skip + piece.out.len()]);
            Ok(())
        };
        self.pieces(step, out).into_par_iter().try_for_each(one)
    }

    /// The numbers rounded into the dtype, as little-endian bytes: those that the weight's library gives when it
    /// is asked for it.
    pub(super) fn fill(&self, out: &mut [u8]) -> Result<()> {
        if self.dtype != Dtype::F32 {
            return self.run(out.as_chunks_mut().0, |loaded, rows, out| {
                loaded.halves(rows, self.dtype, out);
            });
        }
        let mut values = vec![0.0; out.len() / size_of::<f32>()];
        self.values(&mut values)?;
        narrow_into(Dtype::F32, &values, out);
        Ok(())
    }

    /// The numbers as f32, exact: in the dtype that the library gives when it is asked for the wanted one.
    pub(super) fn values(&self, out: &mut [f32]) -> Result<()> {
        let native = self.decoder.native();
        self.run(out, |loaded, rows, out| {
            loaded.floats(rows, self.dtype, out);
            if native == Native::Asked {
                super::codes::round(self.dtype, out);
            }
        })
    }
}
