//! What is known of each line before its numbers: step and model, in few bits.

use super::bits::{BitReader, BitWriter, rice_len};
use super::layout::{Axis, Extents};
use super::model::{Model, SCALES};
use crate::error::{Code, Error, Result};

/// Most bits of a step's mantissa.
pub(super) const MAX_MANTISSA: u8 = 15;
/// Most lower bits of a Rice code.
const MAX_LOW: u8 = 15;

/// What a line's step and scale are above their guesses, whether its shape is its neighbour's, and the shape.
type Residual = (i32, i32, bool, u8);

/// A line that is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The upper 9 + p bits of the step as an F32, p being the bits of mantissa of the tensor's steps.
    pub step: u32,
    /// How its integers are distributed.
    pub model: Model,
}

impl Line {
    /// The step with `mantissa` bits.
    pub fn step(&self, mantissa: u8) -> f32 {
        f32::from_bits(self.step << (23 - mantissa.min(MAX_MANTISSA)))
    }

    /// The nearest step with `mantissa` bits, if it is one.
    pub fn step_near(step: f32, mantissa: u8) -> Option<u32> {
        let shift = 23 - u32::from(mantissa.min(MAX_MANTISSA));
        let bits = (step.to_bits() + (1 << (shift - 1))) >> shift;
        (step.is_normal() && step > 0.0 && f32::from_bits(bits << shift).is_finite())
            .then_some(bits)
    }
}

/// All lines of a tensor, and how they are written.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) axis: Axis,
    pub(super) mantissa: u8,
    /// Matrix by matrix; `None` for lines of zeros.
    pub(super) lines: Vec<Option<Line>>,
}

/// What the next line is likely to be: as the one before in its matrix, or as the first of the matrix before.
struct Guess {
    previous: Line,
    first: Line,
}

impl Guess {
    fn new(mantissa: u8) -> Self {
        let start = Line {
            step: 127 << mantissa,
            model: Model { scale: 8, shape: 0 },
        };
        Self {
            previous: start,
            first: start,
        }
    }

    /// The guess for a line; `opens` for the first of its matrix that is not zero.
    fn next(&self, opens: bool) -> Line {
        if opens { self.first } else { self.previous }
    }

    fn take(&mut self, line: Line, opens: bool) {
        self.previous = line;
        if opens {
            self.first = line;
        }
    }
}

/// The scale that goes with a step: lines of one tensor have the same length mostly after division by
/// the root of what they explain, and the step is what is left by that root.
fn scale_guess(guess: &Line, step: i32, mantissa: u8) -> i32 {
    i32::from(guess.model.scale) - ((16 * step) >> mantissa)
}

impl Side {
    fn residuals(&self, extents: &Extents) -> Vec<Option<Residual>> {
        let mut guess = Guess::new(self.mantissa);
        let per_slice = extents.lines(self.axis);
        let mut found = Vec::with_capacity(self.lines.len());
        for lines in self.lines.chunks(per_slice) {
            let mut opens = true;
            for line in lines {
                found.push(line.map(|line| {
                    let near = guess.next(opens);
                    let step = line.step.cast_signed() - near.step.cast_signed();
                    let scale =
                        i32::from(line.model.scale) - scale_guess(&near, step, self.mantissa);
                    guess.take(line, opens);
                    opens = false;
                    let same = line.model.shape == near.model.shape;
                    (step, scale, same, line.model.shape)
                }));
            }
        }
        found
    }

    pub(super) fn write(&self, extents: &Extents) -> Vec<u8> {
        let residuals = self.residuals(extents);
        let least = |of: &dyn Fn(&Residual) -> i32| {
            let len = |low: &u8| -> u64 {
                let each = residuals.iter().flatten();
                each.map(|r| rice_len(of(r), (*low).into())).sum()
            };
            (0..=MAX_LOW).min_by_key(len).unwrap_or(0)
        };
        let (steps, scales) = (least(&|r| r.0), least(&|r| r.1));
        let mut out = BitWriter::default();
        out.bits(u32::from(self.axis == Axis::Columns), 4);
        for nibble in [self.mantissa, steps, scales] {
            out.bits(nibble.into(), 4);
        }
        for residual in residuals {
            out.bit(residual.is_some());
            if let Some((step, scale, same, shape)) = residual {
                out.rice(step, steps.into());
                out.rice(scale, scales.into());
                out.bit(!same);
                if !same {
                    out.bits(shape.into(), 4);
                }
            }
        }
        out.finish()
    }

    /// What `bytes` begin with, and what follows.
    ///
    /// # Errors
    /// [`Code::CodingInvalid`].
    pub(super) fn read<'a>(bytes: &'a [u8], extents: &Extents) -> Result<(Self, &'a [u8])> {
        let invalid = |m: &str| Error::new(Code::CodingInvalid, m);
        let mut bits = BitReader::new(bytes);
        let axis = match bits.bits(4)? {
            0 => Axis::Rows,
            1 => Axis::Columns,
            other => return Err(invalid(&format!("lines along an axis {other}"))),
        };
        let mantissa = bits.bits(4)? as u8;
        let (steps, scales) = (bits.bits(4)?, bits.bits(4)?);
        let per_slice = extents.lines(axis);
        let count = per_slice * extents.slices;
        // Each line has a bit at least.
        if count.div_ceil(8) > bytes.len() {
            return Err(super::bits::cut_short());
        }
        let mut guess = Guess::new(mantissa);
        let mut lines = Vec::with_capacity(count);
        let mut opens = true;
        for at in 0..count {
            opens |= at.is_multiple_of(per_slice);
            if !bits.bit()? {
                lines.push(None);
                continue;
            }
            let near = guess.next(opens);
            let delta = bits.rice(steps)?;
            let step = near.step.cast_signed().checked_add(delta);
            let step = step.filter(|s| (1 << mantissa..255 << mantissa).contains(s));
            let step = step.ok_or_else(|| invalid("a step is not a normal number above zero"))?;
            let scale = scale_guess(&near, delta, mantissa).checked_add(bits.rice(scales)?);
            let scale = scale.filter(|s| (0..SCALES.into()).contains(s));
            let scale = scale.ok_or_else(|| invalid("a scale is out of range"))? as u8;
            let shape = match bits.bit()? {
                false => near.model.shape,
                true => bits.bits(4)? as u8,
            };
            let line = Line {
                step: step.cast_unsigned(),
                model: Model::new(scale, shape)?,
            };
            guess.take(line, opens);
            opens = false;
            lines.push(Some(line));
        }
        let side = Self {
            axis,
            mantissa,
            lines,
        };
        Ok((side, bits.finish()?))
    }
}
