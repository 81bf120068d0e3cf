//! MXFP4 as gpt-oss stores its experts: blocks of 32 along the inputs, two codes a byte, the low half first, with
//! a power of two for each; the model has them (expert, in, out).

use std::ops::Range;

use super::codes::{E2M1, power_of_two};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::part::Part;
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// Elements with one scale, and bytes of them.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;

/// The experts' matrices of one module.
#[derive(Debug)]
pub(super) struct Mxfp4<'a> {
    blocks: Part<'a>,
    scales: Part<'a>,
    experts: usize,
    outputs: usize,
    /// Blocks of an output.
    along: usize,
}

impl<'a> Mxfp4<'a> {
    pub(super) fn new(blocks: Part<'a>, scales: Part<'a>) -> Result<Self> {
        blocks.is_one_of(&[Dtype::U8], "MXFP4 blocks")?;
        scales.is_one_of(&[Dtype::U8, Dtype::F8_E8M0], "MXFP4 scales")?;
        let [experts, outputs, along, BLOCK_BYTES] = *blocks.shape() else {
            let shape = shape_text(blocks.shape());
            return Err(blocks.bad(format!(
                "quantised as MXFP4: {shape} is no [experts, outputs, blocks, 16]"
            )));
        };
        scales.has_shape(&[experts, outputs, along], "MXFP4 scales")?;
        if along.checked_mul(BLOCK).is_none() {
            return Err(blocks.bad("is absurdly large"));
        }
        Ok(Self {
            blocks,
            scales,
            experts,
            outputs,
            along,
        })
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        vec![self.experts, self.along * BLOCK, self.outputs]
    }

    fn inputs(&self) -> usize {
        self.along * BLOCK
    }
}

impl Decoder for Mxfp4<'_> {
    fn native(&self) -> Native {
        Native::Asked
    }

    fn together(&self) -> usize {
        BLOCK
    }

    fn lies_by_rows(&self) -> bool {
        false
    }

    fn load(&self, rows: Range<usize>, held: &Held) -> Result<Box<dyn Rows + '_>> {
        let inputs = self.inputs();
        let mut parts = Vec::new();
        let mut at = rows.start;
        while at < rows.end {
            let (expert, start) = (at / inputs, at % inputs);
            let end = (start + rows.end - at).min(inputs);
            let blocks = start / BLOCK..end.div_ceil(BLOCK);
            let outputs = expert * self.outputs..(expert + 1) * self.outputs;
            let bytes = blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES;
            parts.push(ExpertPart {
                first: expert * inputs + blocks.start * BLOCK,
                along: blocks.len(),
                codes: held.band(
                    &self.blocks,
                    outputs.clone(),
                    self.along * BLOCK_BYTES,
                    bytes,
                )?,
                scales: held.band(&self.scales, outputs, self.along, blocks)?,
            });
            at += end - start;
        }
        Ok(Box::new(Mxfp4Rows {
            outputs: self.outputs,
            parts,
        }))
    }
}

/// Some blocks of all outputs of an expert.
struct ExpertPart {
    /// The first row of the output that they hold.
    first: usize,
    along: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

struct Mxfp4Rows {
    outputs: usize,
    parts: Vec<ExpertPart>,
}

/// Columns that are decoded together, so that rows get them in one piece.
const TILE: usize = 16;

/// The numbers of each scale's codes, of those that have occurred.
struct Tables<N>(Vec<Option<[N; 16]>>);

impl<N: Number> Tables<N> {
    fn of(&mut self, scale: u8, asked: Dtype) -> [N; 16] {
        let number = |v: f32| N::of((f64::from(v) * power_of_two(scale)) as f32, asked);
        let slot = self.0.get_mut(usize::from(scale));
        slot.map_or_else(
            || E2M1.map(number),
            |slot| *slot.get_or_insert_with(|| E2M1.map(number)),
        )
    }
}

impl ExpertPart {
    /// The numbers of block `b` of some outputs, row by row.
    fn tile<N: Number>(
        &self,
        b: usize,
        columns: Range<usize>,
        mut table: impl FnMut(u8) -> [N; 16],
    ) -> [[N; TILE]; BLOCK] {
        let mut tile = [[N::default(); TILE]; BLOCK];
        for (c, column) in columns.take(TILE).enumerate() {
            let place = column * self.along + b;
            let values = table(self.scales.get(place).copied().unwrap_or(0));
            let codes = self.codes.get(place * BLOCK_BYTES..).unwrap_or_default();
            for ([low, high], code) in tile.as_chunks_mut().0.iter_mut().zip(codes) {
                low[c] = values[usize::from(code & 15)];
                high[c] = values[usize::from(code >> 4)];
            }
        }
        tile
    }
}

impl Decode for Mxfp4Rows {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let mut tables = Tables(vec![None; 256]);
        let mut at = rows.start;
        while at < rows.end {
            let part = self.parts.iter().rev().find(|p| p.first <= at);
            let Some(part) = part else { return };
            let (b, start) = ((at - part.first) / BLOCK, (at - part.first) % BLOCK);
            let end = (start + rows.end - at).min(BLOCK);
            let skip = (at - rows.start) * self.outputs;
            let out = out.get_mut(skip..).unwrap_or_default();
            for first in (0..self.outputs).step_by(TILE) {
                let columns = first..self.outputs.min(first + TILE);
                let tile = part.tile(b, columns.clone(), |scale| tables.of(scale, asked));
                let rows = out.chunks_mut(self.outputs).zip(&tile[start..end]);
                for (row, values) in rows {
                    row[columns.clone()].copy_from_slice(&values[..columns.len()]);
                }
            }
            at += end - start;
        }
    }
}
