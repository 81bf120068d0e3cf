//! GPTQ: integers of 2, 3, 4 or 8 bits, packed into 32-bit words one after the other along the inputs, the lowest
//! bits first.

use std::ops::Range;

use super::codes::unpack;
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::linear::{Groups, Linear};
use super::packed::{FLOATS, WORD, bits_of, field};
use super::part::{Part, words};
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// GPTQ: (q − z) · scale; words run along the inputs, zero points along the outputs.
#[derive(Debug)]
pub(super) struct Gptq<'a> {
    codes: Part<'a>,
    zeros: Part<'a>,
    scales: Part<'a>,
    groups_of: Option<Part<'a>>,
    pub(super) bits: usize,
    /// Whether zero points are stored less one.
    off_by_one: bool,
    inputs: usize,
    outputs: usize,
    groups: usize,
}

impl<'a> Gptq<'a> {
    pub(super) fn new(
        codes: Part<'a>,
        (zeros, scales, groups_of): (Part<'a>, Part<'a>, Option<Part<'a>>),
        bits: Option<usize>,
        off_by_one: bool,
    ) -> Result<Self> {
        codes.is_one_of(&[Dtype::I32], "qweight")?;
        zeros.is_one_of(&[Dtype::I32], "qzeros")?;
        scales.is_one_of(&FLOATS, "scales")?;
        let ([packed, outputs], [groups, _]) = (codes.shape(), scales.shape()) else {
            return Err(codes.bad("quantised by GPTQ, and no matrix"));
        };
        let (packed, outputs, groups) = (*packed, *outputs, *groups);
        scales.has_shape(&[groups, outputs], "scales")?;
        let inputs = match &groups_of {
            Some(groups_of) => {
                groups_of.is_one_of(&[Dtype::I32], "g_idx")?;
                Some(groups_of.elements())
            }
            None => bits.filter(|b| *b > 0).map(|b| packed * WORD / b),
        };
        let inputs = inputs.ok_or_else(|| {
            codes.bad("quantised by GPTQ, and neither a config nor g_idx says of how many bits")
        })?;
        let found = bits_of(packed, inputs);
        let bits = found.filter(|b| [2, 3, 4, 8].contains(b) && (inputs * b).is_multiple_of(WORD));
        let bits = bits.ok_or_else(|| {
            let shape = shape_text(codes.shape());
            codes.bad(format!(
                "quantised by GPTQ: {shape} words hold no {inputs} inputs of 2, 3, 4 or 8 bits"
            ))
        })?;
        if groups == 0 || groups > inputs || (groups_of.is_none() && inputs % groups != 0) {
            return Err(scales.bad(format!(
                "quantised by GPTQ: {groups} groups of {inputs} inputs"
            )));
        }
        zeros.has_shape(&[groups, (outputs * bits).div_ceil(WORD)], "qzeros")?;
        Ok(Self {
            codes,
            zeros,
            scales,
            groups_of,
            bits,
            off_by_one,
            inputs,
            outputs,
            groups,
        })
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        vec![self.outputs, self.inputs]
    }

    /// The group of each input.
    fn input_groups(&self) -> Result<Groups> {
        let Some(part) = &self.groups_of else {
            return Ok(Groups::Equal(self.inputs / self.groups));
        };
        let found = words(&part.bytes(0..self.inputs * 4)?);
        match found.iter().any(|g| *g as usize >= self.groups) {
            true => Err(part.bad(format!("names a group that is none of the {}", self.groups))),
            false => Ok(Groups::of(found)),
        }
    }

    /// The zero points of some outputs, group by group.
    fn zero_points(&self, outputs: &Range<usize>) -> Result<Vec<f32>> {
        let row = self.zeros.shape().last().copied().unwrap_or(0);
        let band = outputs.start * self.bits / WORD..(outputs.end * self.bits).div_ceil(WORD);
        // A field of 3 bits may begin a word before; streams of whole 32 outputs never do so at their start.
        let bytes = self
            .zeros
            .band(0..self.groups, row * 4, band.start * 4..band.end * 4)?;
        let one = match self.bits {
            2 => 0x5555_5555u32,
            4 => 0x1111_1111,
            8 => 0x0101_0101,
            _ => 0,
        };
        let mut found = words(&bytes);
        let mask = (1u32 << self.bits) - 1;
        if self.off_by_one {
            found.iter_mut().for_each(|w| *w = w.wrapping_add(one));
        }
        let more = u32::from(self.off_by_one && one == 0);
        let mut out = Vec::with_capacity(self.groups * outputs.len());
        for words in found.chunks(band.len().max(1)) {
            for o in outputs.clone() {
                let at = o * self.bits - band.start * WORD;
                let zero = field(self.bits, at, |i| words.get(i).copied().unwrap_or(0));
                out.push(((zero + more) & mask) as f32);
            }
        }
        Ok(out)
    }
}

impl Decoder for Gptq<'_> {
    fn native(&self) -> Native {
        Native::Fixed(self.scales.dtype())
    }

    fn together(&self) -> usize {
        16
    }

    fn lies_by_rows(&self) -> bool {
        false
    }

    fn load(&self, rows: Range<usize>, held: &Held) -> Result<Box<dyn Rows + '_>> {
        let packed = self.codes.shape().first().copied().unwrap_or(0);
        let band = rows.start * 4..rows.end * 4;
        let size = self.scales.dtype().bits() / 8;
        let of_scales = rows.start * size..rows.end * size;
        let scales = self
            .scales
            .band(0..self.groups, self.outputs * size, of_scales)?;
        Ok(Box::new(GptqRows {
            bits: self.bits,
            inputs: self.inputs,
            dtype: self.scales.dtype(),
            codes: held.band(&self.codes, 0..packed, self.outputs * 4, band)?,
            groups: self.input_groups()?,
            scales: self.scales.to_floats(&scales)?,
            zeros: self.zero_points(&rows)?,
            rows,
        }))
    }
}

/// Rows whose words are turned at once: those of a cache line.
const TILE: usize = 16;
/// Bytes after a row's words: rows whose length is a power of two would meet in the cache.
const APART: usize = 64;

struct GptqRows {
    bits: usize,
    inputs: usize,
    dtype: Dtype,
    rows: Range<usize>,
    /// Words of all rows, along the inputs.
    codes: Vec<u8>,
    groups: Groups,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl GptqRows {
    /// The words of `count` rows from the loaded row `first` on, one row after the other, each `stride` bytes long.
    fn turn(&self, first: usize, count: usize, stride: usize, turned: &mut [u8]) {
        let line = self.rows.len().max(1) * size_of::<u32>();
        for (word, line) in self.codes.chunks_exact(line).enumerate() {
            let words = line.as_chunks::<4>().0.get(first..first + count);
            let rows = turned.chunks_exact_mut(stride);
            for (row, code) in rows.zip(words.unwrap_or_default()) {
                if let Some(to) = row.as_chunks_mut().0.get_mut(word) {
                    *to = *code;
                }
            }
        }
    }
}

impl Decode for GptqRows {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let linear = Linear {
            bits: self.bits,
            dtype: self.dtype,
            groups: &self.groups,
        };
        let (width, len) = (self.rows.len(), self.inputs * self.bits / 8);
        let stride = len + APART;
        let mut turned = vec![0; TILE * stride];
        let mut codes = vec![0; self.inputs];
        let mut of_groups = Vec::with_capacity(self.scales.len() / width.max(1));
        let tiles = out.chunks_mut(TILE * self.inputs.max(1));
        for (start, out) in (rows.start - self.rows.start..).step_by(TILE).zip(tiles) {
            let out = out.chunks_mut(self.inputs.max(1));
            self.turn(start, out.len(), stride, &mut turned);
            for ((row, words), out) in (start..).zip(turned.chunks(stride)).zip(out) {
                of_groups.clear();
                let zeros = self.zeros.iter().skip(row).step_by(width);
                let scales = self.scales.iter().skip(row).step_by(width);
                of_groups.extend(zeros.copied().zip(scales.copied()));
                unpack(self.bits, &words[..len], &mut codes);
                linear.row(&codes, &of_groups, asked, out);
            }
        }
    }
}
