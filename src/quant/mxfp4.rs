//! MXFP4 as gpt-oss stores its experts: blocks of 32 along the inputs, two codes a byte, the low half first, with
//! a power of two for each; the model has them (expert, in, out).

use std::ops::Range;

use super::codes::{E2M1, power_of_two};
use super::decode::{Decoder, Native, Rows};
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

    fn load(&self, rows: Range<usize>) -> Result<Box<dyn Rows + '_>> {
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
                codes: self
                    .blocks
                    .band(outputs.clone(), self.along * BLOCK_BYTES, bytes)?,
                scales: self.scales.band(outputs, self.along, blocks)?,
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

impl ExpertPart {
    /// The rows of block `b`, `within` it.
    fn decode(&self, b: usize, within: Range<usize>, outputs: usize, out: &mut [f32]) {
        for column in 0..outputs {
            let place = column * self.along + b;
            let scale = power_of_two(self.scales.get(place).copied().unwrap_or(0));
            let values = E2M1.map(|v| (f64::from(v) * scale) as f32);
            let codes = self.codes.get(place * BLOCK_BYTES..).unwrap_or_default();
            for (r, row) in within.clone().enumerate() {
                let byte = codes.get(row / 2).copied().unwrap_or(0);
                let code = if row % 2 == 0 { byte & 15 } else { byte >> 4 };
                if let Some(o) = out.get_mut(r * outputs + column) {
                    *o = values[usize::from(code)];
                }
            }
        }
    }
}

impl Rows for Mxfp4Rows {
    fn decode(&self, rows: Range<usize>, _asked: Dtype, out: &mut [f32]) {
        let mut at = rows.start;
        while at < rows.end {
            let part = self.parts.iter().rev().find(|p| p.first <= at);
            let Some(part) = part else { return };
            let (b, start) = ((at - part.first) / BLOCK, (at - part.first) % BLOCK);
            let end = (start + rows.end - at).min(BLOCK);
            let skip = (at - rows.start) * self.outputs;
            let out = out.get_mut(skip..).unwrap_or_default();
            part.decode(b, start..end, self.outputs, out);
            at += end - start;
        }
    }
}
