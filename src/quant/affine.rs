//! MLX's affine integers: one bit stream along a row, the lowest bits first, with a scale and a bias for each
//! group of inputs.

use std::ops::Range;

use super::codes::{CODES, round, unpack};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::packed::FLOATS;
use super::part::Part;
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// Sizes of integers that MLX packs.
const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
/// Bits of a word.
const WORD: usize = u32::BITS as usize;

/// A weight of any number of axes, quantised along its last one: scale · code + bias.
#[derive(Debug)]
pub(super) struct Affine<'a> {
    codes: Part<'a>,
    scales: Part<'a>,
    biases: Part<'a>,
    pub(super) bits: usize,
    pub(super) group: usize,
    /// Groups of a row.
    groups: usize,
}

impl<'a> Affine<'a> {
    pub(super) fn new(
        codes: Part<'a>,
        (scales, biases): (Part<'a>, Part<'a>),
        (bits, group): (usize, usize),
    ) -> Result<Self> {
        codes.is_one_of(&[Dtype::U32], "weight")?;
        scales.is_one_of(&FLOATS, "scales")?;
        biases.is_one_of(&[scales.dtype()], "biases")?;
        let (Some((words, rows)), Some((groups, of_scales))) =
            (codes.shape().split_last(), scales.shape().split_last())
        else {
            return Err(codes.bad("quantised by MLX, and no matrix"));
        };
        biases.has_shape(scales.shape(), "biases")?;
        let fits = BITS.contains(&bits)
            && group > 0
            && rows == of_scales
            && *groups > 0
            && groups.checked_mul(group).and_then(|n| n.checked_mul(bits))
                == words.checked_mul(WORD);
        if !fits {
            let (codes_are, scales_are) = (shape_text(codes.shape()), shape_text(scales.shape()));
            return Err(codes.bad(format!(
                "quantised by MLX: {codes_are} words hold no integers of {bits} bits in groups of {group}, with scales of {scales_are}"
            )));
        }
        Ok(Self {
            codes,
            scales,
            biases,
            bits,
            group,
            groups: *groups,
        })
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        let mut shape = self.codes.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.cols();
        }
        shape
    }

    fn cols(&self) -> usize {
        self.groups * self.group
    }
}

impl Decoder for Affine<'_> {
    fn native(&self) -> Native {
        Native::Fixed(self.scales.dtype())
    }

    fn load(&self, rows: Range<usize>, _held: &Held) -> Result<Box<dyn Rows + '_>> {
        let row = self.cols() * self.bits / 8;
        let groups = rows.start * self.groups..rows.end * self.groups;
        Ok(Box::new(AffineRows {
            weight: self,
            first: rows.start,
            codes: self.codes.bytes(rows.start * row..rows.end * row)?,
            scales: self.scales.floats(groups.clone())?,
            biases: self.biases.floats(groups)?,
        }))
    }
}

struct AffineRows<'w> {
    weight: &'w Affine<'w>,
    first: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

impl AffineRows<'_> {
    /// The numbers of codes: a product that is rounded, and a sum that is.
    fn numbers<N: Number>(
        &self,
        (scale, bias): (f32, f32),
        asked: Dtype,
        values: &mut [f32],
        out: &mut [N],
    ) {
        let dtype = self.weight.scales.dtype();
        values.iter_mut().for_each(|v| *v *= scale);
        round(dtype, values);
        values.iter_mut().for_each(|v| *v += bias);
        round(dtype, values);
        N::of_all(values, asked, out);
    }
}

impl Decode for AffineRows<'_> {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let Affine {
            bits,
            group,
            groups,
            ..
        } = *self.weight;
        let cols = self.weight.cols();
        let row_bytes = cols * bits / 8;
        let mut values = vec![0.0; group];
        let mut codes = vec![0; cols];
        for (row, out) in rows.zip(out.chunks_mut(cols)) {
            let row = row - self.first;
            let bytes = self.codes.get(row * row_bytes..(row + 1) * row_bytes);
            unpack(bits, bytes.unwrap_or_default(), &mut codes);
            let of_groups = out.chunks_mut(group).zip(codes.chunks(group));
            for (g, (out, codes)) in of_groups.enumerate() {
                let at = row * groups + g;
                let of = |part: &[f32]| part.get(at).copied().unwrap_or(f32::NAN);
                let affine = (of(&self.scales), of(&self.biases));
                if bits <= 4 && group >= 2 * CODES {
                    let mut values: [f32; CODES] = std::array::from_fn(|code| code as f32);
                    let mut table = [N::default(); CODES];
                    self.numbers(affine, asked, &mut values, &mut table);
                    N::look_up(&table, codes, out);
                    continue;
                }
                let places = values.iter_mut().zip(codes);
                places.for_each(|(v, code)| *v = f32::from(*code));
                self.numbers(affine, asked, &mut values, out);
            }
        }
    }
}
