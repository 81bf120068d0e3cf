//! One stored tensor, of which ranges are read.

use std::ops::Range;

use rayon::prelude::*;

use super::codes::{E4M3, E5M2, power_of_two};
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location, SafetensorsFile, TensorInfo};
use crate::tensor::{Dtype, shape_text, widen};

/// A tensor of the checkpoint: a weight's codes, or one of their companions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    file: &'a SafetensorsFile,
    info: &'a TensorInfo,
    pub(super) location: Location,
}

impl<'a> Part<'a> {
    pub(super) fn at(base: &'a Checkpoint, location: Location) -> Self {
        let (file, info) = base.at(location);
        Self {
            file,
            info,
            location,
        }
    }

    pub(super) fn name(&self) -> &'a str {
        &self.info.name
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    pub(super) fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    pub(super) fn byte_len(&self) -> u64 {
        self.info.byte_len()
    }

    pub(super) fn elements(&self) -> usize {
        self.info.shape.iter().product()
    }

    /// An error about this tensor.
    pub(super) fn bad(&self, message: impl Into<String>) -> Error {
        Error::new(Code::BaseDtype, message)
            .tensor(self.name())
            .file(self.file.path())
    }

    /// Fails unless the tensor has one of the dtypes.
    pub(super) fn is_one_of(&self, dtypes: &[Dtype], what: &str) -> Result<()> {
        if dtypes.contains(&self.dtype()) {
            return Ok(());
        }
        let names: Vec<&str> = dtypes.iter().map(|d| d.as_str()).collect();
        let message = format!(
            "{what} is {}, and would have to be {}",
            self.dtype(),
            names.join(" or ")
        );
        Err(self.bad(message))
    }

    /// Fails unless the tensor has this shape.
    pub(super) fn has_shape(&self, shape: &[usize], what: &str) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        let message = format!(
            "{what} is {}, and would have to be {}",
            shape_text(self.shape()),
            shape_text(shape)
        );
        Err(self.bad(message))
    }

    /// The tensor's bytes in `range`, counted from its start.
    pub(super) fn bytes(&self, range: Range<usize>) -> Result<Vec<u8>> {
        if range.start > range.end || range.end as u64 > self.byte_len() {
            return Err(self.bad("is shorter than its companions say"));
        }
        let mut bytes = vec![0; range.len()];
        let start = self.file.file_range(self.info).start;
        self.file.read_at(&mut bytes, start + range.start as u64)?;
        Ok(bytes)
    }

    /// Of each of `rows`, `row` bytes long, the bytes in `band`: one row after the other.
    pub(super) fn band(
        &self,
        rows: Range<usize>,
        row: usize,
        band: Range<usize>,
    ) -> Result<Vec<u8>> {
        let fits = band.start <= band.end
            && band.end <= row
            && rows.start <= rows.end
            && (rows.end as u64).saturating_mul(row as u64) <= self.byte_len();
        if !fits {
            return Err(self.bad("is shorter than its companions say"));
        }
        if band.len() == row {
            return self.bytes(rows.start * row..rows.end * row);
        }
        let mut bytes = vec![0; rows.len() * band.len()];
        let start = self.file.file_range(self.info).start;
        bytes
            .par_chunks_mut(band.len().max(1))
            .with_min_len(64)
            .enumerate()
            .try_for_each(|(i, part)| {
                let at = (rows.start + i) as u64 * row as u64 + band.start as u64;
                self.file.read_at(part, start + at)
            })?;
        Ok(bytes)
    }

    /// The tensor's elements in `range` as f32, exact.
    pub(super) fn floats(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let size = self.dtype().bits() / 8;
        self.to_floats(&self.bytes(range.start * size..range.end * size)?)
    }

    /// Bytes of this tensor's dtype as f32, exact.
    pub(super) fn to_floats(self, bytes: &[u8]) -> Result<Vec<f32>> {
        let table = match self.dtype() {
            Dtype::F8_E4M3 => &E4M3,
            Dtype::F8_E5M2 => &E5M2,
            Dtype::F8_E8M0 | Dtype::U8 => {
                return Ok(bytes.iter().map(|b| power_of_two(*b) as f32).collect());
            }
            dtype => return widen(dtype, bytes).map_err(|e| e.tensor(self.name())),
        };
        Ok(bytes.iter().map(|b| table[usize::from(*b)]).collect())
    }
}

/// Little-endian 32-bit words.
pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    let (chunks, _) = bytes.as_chunks();
    chunks.iter().map(|b| u32::from_le_bytes(*b)).collect()
}
