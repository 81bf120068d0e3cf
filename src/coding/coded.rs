//! A tensor's integers as bytes, and the numbers of such bytes.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::bits::cut_short;
use super::layout::{Axis, Extents};
use super::leb128::{read_leb128, write_leb128};
use super::model::Model;
use super::side::{Line, Side};
use super::stream::{StreamReader, StreamWriter, Tables, tables};
use crate::error::{Code, Error, Result};

/// The integers of a tensor, line by line.
#[derive(Debug)]
pub struct Coded {
    /// What a line is.
    pub axis: Axis,
    /// Bits of mantissa of the steps, at most 15.
    pub mantissa: u8,
    /// Of every line: matrix by matrix; `None` for zeros.
    pub lines: Vec<Option<(Line, Vec<i32>)>>,
}

/// The bytes of a tensor's integers.
///
/// # Errors
/// [`Code::CodingInvalid`] for lines that are not those of the extents, or an integer of 2^23 or more.
pub fn encode(coded: &Coded, extents: &Extents) -> Result<Vec<u8>> {
    let (per_slice, len) = (extents.lines(coded.axis), extents.line_len(coded.axis));
    let fits = |l: &Option<(Line, Vec<i32>)>| l.as_ref().is_none_or(|l| l.1.len() == len);
    if coded.lines.len() != per_slice * extents.slices || !coded.lines.iter().all(fits) {
        return Err(Error::new(
            Code::CodingInvalid,
            "the lines do not fit the tensor",
        ));
    }
    let side = Side {
        axis: coded.axis,
        mantissa: coded.mantissa,
        lines: coded.lines.iter().map(|l| Some(l.as_ref()?.0)).collect(),
    };
    let known = all_tables(&side.lines);
    let per_stream = per_slice * extents.slices_per_stream();
    let stream = |lines: &[Option<(Line, Vec<i32>)>]| {
        let mut writer = StreamWriter::default();
        for (line, integers) in lines.iter().flatten() {
            if let Some(tables) = known.get(&line.model) {
                writer.line(line.model, tables, integers)?;
            }
        }
        Ok(writer.finish())
    };
    let streams = coded.lines.par_chunks(per_stream).map(stream);
    let streams = streams.collect::<Result<Vec<_>>>()?;
    let mut bytes = side.write(extents);
    for words in &streams {
        write_leb128(words.len(), &mut bytes);
    }
    bytes.extend(streams.iter().flatten().flat_map(|w| w.to_le_bytes()));
    Ok(bytes)
}

/// The numbers of coded bytes, row-major: each rn32(step · multiple).
///
/// # Errors
/// [`Code::CodingInvalid`] for bytes that [`encode`] does not make; [`Code::NonFinite`].
pub fn decode(bytes: &[u8], extents: &Extents) -> Result<Vec<f32>> {
    let parsed = Parsed::of(bytes, extents)?;
    let mut out = vec![0.0; extents.slices * extents.slice_len()];
    let per_stream = extents.slices_per_stream();
    out.par_chunks_mut(per_stream * extents.slice_len())
        .zip(
            parsed
                .side
                .lines
                .par_chunks(per_stream * extents.lines(parsed.side.axis)),
        )
        .zip(&parsed.streams)
        .try_for_each(|((out, lines), words)| parsed.stream(extents, lines, words, out))?;
    match out.iter().position(|x| !x.is_finite()) {
        None => Ok(out),
        Some(at) => {
            let message = format!("element {at}, a multiple of its step, is not finite");
            Err(Error::new(Code::NonFinite, message))
        }
    }
}

/// Checks what [`decode`] does without holding the numbers.
///
/// # Errors
/// Those of [`decode`].
pub fn check(bytes: &[u8], extents: &Extents) -> Result<()> {
    let parsed = Parsed::of(bytes, extents)?;
    let axis = parsed.side.axis;
    let per_stream = extents.slices_per_stream() * extents.lines(axis);
    let each = parsed
        .side
        .lines
        .par_chunks(per_stream)
        .zip(&parsed.streams);
    each.try_for_each(|(lines, words)| {
        let mut reader = StreamReader::new(words)?;
        for line in lines.iter().flatten() {
            let mut largest = 0;
            if let Some(tables) = parsed.tables.get(&line.model) {
                let take = |_, multiple: i32| largest = largest.max(multiple.unsigned_abs());
                reader.line(line.model, tables, extents.line_len(axis), take)?;
            }
            if !(line.step(parsed.side.mantissa) * largest as f32).is_finite() {
                let message = "a multiple of its step is not finite";
                return Err(Error::new(Code::NonFinite, message));
            }
        }
        reader.finish()
    })
}

/// Coded bytes in their parts.
struct Parsed {
    side: Side,
    streams: Vec<Vec<u32>>,
    tables: BTreeMap<Model, Tables>,
}

impl Parsed {
    fn of(bytes: &[u8], extents: &Extents) -> Result<Self> {
        let (side, mut rest) = Side::read(bytes, extents)?;
        let count = extents.slices.div_ceil(extents.slices_per_stream());
        if count > rest.len() {
            return Err(cut_short());
        }
        let lengths = (0..count).map(|_| read_leb128(&mut rest));
        let lengths = lengths.collect::<Result<Vec<usize>>>()?;
        let (words, []) = rest.as_chunks::<4>() else {
            return Err(cut_short());
        };
        let mut words = words;
        let mut streams = Vec::with_capacity(count);
        for length in lengths {
            let (own, others) = words.split_at_checked(length).ok_or_else(cut_short)?;
            streams.push(own.iter().map(|w| u32::from_le_bytes(*w)).collect());
            words = others;
        }
        if !words.is_empty() {
            let message = "the coded bytes hold more than their streams";
            return Err(Error::new(Code::CodingInvalid, message));
        }
        let tables = all_tables(&side.lines);
        Ok(Self {
            side,
            streams,
            tables,
        })
    }

    fn stream(
        &self,
        extents: &Extents,
        lines: &[Option<Line>],
        words: &[u32],
        out: &mut [f32],
    ) -> Result<()> {
        let (axis, mut reader) = (self.side.axis, StreamReader::new(words)?);
        let (per_slice, len) = (extents.lines(axis), extents.line_len(axis));
        let slices = out
            .chunks_mut(extents.slice_len())
            .zip(lines.chunks(per_slice));
        for (out, lines) in slices {
            for (at, line) in lines.iter().enumerate() {
                let Some(line) = line else { continue };
                let Some(tables) = self.tables.get(&line.model) else {
                    continue;
                };
                let step = line.step(self.side.mantissa);
                let (first, stride) = (extents.place(axis, at, 0), extents.place(axis, at, 1));
                let stride = stride - first;
                reader.line(line.model, tables, len, |i, multiple| {
                    if let Some(place) = out.get_mut(first + i * stride) {
                        *place = step * multiple as f32;
                    }
                })?;
            }
        }
        reader.finish()
    }
}

/// The tables of all models that lines have.
fn all_tables(lines: &[Option<Line>]) -> BTreeMap<Model, Tables> {
    let mut models: Vec<Model> = lines.iter().flatten().map(|l| l.model).collect();
    models.sort_unstable();
    models.dedup();
    models.into_par_iter().map(|m| (m, tables(m))).collect()
}

#[cfg(test)]
mod tests;
