//! AWQ: integers of 4 bit, packed into 32-bit words along the outputs.

use std::ops::Range;

use super::codes::{CODES, round};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::packed::FLOATS;
use super::part::{Part, words};
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// The place in an AWQ word of each of its eight outputs.
const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// AWQ as its GEMM kernels store it: words run along the outputs, in an order of their own.
#[derive(Debug)]
pub(super) struct Awq<'a> {
    codes: Part<'a>,
    zeros: Part<'a>,
    scales: Part<'a>,
    inputs: usize,
    outputs: usize,
    groups: usize,
}

impl<'a> Awq<'a> {
    pub(super) fn new(codes: Part<'a>, zeros: Part<'a>, scales: Part<'a>) -> Result<Self> {
        codes.is_one_of(&[Dtype::I32], "qweight")?;
        zeros.is_one_of(&[Dtype::I32], "qzeros")?;
        scales.is_one_of(&FLOATS, "scales")?;
        let ([inputs, packed], [groups, outputs]) = (codes.shape(), scales.shape()) else {
            return Err(codes.bad("quantised by AWQ, and no matrix"));
        };
        let (inputs, groups, outputs) = (*inputs, *groups, *outputs);
        if packed.checked_mul(8) != Some(outputs) {
            let message = format!(
                "quantised by AWQ: {} words of 4 bit for {outputs} outputs",
                shape_text(codes.shape())
            );
            return Err(codes.bad(message));
        }
        if groups == 0 || inputs % groups != 0 {
            return Err(scales.bad(format!(
                "quantised by AWQ: {groups} groups of {inputs} inputs"
            )));
        }
        zeros.has_shape(&[groups, *packed], "qzeros")?;
        Ok(Self {
            codes,
            zeros,
            scales,
            inputs,
            outputs,
            groups,
        })
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        vec![self.outputs, self.inputs]
    }
}

impl Decoder for Awq<'_> {
    fn native(&self) -> Native {
        Native::Fixed(self.scales.dtype())
    }

    fn together(&self) -> usize {
        8
    }

    fn lies_by_rows(&self) -> bool {
        false
    }

    fn load(&self, rows: Range<usize>, held: &Held) -> Result<Box<dyn Rows + '_>> {
        let columns = rows.start / 8..rows.end.div_ceil(8);
        let band = columns.start * 4..columns.end * 4;
        let row = self.outputs / 8 * 4;
        let codes = held.band(&self.codes, 0..self.inputs, row, band.clone())?;
        let zeros = self.zeros.band(0..self.groups, row, band)?;
        let size = self.scales.dtype().bits() / 8;
        let band = columns.start * 8 * size..columns.end * 8 * size;
        let scales = self
            .scales
            .band(0..self.groups, self.outputs * size, band)?;
        Ok(Box::new(AwqRows {
            columns,
            inputs: self.inputs,
            group: self.inputs / self.groups,
            dtype: self.scales.dtype(),
            codes,
            zeros: words(&zeros),
            scales: self.scales.to_floats(&scales)?,
        }))
    }
}

struct AwqRows {
    columns: Range<usize>,
    inputs: usize,
    group: usize,
    dtype: Dtype,
    /// Words of all columns, along the inputs.
    codes: Vec<u8>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
}

impl AwqRows {
    /// Some of the eight rows that share a column of words.
    fn column<N: Number>(&self, column: usize, lanes: Range<usize>, asked: Dtype, out: &mut [N]) {
        let width = self.columns.len();
        let mut words: Vec<u32> = Vec::with_capacity(self.group);
        let mut codes = vec![0; self.group];
        let (all, _) = self.codes.as_chunks();
        for g in 0..self.inputs / self.group.max(1) {
            let place = g * width + column;
            words.clear();
            let of_group = all.iter().skip(g * self.group * width + column);
            let of_group = of_group.step_by(width).take(self.group);
            words.extend(of_group.map(|word| u32::from_le_bytes(*word)));
            let zeros = self.zeros.get(place).copied().unwrap_or(0);
            let mut values = [[0.0; CODES]; AWQ_PLACES.len()];
            for (lane, (values, at)) in values.iter_mut().zip(AWQ_PLACES).enumerate() {
                let zero = ((zeros >> (at * 4)) & 15) as f32;
                let scale = self.scales.get(place * 8 + lane);
                let scale = scale.copied().unwrap_or(f32::NAN);
                *values = std::array::from_fn(|code| (code as f32 - zero) * scale);
            }
            round(self.dtype, values.as_flattened_mut());
            let mut tables = [[N::default(); CODES]; AWQ_PLACES.len()];
            N::of_all(values.as_flattened(), asked, tables.as_flattened_mut());
            let rows = out.chunks_mut(self.inputs.max(1)).zip(lanes.clone());
            for (row, lane) in rows {
                let shift = AWQ_PLACES[lane] * 4;
                for (code, word) in codes.iter_mut().zip(&words) {
                    *code = (word >> shift) as u8;
                }
                let out = row.get_mut(g * self.group..).unwrap_or_default();
                N::look_up(&tables[lane], &codes, out);
            }
        }
    }
}

impl Decode for AwqRows {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let mut out = out;
        let mut row = rows.start;
        while row < rows.end {
            let (column, lane) = (row / 8, row % 8);
            let count = (8 - lane).min(rows.end - row);
            let (part, rest) = std::mem::take(&mut out).split_at_mut(count * self.inputs);
            self.column(column - self.columns.start, lane..lane + count, asked, part);
            out = rest;
            row += count;
        }
    }
}
