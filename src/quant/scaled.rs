//! Codes that stand for numbers by themselves, times a scale: FP8, 8-bit integers, pairs of FP4; a scale for
//! all, for each row, for blocks of a row or of rows and columns.

use std::ops::Range;

use super::codes::{E2M1, E4M3, E5M2, rounded, table};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::part::Part;
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// Elements with one scale from which on a table of all codes is less work than the elements are.
const TABLE: usize = 1024;
/// Rows that tables are made for at a time.
const ROWS: usize = 32;

/// What the codes are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Float(&'static [f32; 256]),
    Int,
    /// Two E2M1 a byte, the low half first.
    Pairs,
}

/// In what the product of a code and its scale is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// In f32, rounded into what is asked for: transformers' FP8.
    Single,
    /// In the scale's dtype: compressed-tensors.
    OfScale(Dtype),
    /// In the dtype that is asked for, into which the scale is rounded first: ModelOpt's FP8.
    Asked,
}

/// A scale of the whole tensor, beside those of its blocks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    /// Scales are divided by it, the quotient rounded into the dtype.
    Divide(f32, Dtype),
    /// Scales are multiplied by it.
    Multiply(f32),
}

/// A weight of codes with a grid of scales.
#[derive(Debug)]
pub(super) struct Scaled<'a> {
    codes: Part<'a>,
    kind: Kind,
    scales: Part<'a>,
    zeros: Option<Part<'a>>,
    grid: Grid,
    product: Product,
    global: Option<Global>,
}

/// Which scale an element has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Rows and columns of one matrix of the weight, which may be a stack of them.
    rows: usize,
    cols: usize,
    /// Rows and columns of the grid of one matrix.
    scale_rows: usize,
    scale_cols: usize,
    /// Whether every matrix has a grid of its own.
    stacked: bool,
    /// Rows and columns of a block.
    pub(super) block: (usize, usize),
}

impl Grid {
    /// The grid of `scales` over a weight of `shape`. `block` is what the config says of a block's rows and
    /// columns.
    pub(super) fn of(
        shape: &[usize],
        scales: &Part<'_>,
        block: Option<(usize, usize)>,
    ) -> Result<Self> {
        let misfit = || {
            scales.bad(format!(
                "these scales of {} do not fit a weight of {}",
                shape_text(scales.shape()),
                shape_text(shape)
            ))
        };
        let (lead, rows, cols) = match *shape {
            [rows, cols] => (1, rows, cols),
            [lead, rows, cols] => (lead, rows, cols),
            _ => return Err(misfit()),
        };
        let (scale_lead, scale_rows, scale_cols) = match *scales.shape() {
            [] | [1] => (1, 1, 1),
            [n] if n == rows && lead == 1 => (1, n, 1),
            [n] if n == lead => (n, 1, 1),
            [n, m] if shape.len() == 2 => (1, n, m),
            [e, n, m] if shape.len() == 3 => (e, n, m),
            _ => return Err(misfit()),
        };
        if ![1, lead].contains(&scale_lead) {
            return Err(misfit());
        }
        let side = |extent: usize, scales: usize, block: Option<usize>| match (scales, block) {
            (0, _) | (_, Some(0)) => None,
            (1, _) => Some(extent.max(1)),
            (n, _) if n == extent => Some(1),
            (n, Some(b)) if extent.div_ceil(b) == n => Some(b),
            (_, Some(_)) => None,
            // Blocks of 128 are what FP8 checkpoints have that say nothing; else the grid divides the weight.
            (n, None) if extent.div_ceil(128) == n => Some(128),
            (n, None) if extent.is_multiple_of(n) => Some(extent / n),
            _ => None,
        };
        let rows_of = side(rows, scale_rows, block.map(|b| b.0));
        let cols_of = side(cols, scale_cols, block.map(|b| b.1));
        Ok(Self {
            rows,
            cols,
            scale_rows,
            scale_cols,
            stacked: scale_lead > 1,
            block: rows_of.zip(cols_of).ok_or_else(misfit)?,
        })
    }

    /// The row of scales that a row of the weight has, counted over all matrices.
    fn scale_row(&self, row: usize) -> usize {
        let (matrix, row) = (row / self.rows.max(1), row % self.rows.max(1));
        let first = if self.stacked {
            matrix * self.scale_rows
        } else {
            0
        };
        first + row / self.block.0
    }
}

impl<'a> Scaled<'a> {
    /// A weight of one code an element.
    pub(super) fn new(
        codes: Part<'a>,
        scales: Part<'a>,
        block: Option<(usize, usize)>,
    ) -> Result<Self> {
        let kind = match codes.dtype() {
            Dtype::F8_E4M3 => Kind::Float(&E4M3),
            Dtype::F8_E5M2 => Kind::Float(&E5M2),
            Dtype::I8 => Kind::Int,
            other => {
                return Err(codes.bad(format!(
                    "quantised, and its codes are {other}, which is not read"
                )));
            }
        };
        Self::with_kind(codes, kind, scales, block, codes.shape())
    }

    /// A weight of two FP4 codes a byte, with a scale for each `group` of a row.
    pub(super) fn pairs(codes: Part<'a>, scales: Part<'a>, group: usize) -> Result<Self> {
        codes.is_one_of(&[Dtype::U8], "a weight of FP4 pairs")?;
        let mut shape = codes.shape().to_vec();
        let last = shape.last_mut().ok_or_else(|| codes.bad("is no matrix"))?;
        *last = last
            .checked_mul(2)
            .ok_or_else(|| codes.bad("is absurdly large"))?;
        let (rows, cols) = match shape[..] {
            [.., rows, cols] => (rows, cols),
            _ => return Err(codes.bad("is no matrix")),
        };
        if cols % group != 0 {
            return Err(codes.bad(format!(
                "has {cols} columns, and no whole groups of {group}"
            )));
        }
        let mut fitting = shape.clone();
        let last = fitting.len() - 1;
        fitting[last] = cols / group;
        debug_assert!(rows == fitting[last - 1]);
        scales.has_shape(&fitting, "weight_scale")?;
        let block = Some((1, group));
        Self::with_kind(codes, Kind::Pairs, scales, block, &shape)
    }

    fn with_kind(
        codes: Part<'a>,
        kind: Kind,
        scales: Part<'a>,
        block: Option<(usize, usize)>,
        shape: &[usize],
    ) -> Result<Self> {
        use Dtype::{BF16, F8_E4M3, F8_E8M0, F16, F32, U8};
        scales.is_one_of(&[F32, BF16, F16, F8_E4M3, F8_E8M0, U8], "a scale")?;
        Ok(Self {
            codes,
            kind,
            scales,
            zeros: None,
            grid: Grid::of(shape, &scales, block)?,
            product: Product::Single,
            global: None,
        })
    }

    pub(super) fn product(self, product: Product) -> Self {
        Self { product, ..self }
    }

    pub(super) fn global(self, global: Global) -> Self {
        let global = Some(global);
        Self { global, ..self }
    }

    /// With zero points, one for each scale.
    pub(super) fn zeros(self, zeros: Part<'a>) -> Result<Self> {
        zeros.is_one_of(&[Dtype::I8], "weight_zero_point")?;
        zeros.has_shape(self.scales.shape(), "weight_zero_point")?;
        let zeros = Some(zeros);
        Ok(Self { zeros, ..self })
    }

    /// Whether one scale serves all, or every row has one: how people call it.
    pub(super) fn grain(&self) -> String {
        let Grid {
            rows,
            cols,
            scale_rows,
            scale_cols,
            block,
            ..
        } = self.grid;
        match (scale_rows, scale_cols) {
            (1, 1) if !(block == (rows, cols) && self.grid.stacked) => "one scale".to_owned(),
            (1, 1) => "a scale for each expert".to_owned(),
            (n, 1) if n == rows => "a scale for each row".to_owned(),
            (n, _) if n == rows => format!("groups of {}", block.1),
            _ => format!("blocks of {} × {}", block.0, block.1),
        }
    }

    /// Whether enough elements have the same scale.
    fn has_tables(&self) -> bool {
        let (rows, cols) = self.grid.block;
        !matches!(self.kind, Kind::Pairs) && rows.saturating_mul(cols) >= TABLE
    }

    fn row_bytes(&self) -> usize {
        match self.kind {
            Kind::Pairs => self.grid.cols / 2,
            _ => self.grid.cols,
        }
    }
}

impl Decoder for Scaled<'_> {
    fn native(&self) -> Native {
        match self.product {
            Product::OfScale(dtype) => Native::Fixed(dtype),
            Product::Single | Product::Asked => Native::Asked,
        }
    }

    fn together(&self) -> usize {
        match self.has_tables() {
            true => self.grid.block.0.clamp(1, ROWS),
            false => 1,
        }
    }

    fn load(&self, rows: Range<usize>, _held: &Held) -> Result<Box<dyn Rows + '_>> {
        let bytes = self.row_bytes();
        let codes = self.codes.bytes(rows.start * bytes..rows.end * bytes)?;
        let (first, last) = (
            self.grid.scale_row(rows.start),
            self.grid.scale_row(rows.end - 1),
        );
        let width = self.grid.scale_cols;
        let range = first * width..(last + 1) * width;
        let mut scales = self.scales.floats(range.clone())?;
        match self.global {
            Some(Global::Divide(by, dtype)) => {
                scales.iter_mut().for_each(|s| *s = rounded(dtype, *s / by));
            }
            Some(Global::Multiply(by)) => scales.iter_mut().for_each(|s| *s *= by),
            None => {}
        }
        let zeros = self.zeros.map(|z| z.bytes(range)).transpose()?;
        let zeros = zeros.map(|z| z.iter().map(|b| f32::from(b.cast_signed())).collect());
        Ok(Box::new(ScaledRows {
            weight: self,
            first: rows.start,
            first_scale: first,
            codes,
            scales,
            zeros,
        }))
    }
}

struct ScaledRows<'w> {
    weight: &'w Scaled<'w>,
    first: usize,
    first_scale: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<f32>>,
}

/// A scale as it multiplies, the zero point that is taken off before, and into what the product is rounded.
#[derive(Debug, Clone, Copy)]
struct Scale {
    by: f32,
    zero: f32,
    dtype: Option<Dtype>,
}

impl Scale {
    fn apply<N: Number>(self, value: f32, asked: Dtype) -> N {
        let product = (value - self.zero) * self.by;
        let product = self.dtype.map_or(product, |dtype| rounded(dtype, product));
        N::of(product, asked)
    }
}

impl ScaledRows<'_> {
    /// The scales of a row.
    fn scales(&self, row: usize, asked: Dtype) -> impl Iterator<Item = Scale> {
        let Scaled { grid, product, .. } = *self.weight;
        let at = (grid.scale_row(row) - self.first_scale) * grid.scale_cols;
        let scales = self.scales.get(at..).unwrap_or_default();
        let zeros = self.zeros.as_ref().and_then(|z| z.get(at..));
        let scales = scales.iter().take(grid.scale_cols).enumerate();
        scales.map(move |(i, scale)| Scale {
            by: match product {
                Product::Asked => rounded(asked, *scale),
                _ => *scale,
            },
            zero: zeros.and_then(|z| z.get(i)).copied().unwrap_or(0.0),
            dtype: match product {
                Product::OfScale(dtype) => Some(dtype),
                _ => None,
            },
        })
    }

    fn codes(&self, row: usize) -> &[u8] {
        let bytes = self.weight.row_bytes();
        let at = (row - self.first) * bytes;
        self.codes.get(at..at + bytes).unwrap_or_default()
    }

    /// As [`Decode::decode`], by tables of all codes for each scale.
    fn by_tables<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let grid = &self.weight.grid;
        let mut of = None;
        let mut tables: Vec<[N; 256]> = Vec::new();
        for (row, out) in rows.zip(out.chunks_mut(grid.cols.max(1))) {
            if of.replace(grid.scale_row(row)) != Some(grid.scale_row(row)) {
                let of_scale = |s: Scale| table(|c| s.apply(self.weight.kind.value(c), asked));
                tables.clear();
                tables.extend(self.scales(row, asked).map(of_scale));
            }
            let width = grid.block.1;
            let blocks = out.chunks_mut(width).zip(self.codes(row).chunks(width));
            for ((out, codes), table) in blocks.zip(&tables) {
                for (o, code) in out.iter_mut().zip(codes) {
                    *o = table[usize::from(*code)];
                }
            }
        }
    }
}

impl Kind {
    /// The number that a code of 8 bits stands for.
    fn value(self, code: u8) -> f32 {
        match self {
            Self::Float(table) => table[usize::from(code)],
            Self::Int => f32::from(code.cast_signed()),
            Self::Pairs => E2M1[usize::from(code & 15)],
        }
    }
}

impl Decode for ScaledRows<'_> {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        if self.weight.has_tables() {
            return self.by_tables(rows, asked, out);
        }
        let Scaled { kind, grid, .. } = *self.weight;
        let width = grid.block.1;
        for (row, out) in rows.zip(out.chunks_mut(grid.cols.max(1))) {
            let codes = self.codes(row);
            let blocks = out.chunks_mut(width).zip(self.scales(row, asked));
            for (i, (out, scale)) in blocks.enumerate() {
                let number = |code: u8| scale.apply(kind.value(code), asked);
                let at = i * width;
                match kind {
                    Kind::Pairs => {
                        for (j, o) in out.iter_mut().enumerate() {
                            let byte = codes.get((at + j) / 2).copied().unwrap_or(0);
                            *o = number(if (at + j) % 2 == 0 { byte } else { byte >> 4 });
                        }
                    }
                    _ => {
                        let codes = codes.get(at..).unwrap_or_default();
                        for (o, code) in out.iter_mut().zip(codes) {
                            *o = number(*code);
                        }
                    }
                }
            }
        }
    }
}
