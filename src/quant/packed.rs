//! Integers of a few bits, packed into 32-bit words one after the other, the lowest bits first: GPTQ along
//! the inputs, compressed-tensors along a row.

use std::ops::Range;

use super::codes::{CODES, round, rounded};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::part::{Part, words};
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// The dtypes that scales may have.
pub(super) const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
/// Bits of a word.
const WORD: usize = u32::BITS as usize;

/// The field of `bits` bits that begins at bit `at` of a stream, of which `word` gives the words.
fn field(bits: usize, at: usize, word: impl Fn(usize) -> u32) -> u32 {
    let (index, shift) = (at / WORD, at % WORD);
    let low = word(index) >> shift;
    let have = WORD - shift;
    let value = match have < bits {
        true => low | (word(index + 1) << have),
        false => low,
    };
    value & ((1 << bits) - 1)
}

/// How many bits an integer has, where `packed` words hold `count` of them.
fn bits_of(packed: usize, count: usize) -> Option<usize> {
    let fits = |bits: &usize| (count * bits).div_ceil(WORD) == packed;
    let mut found = (1..=8).filter(fits);
    match (found.next(), found.next()) {
        (Some(bits), None) => Some(bits),
        _ => None,
    }
}

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
    fn input_groups(&self) -> Result<Vec<u32>> {
        let Some(part) = &self.groups_of else {
            let size = self.inputs / self.groups;
            return Ok((0..self.inputs).map(|i| (i / size) as u32).collect());
        };
        let found = words(&part.bytes(0..self.inputs * 4)?);
        match found.iter().any(|g| *g as usize >= self.groups) {
            true => Err(part.bad(format!("names a group that is none of the {}", self.groups))),
            false => Ok(found),
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
        let codes = held.band(&self.codes, 0..packed, self.outputs * 4, band)?;
        let size = self.scales.dtype().bits() / 8;
        let band = rows.start * size..rows.end * size;
        let scales = self
            .scales
            .band(0..self.groups, self.outputs * size, band)?;
        Ok(Box::new(GptqRows {
            bits: self.bits,
            inputs: self.inputs,
            dtype: self.scales.dtype(),
            codes: words(&codes),
            groups: self.input_groups()?,
            scales: self.scales.to_floats(&scales)?,
            zeros: self.zero_points(&rows)?,
            rows,
        }))
    }
}

struct GptqRows {
    bits: usize,
    inputs: usize,
    dtype: Dtype,
    rows: Range<usize>,
    codes: Vec<u32>,
    groups: Vec<u32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl GptqRows {
    /// The number of a code, with the scale and the zero point at `place`.
    fn number<N: Number>(&self, code: u32, place: usize, asked: Dtype) -> N {
        let value = (code as f32 - self.zeros[place]) * self.scales[place];
        N::of(rounded(self.dtype, value), asked)
    }

    /// A row of codes of at most 4 bits, none of them in two words.
    fn by_tables<N: Number>(&self, row: usize, asked: Dtype, out: &mut [N]) {
        let (width, per) = (self.rows.len(), WORD / self.bits);
        let mask = (1u32 << self.bits) - 1;
        let mut values = Vec::with_capacity(self.scales.len() / width.max(1) * CODES);
        for place in (row..self.scales.len()).step_by(width) {
            let (zero, scale) = (self.zeros[place], self.scales[place]);
            values.extend((0..CODES).map(|code| (code as f32 - zero) * scale));
        }
        round(self.dtype, &mut values);
        let mut tables = vec![[N::default(); CODES]; values.len() / CODES];
        N::of_all(&values, asked, tables.as_flattened_mut());
        let words = self.codes.iter().skip(row).step_by(width);
        let groups = self.groups.chunks(per);
        for ((out, groups), word) in out.chunks_mut(per).zip(groups).zip(words) {
            let mut word = *word;
            for (o, group) in out.iter_mut().zip(groups) {
                *o = tables[*group as usize][(word & mask) as usize];
                word >>= self.bits;
            }
        }
    }

    /// A row of codes of any size.
    fn one_by_one<N: Number>(&self, row: usize, asked: Dtype, out: &mut [N]) {
        let width = self.rows.len();
        let word = |i: usize| self.codes.get(i * width + row).copied().unwrap_or(0);
        for (i, (o, group)) in out.iter_mut().zip(&self.groups).enumerate() {
            let code = field(self.bits, i * self.bits, word);
            *o = self.number(code, *group as usize * width + row, asked);
        }
    }
}

impl Decode for GptqRows {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        for (row, out) in rows.zip(out.chunks_mut(self.inputs.max(1))) {
            let row = row - self.rows.start;
            match WORD.is_multiple_of(self.bits) && self.bits <= 4 {
                true => self.by_tables(row, asked, out),
                false => self.one_by_one(row, asked, out),
            }
        }
    }
}

/// compressed-tensors' `pack-quantized`: words run along a row; zero points, where there are any, along the
/// outputs. Both are signed integers with the sign's weight added.
#[derive(Debug)]
pub(super) struct PackedRows<'a> {
    codes: Part<'a>,
    scales: Part<'a>,
    zeros: Option<Part<'a>>,
    groups_of: Option<Part<'a>>,
    pub(super) bits: usize,
    pub(super) shape: [usize; 2],
    groups: usize,
}

impl<'a> PackedRows<'a> {
    pub(super) fn new(
        codes: Part<'a>,
        (scales, shape): (Part<'a>, Part<'a>),
        (zeros, groups_of): (Option<Part<'a>>, Option<Part<'a>>),
        bits: &[usize],
    ) -> Result<Self> {
        codes.is_one_of(&[Dtype::I32], "weight_packed")?;
        scales.is_one_of(&FLOATS, "weight_scale")?;
        shape.is_one_of(&[Dtype::I64, Dtype::I32], "weight_shape")?;
        shape.has_shape(&[2], "weight_shape")?;
        let bytes = shape.bytes(0..shape.byte_len() as usize)?;
        let numbers: Vec<u64> = match shape.dtype() {
            Dtype::I64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| u64::from_le_bytes(*b))
                .collect(),
            _ => words(&bytes).into_iter().map(u64::from).collect(),
        };
        let ([rows, cols], [stored_rows, packed]) = (&numbers[..], codes.shape()) else {
            return Err(codes.bad("quantised by compressed-tensors, and no matrix"));
        };
        if *rows != *stored_rows as u64 || *cols > (*packed as u64).saturating_mul(32) {
            return Err(shape.bad(format!(
                "weight_shape says {rows} × {cols}, the weight has {} words",
                shape_text(codes.shape())
            )));
        }
        let (rows, cols) = (*stored_rows, *cols as usize);
        let fits = |bits: &&usize| (cols * **bits).div_ceil(WORD) == *packed;
        let said = bits.iter().find(fits).copied();
        let bits = said
            .filter(|b| (1..=8).contains(b))
            .or_else(|| bits_of(*packed, cols));
        let bits = bits.ok_or_else(|| {
            codes.bad("quantised by compressed-tensors, and it is not told of how many bits")
        })?;
        let groups = match *scales.shape() {
            [] | [1] => 0,
            [n, groups] if n == rows && groups > 0 && cols % groups == 0 => groups,
            _ => {
                return Err(scales.bad(format!(
                    "these scales of {} do not fit a weight of [{rows}, {cols}]",
                    shape_text(scales.shape())
                )));
            }
        };
        if let Some(zeros) = &zeros {
            zeros.is_one_of(&[Dtype::I32], "weight_zero_point")?;
            zeros.has_shape(
                &[(rows * bits).div_ceil(WORD), groups.max(1)],
                "weight_zero_point",
            )?;
        }
        if let Some(groups_of) = &groups_of {
            groups_of.is_one_of(&[Dtype::I32], "weight_g_idx")?;
            groups_of.has_shape(&[cols], "weight_g_idx")?;
        }
        Ok(Self {
            codes,
            scales,
            zeros,
            groups_of,
            bits,
            shape: [rows, cols],
            groups,
        })
    }

    pub(super) fn grain(&self) -> String {
        match self.groups {
            0 => "one scale".to_owned(),
            1 => "a scale for each row".to_owned(),
            n => format!("groups of {}", self.shape[1] / n),
        }
    }
}

impl Decoder for PackedRows<'_> {
    fn native(&self) -> Native {
        Native::Fixed(self.scales.dtype())
    }

    fn load(&self, rows: Range<usize>, _held: &Held) -> Result<Box<dyn Rows + '_>> {
        let [_, cols] = self.shape;
        let row = self.codes.shape().last().copied().unwrap_or(0) * 4;
        let scales = match self.groups {
            0 => self.scales.floats(0..1)?,
            n => self.scales.floats(rows.start * n..rows.end * n)?,
        };
        let groups = self.groups.max(1);
        let zeros = match &self.zeros {
            None => None,
            Some(zeros) => {
                let band = rows.start * self.bits / WORD..(rows.end * self.bits).div_ceil(WORD);
                let bytes = zeros.bytes(band.start * groups * 4..band.end * groups * 4)?;
                Some((band.start, words(&bytes)))
            }
        };
        let input_groups = match &self.groups_of {
            None => None,
            Some(part) => {
                let found = words(&part.bytes(0..cols * 4)?);
                // A group of −1 is what is written where there is no order.
                let unset = found.contains(&u32::MAX);
                if !unset && found.iter().any(|g| *g as usize >= groups) {
                    return Err(part.bad(format!("names a group that is none of the {groups}")));
                }
                (!unset).then_some(found)
            }
        };
        Ok(Box::new(PackedBlock {
            weight: self,
            codes: self.codes.bytes(rows.start * row..rows.end * row)?,
            first: rows.start,
            scales,
            zeros,
            input_groups,
        }))
    }
}

struct PackedBlock<'w> {
    weight: &'w PackedRows<'w>,
    first: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<(usize, Vec<u32>)>,
    input_groups: Option<Vec<u32>>,
}

impl PackedBlock<'_> {
    /// Scale and zero point of each group of a row.
    fn of_groups(&self, row: usize) -> Vec<(f32, f32)> {
        let PackedRows { bits, groups, .. } = self.weight;
        let sign = 1u32 << (bits - 1);
        let of_group = |g: usize| {
            let at = if *groups == 0 {
                0
            } else {
                (row - self.first) * groups + g
            };
            let zero = self.zeros.as_ref().map_or(sign, |(start, words)| {
                let word = |i: usize| {
                    words
                        .get((i - start) * (*groups).max(1) + g)
                        .copied()
                        .unwrap_or(0)
                };
                field(*bits, row * bits, word)
            });
            (
                self.scales.get(at).copied().unwrap_or(f32::NAN),
                zero as f32,
            )
        };
        (0..(*groups).max(1)).map(of_group).collect()
    }
}

impl Decode for PackedBlock<'_> {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let PackedRows {
            bits,
            shape: [_, cols],
            groups,
            ..
        } = self.weight;
        let dtype = self.weight.scales.dtype();
        let number = |code: u32, (scale, zero): (f32, f32)| -> N {
            N::of(rounded(dtype, (code as f32 - zero) * scale), asked)
        };
        let row_words = self.weight.codes.shape().last().copied().unwrap_or(0);
        let (mask, group_size) = ((1u32 << bits) - 1, cols / (*groups).max(1));
        for (row, out) in rows.zip(out.chunks_mut((*cols).max(1))) {
            let at = (row - self.first) * row_words * 4;
            let bytes = self.codes.get(at..at + row_words * 4).unwrap_or_default();
            let code = |i: usize| {
                let (byte, shift) = (i * bits / 8, i * bits % 8);
                let low = bytes.get(byte).copied().unwrap_or(0);
                let high = bytes.get(byte + 1).copied().unwrap_or(0);
                ((u32::from(low) | u32::from(high) << 8) >> shift) & mask
            };
            let of_groups = self.of_groups(row);
            if let Some(input_groups) = &self.input_groups {
                for (i, (o, g)) in out.iter_mut().zip(input_groups).enumerate() {
                    *o = number(code(i), of_groups[*g as usize]);
                }
                continue;
            }
            let groups = out.chunks_mut(group_size.max(1)).zip(&of_groups);
            for (g, (out, of_group)) in groups.enumerate() {
                let codes = (g * group_size..).map(code);
                if group_size >> bits < 2 {
                    let numbers = out.iter_mut().zip(codes);
                    numbers.for_each(|(o, code)| *o = number(code, *of_group));
                    continue;
                }
                let table: Vec<N> = (0..=mask).map(|code| number(code, *of_group)).collect();
                for (o, code) in out.iter_mut().zip(codes) {
                    *o = table[code as usize];
                }
            }
        }
    }
}
