//! Codes that are read at once although few of them are wanted at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::part::Part;
use crate::error::Result;
use crate::safetensors::Location;

/// Bytes that are held of one tensor at the most.
const MOST: usize = 48 << 20;

/// Some of a tensor's bytes.
type Bytes = (Range<usize>, Arc<Vec<u8>>);

/// The codes of a weight whose words run across its rows: read whole for the first rows that need some of them, and
/// held for the next. What is too much for that is read in bands.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<BTreeMap<Location, Bytes>>);

impl Held {
    /// Of each of `rows` of `part`, `row` bytes long, the bytes in `band`: one row after the other.
    ///
    /// # Errors
    /// Those of [`Part::band`].
    pub(super) fn band(
        &self,
        part: &Part<'_>,
        rows: Range<usize>,
        row: usize,
        band: Range<usize>,
    ) -> Result<Vec<u8>> {
        let len = rows.len().saturating_mul(row);
        if band.start > band.end || band.end > row || band.len() == row || len > MOST {
            return part.band(rows, row, band);
        }
        let whole = self.whole(part, rows.start * row..rows.end * row)?;
        let mut bytes = vec![0; rows.len() * band.len()];
        bytes
            .par_chunks_mut(band.len().max(1))
            .with_min_len(64)
            .zip(whole.par_chunks(row))
            .for_each(|(to, from)| to.copy_from_slice(&from[band.clone()]));
        Ok(bytes)
    }

    fn whole(&self, part: &Part<'_>, range: Range<usize>) -> Result<Arc<Vec<u8>>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = held.get(&part.location).filter(|(r, _)| *r == range) {
            return Ok(Arc::clone(bytes));
        }
        // What is held of it gives its memory back first.
        held.remove(&part.location);
        let bytes = Arc::new(part.bytes(range.clone())?);
        held.insert(part.location, (range, Arc::clone(&bytes)));
        Ok(bytes)
    }
}
