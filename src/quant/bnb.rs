//! bitsandbytes: 4 bit (nf4, fp4), with scales of blocks that may be quantised themselves, and LLM.int8.

use std::ops::Range;

use serde_json::Value;

use super::codes::{CODES, FP4, NF4, round, table};
use super::decode::{Decode, Decoder, Native, Number, Rows};
use super::held::Held;
use super::part::Part;
use crate::error::Result;
use crate::tensor::{Dtype, shape_text};

/// Longest `quant_state` that is read; bitsandbytes writes about 200 bytes.
pub(super) const MAX_STATE: u64 = 1 << 16;
/// The block sizes that bitsandbytes has kernels for.
const BLOCKS: Range<usize> = 32..4097;
/// Blocks whose tables are made at once.
const TABLES: usize = 32;
/// 1/127 as bitsandbytes has it.
const INT8_UNIT: f32 = 7.874_016e-3;

/// A 4-bit weight: the codes of all elements one after the other, the first in the high half of its byte.
#[derive(Debug)]
pub(super) struct Bnb4<'a> {
    codes: Part<'a>,
    absmax: Part<'a>,
    nested: Option<Nested>,
    table: &'static [f32; 16],
    block: usize,
    dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) is_nf4: bool,
}

/// How `absmax` is quantised.
#[derive(Debug)]
struct Nested {
    absmax: Vec<f32>,
    map: Vec<f32>,
    block: usize,
    offset: f32,
}

/// The companions of a 4-bit weight.
#[derive(Debug, Default, Clone)]
pub(super) struct Bnb4Parts<'a> {
    pub(super) absmax: Option<Part<'a>>,
    pub(super) nested_absmax: Option<Part<'a>>,
    pub(super) nested_map: Option<Part<'a>>,
    pub(super) state: Option<(Part<'a>, bool)>,
}

impl<'a> Bnb4<'a> {
    pub(super) fn new(codes: Part<'a>, parts: &Bnb4Parts<'a>) -> Result<Self> {
        let lacks = |what: &str| {
            codes.bad(format!(
                "quantised by bitsandbytes (4 bit), and its {what} is missing"
            ))
        };
        let (state_part, is_nf4) = parts.state.ok_or_else(|| lacks("quant_state"))?;
        let absmax = parts.absmax.ok_or_else(|| lacks("absmax"))?;
        let kind = if is_nf4 { "nf4" } else { "fp4" };
        let bad = |what: &str| {
            state_part.bad(format!(
                "quantised by bitsandbytes ({kind}), and its quant_state {what}"
            ))
        };
        if state_part.byte_len() > MAX_STATE {
            return Err(bad("is far too long"));
        }
        let bytes = state_part.bytes(0..state_part.byte_len() as usize)?;
        let state: Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(&format!("is no JSON: {e}")))?;
        let number = |key: &str| state.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let shape = state.get("shape").and_then(Value::as_array);
        let shape: Option<Vec<usize>> =
            shape.and_then(|s| s.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        let shape = shape.ok_or_else(|| bad("has no shape"))?;
        let block = number("blocksize").ok_or_else(|| bad("has no blocksize"))?;
        if !BLOCKS.contains(&block) || !block.is_power_of_two() {
            return Err(bad(&format!("has a blocksize of {block}")));
        }
        let quant_type = state.get("quant_type").and_then(Value::as_str);
        if quant_type.is_some_and(|t| t != kind) {
            return Err(bad("names another kind"));
        }
        let dtype = match state.get("dtype").and_then(Value::as_str) {
            Some("bfloat16") => Dtype::BF16,
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => return Err(bad("has no dtype of bfloat16, float16 or float32")),
        };
        let elements = elements(&shape).ok_or_else(|| bad("has an absurd shape"))?;
        let (packed, unit) = (elements.div_ceil(2) as u64, codes.dtype().bits() as u64 / 8);
        if codes.byte_len() != packed.next_multiple_of(unit.max(1)) {
            let message = format!(
                "has {} bytes of codes, and {} of 4 bit would take {packed}",
                codes.byte_len(),
                shape_text(&shape)
            );
            return Err(codes.bad(message));
        }
        let blocks = elements.div_ceil(block);
        absmax.has_shape(&[blocks], "absmax")?;
        let nested = match parts.nested_absmax {
            None => {
                absmax.is_one_of(&[Dtype::F32], "absmax")?;
                None
            }
            Some(nested_absmax) => {
                absmax.is_one_of(&[Dtype::U8], "absmax")?;
                nested_absmax.is_one_of(&[Dtype::F32], "nested_absmax")?;
                let map = parts.nested_map.ok_or_else(|| lacks("nested_quant_map"))?;
                map.is_one_of(&[Dtype::F32], "nested_quant_map")?;
                map.has_shape(&[256], "nested_quant_map")?;
                let nested_block = number("nested_blocksize").filter(|b| (1..=1 << 20).contains(b));
                let block = nested_block.ok_or_else(|| bad("has no fitting nested_blocksize"))?;
                let offset = state.get("nested_offset").and_then(Value::as_f64);
                let offset = offset.ok_or_else(|| bad("has no nested_offset"))?;
                nested_absmax.has_shape(&[blocks.div_ceil(block)], "nested_absmax")?;
                Some(Nested {
                    absmax: nested_absmax.floats(0..nested_absmax.elements())?,
                    map: map.floats(0..256)?,
                    block,
                    offset: offset as f32,
                })
            }
        };
        Ok(Self {
            codes,
            absmax,
            nested,
            table: if is_nf4 { &NF4 } else { &FP4 },
            block,
            dtype,
            shape,
            is_nf4,
        })
    }

    pub(super) fn is_nested(&self) -> bool {
        self.nested.is_some()
    }

    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The scales of some blocks.
    fn scales(&self, blocks: Range<usize>) -> Result<Vec<f32>> {
        let Some(nested) = &self.nested else {
            return self.absmax.floats(blocks);
        };
        let codes = self.absmax.bytes(blocks.clone())?;
        let scale = |(i, code): (usize, &u8)| {
            let absmax = nested.absmax.get((blocks.start + i) / nested.block);
            nested.map[usize::from(*code)] * absmax.copied().unwrap_or(f32::NAN) + nested.offset
        };
        Ok(codes.iter().enumerate().map(scale).collect())
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    product.filter(|n| *n > 0 && *n < 1 << 48)
}

impl Decoder for Bnb4<'_> {
    fn native(&self) -> Native {
        Native::Fixed(self.dtype)
    }

    fn load(&self, rows: Range<usize>, _held: &Held) -> Result<Box<dyn Rows + '_>> {
        let (start, end) = (rows.start * self.cols(), rows.end * self.cols());
        let blocks = start / self.block..end.div_ceil(self.block);
        Ok(Box::new(Bnb4Rows {
            weight: self,
            first_byte: start / 2,
            first_block: blocks.start,
            codes: self.codes.bytes(start / 2..end.div_ceil(2))?,
            scales: self.scales(blocks)?,
        }))
    }
}

struct Bnb4Rows<'w> {
    weight: &'w Bnb4<'w>,
    first_byte: usize,
    first_block: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Decode for Bnb4Rows<'_> {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let Bnb4 {
            table,
            block,
            dtype,
            ..
        } = self.weight;
        let cols = self.weight.cols();
        let (mut at, end) = (rows.start * cols, rows.end * cols);
        let mut out = out;
        let bytes = self.codes.get(at / 2 - self.first_byte..);
        let unpacked = halves(bytes.unwrap_or_default());
        let mut codes = unpacked.get(at % 2..).unwrap_or_default();
        let mut values = Vec::with_capacity(TABLES * table.len());
        let mut tables = [[N::default(); CODES]; TABLES];
        while at < end {
            let first = at / block;
            let scales = self.scales.iter().skip(first - self.first_block);
            values.clear();
            for scale in scales.take(TABLES) {
                values.extend(table.map(|v| v * scale));
            }
            round(*dtype, &mut values);
            let made = &mut tables[..values.len() / table.len()];
            N::of_all(&values, asked, made.as_flattened_mut());
            if made.is_empty() {
                return;
            }
            for (number, numbers) in (first..).zip(made.iter()) {
                let stop = ((number + 1) * block).min(end);
                let (part, rest) = std::mem::take(&mut out).split_at_mut(stop - at);
                let (own, later) = codes.split_at(part.len().min(codes.len()));
                N::look_up(numbers, own, part);
                (out, codes) = (rest, later);
                at = stop;
                if at == end {
                    break;
                }
            }
        }
    }
}

/// The codes that bytes hold, two each, the high half first.
fn halves(bytes: &[u8]) -> Vec<u8> {
    let mut codes = vec![0; 2 * bytes.len()];
    for (pair, byte) in codes.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = [byte >> 4, byte & 15];
    }
    codes
}

/// LLM.int8: a code times its row's SCB, over 127.
#[derive(Debug)]
pub(super) struct Int8<'a> {
    codes: Part<'a>,
    scales: Part<'a>,
}

impl<'a> Int8<'a> {
    pub(super) fn new(codes: Part<'a>, scales: Part<'a>, format: Option<Part<'a>>) -> Result<Self> {
        codes.is_one_of(&[Dtype::I8], "a weight with SCB")?;
        scales.is_one_of(&[Dtype::F32], "SCB")?;
        let [rows, _] = *codes.shape() else {
            return Err(codes.bad("quantised by bitsandbytes (int8), and no matrix"));
        };
        if scales.elements() != rows {
            scales.has_shape(&[rows], "SCB")?;
        }
        if let Some(format) = format
            && (format.byte_len() != 1 || format.bytes(0..1)? != [0])
        {
            return Err(format.bad(
                "quantised by bitsandbytes (int8) in a layout of columns, which its library no longer reads",
            ));
        }
        Ok(Self { codes, scales })
    }
}

impl Decoder for Int8<'_> {
    fn native(&self) -> Native {
        Native::Fixed(Dtype::F32)
    }

    fn load(&self, rows: Range<usize>, _held: &Held) -> Result<Box<dyn Rows + '_>> {
        let cols = self.codes.shape().last().copied().unwrap_or(1);
        Ok(Box::new(Int8Rows {
            first: rows.start,
            cols,
            codes: self.codes.bytes(rows.start * cols..rows.end * cols)?,
            scales: self.scales.floats(rows)?,
        }))
    }
}

struct Int8Rows {
    first: usize,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Decode for Int8Rows {
    fn decode<N: Number>(&self, rows: Range<usize>, asked: Dtype, out: &mut [N]) {
        let from = rows.start - self.first;
        let codes = self.codes.chunks(self.cols.max(1)).skip(from);
        let scales = self.scales.iter().skip(from);
        for ((out, codes), scale) in out.chunks_mut(self.cols.max(1)).zip(codes).zip(scales) {
            let number = |code: u8| f32::from(code.cast_signed()) * scale * INT8_UNIT;
            let values = table(|code| N::of(number(code), asked));
            for (o, code) in out.iter_mut().zip(codes) {
                *o = values[usize::from(*code)];
            }
        }
    }
}
