//! A weight with its updates on the device, and how its blocks are cut up for the kernels.

use bytemuck::NoUninit;
use cudarc::driver::DeviceRepr;

use super::gpu::Gpu;
use super::memory::DeviceMemory;
use super::program::{Functions, Variant};
use crate::compute::cpu::{
    COLS, FLUSH, LANES, ROWS, check_factors, chunk_rows, non_finite, pack_panels, strip_panels,
};
use crate::compute::rounding::Rounding;
use crate::compute::stats::Stats;
use crate::compute::update::Update;
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, larger};

/// Threads that share a unit of work.
const SHARE: usize = 4;
/// Sums of a lane: T·T, (W′−W)·T, (W′−W)·(W′−W).
const SUMS: usize = 3;

/// `Term` of the kernels' text.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct Term {
    left: u64,
    right: u64,
    rank: u32,
    scale: f32,
}

/// `Merge` of the kernels' text.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct MergeArguments {
    base: u64,
    out: u64,
    factors: u64,
    terms: u64,
    sums: u64,
    tops: u64,
    counts: u64,
    first_row: u64,
    rows: u32,
    cols: u32,
    strip: u32,
    groups: u32,
    terms_len: u32,
    pad: u32,
}

/// `Settle` of the kernels' text.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct SettleArguments {
    sums: u64,
    tops: u64,
    counts: u64,
    totals: u64,
    chunk_tops: u64,
    chunk_counts: u64,
    tiles: u32,
    groups: u32,
    per_strip: u32,
    chunk_tiles: u32,
    chunks: u32,
    pad: u32,
}

// SAFETY: both are plain C structures of the kernels' text, field by field, without padding.
#[allow(unsafe_code)]
unsafe impl DeviceRepr for MergeArguments {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl DeviceRepr for SettleArguments {}

/// A stored weight and the updates that are added to it, with its factors on the device.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(super) functions: Functions,
    dtype: Dtype,
    cols: usize,
    strip: usize,
    factors: DeviceMemory,
    terms: DeviceMemory,
    terms_len: u32,
}

impl Weight {
    /// Brings `updates` of a weight of `rows` × `cols` elements of `dtype` to the device.
    ///
    /// # Errors
    /// [`Code::BaseDtype`], [`Code::FactorShape`] as for [`crate::compute::merge_rows`];
    /// [`Code::Backend`] where the device, or what may be taken of it, has no room.
    pub(crate) fn new(
        gpu: &Gpu,
        dtype: Dtype,
        rounding: Rounding,
        updates: &[Update<'_>],
        (rows, cols): (usize, usize),
    ) -> Result<Self> {
        if !dtype.is_float() {
            let message = format!("{dtype} cannot be merged into: it is not one of F32, F16, BF16");
            return Err(Error::new(Code::BaseDtype, message));
        }
        check_factors(updates, &(0..rows), cols)?;
        if !Self::fits((rows, cols)) || updates.is_empty() {
            let message = format!("a weight of {rows}×{cols} is not one for the GPU");
            return Err(Error::new(Code::Backend, message).hint("use the device `cpu`"));
        }
        let ranks: Vec<usize> = updates.iter().map(|u| u.rank).collect();
        let functions = gpu.functions(Variant::new(dtype, rounding, &ranks, cols))?;
        let mut factors: Vec<f32> = Vec::new();
        let mut terms = Vec::with_capacity(updates.len());
        for update in updates {
            // Panels are read in fours, so they lie at multiples of four.
            let right = factors.len() as u64;
            factors.extend(pack_panels(update, cols).as_flattened());
            let left = factors.len() as u64;
            factors.extend(&update.left[..rows * update.rank]);
            factors.resize(factors.len().next_multiple_of(4), 0.0);
            terms.push(Term {
                left,
                right,
                rank: update.rank as u32,
                scale: update.scale,
            });
        }
        Ok(Self {
            functions,
            dtype,
            cols,
            strip: strip_panels(ranks.iter().sum()),
            factors: DeviceMemory::of(gpu, &factors)?,
            terms_len: terms.len() as u32,
            terms: DeviceMemory::of(gpu, &terms)?,
        })
    }

    /// Whether a weight of so many rows and columns is one for the GPU: not narrower than a panel.
    pub(crate) fn fits((rows, cols): (usize, usize)) -> bool {
        cols >= COLS && u32::try_from(rows).is_ok() && u32::try_from(cols).is_ok()
    }

    /// How a block of `rows` of this weight is cut up.
    pub(super) fn cut(&self, rows: usize) -> Cut {
        Cut::new(rows, self.cols, self.strip, self.dtype.bits() / 8)
    }

    /// What both kernels are told to merge the block at `base`, whose first row is `first_row`, into
    /// the one at `out`. The units' statistics go to `unsettled`, the chunks' to `settled`, which have
    /// the lengths that [`Cut::unsettled`] and [`Cut::settled`] end with.
    pub(super) fn arguments(
        &self,
        cut: &Cut,
        first_row: usize,
        [base, out, unsettled, settled]: [u64; 4],
    ) -> (MergeArguments, SettleArguments) {
        let [sums, tops, counts, _] = cut.unsettled().map(|at| unsettled + at as u64);
        let [totals, chunk_tops, chunk_counts, _] = cut.settled().map(|at| settled + at as u64);
        let merge = MergeArguments {
            base,
            out,
            sums,
            tops,
            counts,
            factors: self.factors.at(0),
            terms: self.terms.at(0),
            first_row: first_row as u64,
            rows: cut.rows as u32,
            cols: self.cols as u32,
            strip: self.strip as u32,
            groups: cut.groups as u32,
            terms_len: self.terms_len,
            pad: 0,
        };
        let settle = SettleArguments {
            sums,
            tops,
            counts,
            totals,
            chunk_tops,
            chunk_counts,
            tiles: cut.tiles as u32,
            groups: cut.groups as u32,
            per_strip: cut.per_strip as u32,
            chunk_tiles: (cut.chunk_rows / ROWS) as u32,
            chunks: cut.chunks as u32,
            pad: 0,
        };
        (merge, settle)
    }

    /// Statistics of a merged block: `block` its bytes, `settled` what [`Cut::settled`] places.
    pub(super) fn stats(&self, cut: &Cut, block: &[u8], settled: &[u8]) -> Stats {
        let [totals, tops, counts, end] = cut.settled();
        let totals: Vec<f64> = bytemuck::allocation::pod_collect_to_vec(&settled[totals..tops]);
        let tops: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&settled[tops..counts]);
        let counts: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&settled[counts..end]);
        let bytes = cut.chunk_rows * self.cols * cut.width;
        let mut total = Stats::default();
        let chunks = block.chunks(bytes.max(1)).enumerate();
        for (chunk, block) in chunks {
            let sum = |s: usize| {
                let at = (chunk * SUMS + s) * LANES;
                totals[at..at + LANES].iter().sum::<f64>()
            };
            let own = chunk * SHARE..(chunk + 1) * SHARE;
            let moved_sq = sum(2);
            total.add(&Stats {
                elements: (block.len() / cut.width) as u64,
                changed: counts[own.clone()].iter().map(|c| u64::from(*c)).sum(),
                // As on the processor: a weight that is not finite did not move by a finite amount.
                non_finite: match moved_sq.is_finite() {
                    true => 0,
                    false => non_finite(self.dtype, block),
                },
                delta_sq: sum(0),
                moved_dot: sum(1),
                moved_sq,
                max_abs_delta: tops[own].iter().copied().fold(0.0, larger),
            });
        }
        total
    }
}

/// A block of rows, cut into the units of `merge` and the chunks of `settle`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    rows: usize,
    /// Bytes of an element.
    width: usize,
    /// Rows of tiles.
    tiles: usize,
    /// Flushes in a row of tiles.
    groups: usize,
    /// Flushes in a strip of a row of tiles.
    per_strip: usize,
    chunk_rows: usize,
    chunks: usize,
}

impl Cut {
    fn new(rows: usize, cols: usize, strip: usize, width: usize) -> Self {
        let panels = cols.div_ceil(COLS);
        let per_strip = strip.div_ceil(FLUSH);
        let chunk_rows = chunk_rows(cols);
        Self {
            rows,
            width,
            tiles: rows.div_ceil(ROWS),
            groups: panels / strip * per_strip + (panels % strip).div_ceil(FLUSH),
            per_strip,
            chunk_rows,
            chunks: rows.div_ceil(chunk_rows),
        }
    }

    fn units(&self) -> usize {
        self.tiles * self.groups
    }

    /// The most bytes of settled statistics of a block of `bytes`, whatever the weight's shape.
    pub(super) fn most_settled(bytes: usize) -> usize {
        // Chunks have half of 2^18 elements or more, but for the last; elements two bytes or more.
        let chunks = bytes / 2 / (1 << 17) + 1;
        chunks * (SUMS * LANES * 8 + 2 * SHARE * 4)
    }

    /// Threads of `merge`, and of `settle`.
    pub(super) fn threads(&self) -> [u64; 2] {
        [self.units() * SHARE, self.chunks * SUMS * LANES].map(|n| n as u64)
    }

    /// Where sums, largest values and counts of the units are in their memory, and its length.
    pub(super) fn unsettled(&self) -> [usize; 4] {
        let sums = self.units() * SUMS * LANES * 4;
        let shares = self.units() * SHARE * 4;
        [0, sums, sums + shares, sums + 2 * shares]
    }

    /// The same of the chunks.
    pub(super) fn settled(&self) -> [usize; 4] {
        let totals = self.chunks * SUMS * LANES * 8;
        let shares = self.chunks * SHARE * 4;
        [0, totals, totals + shares, totals + 2 * shares]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where the groups of a row do not cover its panels once each, as the kernel walks them.
    #[test]
    fn groups_cover_the_panels() {
        for (cols, strip) in [
            (1, 4),
            (32, 4),
            (4096, 512),
            (5000, 170),
            (9000, 21),
            (640, 16),
        ] {
            let cut = Cut::new(7, cols, strip, 2);
            let panels = cols.div_ceil(COLS);
            let mut next = 0;
            for group in 0..cut.groups {
                // As in the kernel.
                let start = group / cut.per_strip * strip;
                let strip_end = (start + strip).min(panels);
                let first = start + group % cut.per_strip * FLUSH;
                assert_eq!(first, next, "{cols} {strip}");
                next = (first + FLUSH).min(strip_end);
                assert!(next > first);
            }
            assert_eq!(next, panels);
        }
    }
}
