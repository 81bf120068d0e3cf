//! Integers of a few bits, packed into 32-bit words one after the other, the lowest bits first: along a row, as
//! compressed-tensors has them.

use std::ops::Range;

use super::codes::unpack;
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::linear::{Groups, Linear};
use super::part::{Part, words};
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// The dtypes that scales may have.
pub(super) const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
/// Bits of a word.
pub(super) const WORD: usize = u32::BITS as usize;

/// The field of `bits` bits that begins at bit `at` of a stream, of which `word` gives the words.
pub(super) fn field(bits: usize, at: usize, word: impl Fn(usize) -> u32) -> u32 {
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
pub(super) fn bits_of(packed: usize, count: usize) -> Option<usize> {
    let fits = |bits: &usize| (count * bits).div_ceil(WORD) == packed;
    let mut found = (1..=8).filter(fits);
    match (found.next(), found.next()) {
        (Some(bits), None) => Some(bits),
        _ => None,
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
                (!unset).then(|| Groups::of(found))
            }
        };
        Ok(Box::new(PackedBlock {
            weight: self,
            codes: self.codes.bytes(rows.start * row..rows.end * row)?,
            first: rows.start,
            scales,
            zeros,
            input_groups: input_groups.unwrap_or(Groups::Equal(cols / groups)),
        }))
    }
}

struct PackedBlock<'w> {
    weight: &'w PackedRows<'w>,
    first: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<(usize, Vec<u32>)>,
    input_groups: Groups,
}

impl PackedBlock<'_> {
    /// Zero point and scale of each group of a row.
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
            let scale = self.scales.get(at).copied();
            (zero as f32, scale.unwrap_or(f32::NAN))
        };
        (0..(*groups).max(1)).map(of_group).collect()
    }
}

impl Decode for PackedBlock<'_> {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let PackedRows { bits, shape, .. } = self.weight;
        let linear = Linear {
            bits: *bits,
            dtype: self.weight.scales.dtype(),
            groups: &self.input_groups,
        };
        let row_bytes = self.weight.codes.shape().last().copied().unwrap_or(0) * size_of::<u32>();
        let mut codes = vec![0; shape[1]];
        for (row, out) in rows.zip(out.chunks_mut(shape[1].max(1))) {
            let at = (row - self.first) * row_bytes;
            let bytes = self.codes.get(at..at + row_bytes).unwrap_or_default();
            unpack(*bits, bytes, &mut codes);
            linear.row(&codes, &self.of_groups(row), asked, out);
        }
    }
}
