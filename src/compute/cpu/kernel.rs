//! The loops: tiles of T in registers, each folded into the weights at once.
//!
//! A tile is 4 rows × 32 columns. The right factor is packed by panels of 32 columns, so that a
//! row of tiles reads it as one stream, whatever its stride was. Tiles at the edge are computed
//! whole over zeros and folded in part.

use std::marker::PhantomData;
use std::ops::Range;

use crate::compute::element::Element;
use crate::compute::stats::Stats;
use crate::compute::update::Update;
use crate::tensor::Kernel;

/// Rows of a tile.
pub(in crate::compute) const ROWS: usize = 4;
pub(in crate::compute) const COLS: usize = 32;
/// Statistics are summed by column modulo this, on every instruction set, so that all agree.
pub(in crate::compute) const LANES: usize = 16;
/// Elements of the packed right factors that one strip of columns may take: half of a 1 MiB L2.
const STRIP: usize = 1 << 17;
/// Tiles between two flushes of the statistics from f32 to f64.
pub(in crate::compute) const FLUSH: usize = 16;

type Tile = [[f32; COLS]; ROWS];

/// The updates of one weight, packed for the kernel.
pub(in crate::compute) struct Product<'a> {
    updates: Vec<Packed<'a>>,
    cols: usize,
    strip: usize,
}

struct Packed<'a> {
    left: &'a [f32],
    /// Panel p, row k of the right factor at `p * rank + k`.
    panels: Vec<[f32; COLS]>,
    rank: usize,
    scale: f32,
}

impl<'a> Product<'a> {
    /// Packs `updates` of a weight of `cols` columns.
    pub(in crate::compute) fn new(updates: &[Update<'a>], cols: usize) -> Self {
        let ranks = updates
            .iter()
            .fold(0usize, |sum, u| sum.saturating_add(u.rank));
        let strip = strip_panels(ranks);
        let updates = updates
            .iter()
            .map(|u| Packed {
                left: u.left,
                panels: pack_panels(u, cols),
                rank: u.rank,
                scale: u.scale,
            })
            .collect();
        Self {
            updates,
            cols,
            strip,
        }
    }

    /// Columns of the weight.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// The left factors of the rows of one tile, k by k; rows past the end are zero.
    #[inline(never)]
    fn load_left(&self, rows: Range<usize>, out: &mut Vec<[f32; ROWS]>) {
        out.clear();
        for u in &self.updates {
            let start = out.len();
            out.resize(start + u.rank, [0.0; ROWS]);
            for (i, row) in rows.clone().enumerate() {
                let from = &u.left[row * u.rank..(row + 1) * u.rank];
                for (to, &x) in out[start..].iter_mut().zip(from) {
                    to[i % ROWS] = x;
                }
            }
        }
    }

    // No closures here: one that is not inlined loses the instruction set, and with it FMA.
    #[inline(always)]
    fn tile<const WIDTH: usize>(&self, left: &[[f32; ROWS]], panel: usize) -> Tile {
        let Some((last, others)) = self.updates.split_last() else {
            return [[0.0; COLS]; ROWS];
        };
        // The last term, mostly the only one, stays in registers; the sum before it does not.
        let (left, own) = left.split_at(left.len() - last.rank);
        let t = last.chain::<WIDTH>(own, panel);
        if others.is_empty() {
            t
        } else {
            add(&sum::<WIDTH>(others, left, panel), &t)
        }
    }

    /// Calls `sink` for every tile. `at` counts from the first of `rows`.
    #[inline(always)]
    fn sweep<const WIDTH: usize, S: Sink>(&self, rows: Range<usize>, sink: &mut S) {
        let mut left = Vec::new();
        let panels = self.cols.div_ceil(COLS);
        for strip in (0..panels).step_by(self.strip) {
            let strip = strip..panels.min(strip + self.strip);
            for row in rows.clone().step_by(ROWS) {
                let height = ROWS.min(rows.end - row);
                self.load_left(row..row + height, &mut left);
                let base = (row - rows.start) * self.cols;
                for first in strip.clone().step_by(FLUSH) {
                    let end = strip.end.min(first + FLUSH);
                    let whole = if height == ROWS {
                        end.min(self.cols / COLS)
                    } else {
                        first
                    };
                    let mut lanes = S::Lanes::default();
                    for panel in first..whole {
                        let t = self.tile::<WIDTH>(&left, panel);
                        sink.take(&t, base + panel * COLS, self.cols, &mut lanes);
                    }
                    for panel in whole..end {
                        let t = self.tile::<WIDTH>(&left, panel);
                        let extent = (height, COLS.min(self.cols - panel * COLS));
                        sink.edge(&t, base + panel * COLS, self.cols, extent, &mut lanes);
                    }
                    sink.flush(&lanes);
                }
            }
        }
    }
}

/// Panels of a strip of columns, for updates of these ranks together.
pub(in crate::compute) fn strip_panels(ranks: usize) -> usize {
    (STRIP / COLS / ranks.max(1)).max(4)
}

/// The right factor of an update of `cols` columns by panels: panel p, row k at `p * rank + k`.
pub(in crate::compute) fn pack_panels(update: &Update<'_>, cols: usize) -> Vec<[f32; COLS]> {
    let mut panels = vec![[0.0; COLS]; cols.div_ceil(COLS) * update.rank];
    for (k, row) in update.right.chunks_exact(cols.max(1)).enumerate() {
        for (p, from) in row.chunks(COLS).enumerate() {
            panels[p * update.rank + k][..from.len()].copy_from_slice(from);
        }
    }
    panels
}

#[inline(always)]
fn sum<const WIDTH: usize>(updates: &[Packed<'_>], left: &[[f32; ROWS]], panel: usize) -> Tile {
    let mut t = [[0.0; COLS]; ROWS];
    let mut start = 0;
    for (n, u) in updates.iter().enumerate() {
        let d = u.chain::<WIDTH>(&left[start..], panel);
        t = if n == 0 { d } else { add(&t, &d) };
        start += u.rank;
    }
    t
}

#[inline(always)]
fn add(a: &Tile, b: &Tile) -> Tile {
    let mut out = [[0.0; COLS]; ROWS];
    for i in 0..ROWS {
        for j in 0..COLS {
            out[i][j] = a[i][j] + b[i][j];
        }
    }
    out
}

impl Packed<'_> {
    /// D for one tile: the chain over k, and the scaling (by 1 it is exact). `left` starts with
    /// the rank rows that belong to this update.
    #[inline(always)]
    fn chain<const WIDTH: usize>(&self, left: &[[f32; ROWS]], panel: usize) -> Tile {
        let panel = &self.panels[panel * self.rank..(panel + 1) * self.rank];
        let mut tile = [[0.0; COLS]; ROWS];
        for at in (0..COLS).step_by(WIDTH) {
            let mut d = [[0.0f32; WIDTH]; ROWS];
            for (b, a) in left.iter().zip(panel) {
                // A copy, so that the compiler sees no alias between the row and the sums:
                // without it the loop is unrolled into scalars.
                let mut row = [0.0; WIDTH];
                row.copy_from_slice(&a[at..at + WIDTH]);
                for i in 0..ROWS {
                    for j in 0..WIDTH {
                        d[i][j] = b[i].mul_add(row[j], d[i][j]);
                    }
                }
            }
            for i in 0..ROWS {
                for j in 0..WIDTH {
                    tile[i][at + j] = self.scale * d[i][j];
                }
            }
        }
        tile
    }
}

/// Where tiles of T go. `at` is the offset of a tile's first element, `cols` the row stride.
trait Sink {
    /// What is kept in registers from tile to tile.
    type Lanes: Default;
    /// A whole tile.
    fn take(&mut self, t: &Tile, at: usize, cols: usize, lanes: &mut Self::Lanes);
    /// A tile of which only the first rows and columns are inside the weight.
    fn edge(
        &mut self,
        t: &Tile,
        at: usize,
        cols: usize,
        extent: (usize, usize),
        lanes: &mut Self::Lanes,
    );
    /// The lanes of the last few tiles; they start afresh.
    fn flush(&mut self, lanes: &Self::Lanes);
}

/// T itself.
pub(super) struct Delta<'a> {
    pub(super) product: &'a Product<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Delta<'_> {
    type Out = ();

    #[inline(always)]
    fn run<const WIDTH: usize>(self) {
        self.product
            .sweep::<WIDTH, _>(self.rows, &mut Write(self.out));
    }
}

struct Write<'a>(&'a mut [f32]);

impl Sink for Write<'_> {
    type Lanes = ();

    #[inline(always)]
    fn take(&mut self, t: &Tile, at: usize, cols: usize, lanes: &mut ()) {
        self.edge(t, at, cols, (ROWS, COLS), lanes);
    }

    #[inline(always)]
    fn edge(
        &mut self,
        t: &Tile,
        at: usize,
        cols: usize,
        (height, width): (usize, usize),
        (): &mut (),
    ) {
        for (i, row) in t.iter().enumerate().take(height) {
            self.0[at + i * cols..][..width].copy_from_slice(&row[..width]);
        }
    }

    fn flush(&mut self, (): &()) {}
}

/// T added to the weights.
pub(super) struct Merge<'a, E: Element, const SAFE: bool> {
    pub(super) product: &'a Product<'a>,
    pub(super) rows: Range<usize>,
    pub(super) weights: &'a mut [E::Raw],
}

impl<E: Element, const SAFE: bool> Kernel for Merge<'_, E, SAFE> {
    type Out = Stats;

    #[inline(always)]
    fn run<const WIDTH: usize>(self) -> Stats {
        let mut fold = Fold::<E, SAFE>::new(self.weights);
        self.product.sweep::<WIDTH, _>(self.rows, &mut fold);
        fold.finish()
    }
}

/// A finished update added to the weights.
pub(super) struct Add<'a, E: Element, const SAFE: bool> {
    pub(super) delta: &'a [f32],
    pub(super) weights: &'a mut [E::Raw],
}

impl<E: Element, const SAFE: bool> Kernel for Add<'_, E, SAFE> {
    type Out = Stats;

    #[inline(always)]
    fn run<const WIDTH: usize>(self) -> Stats {
        let mut fold = Fold::<E, SAFE>::new(self.weights);
        // As if the weight had 32 columns, with its last row cut short.
        const TILE: usize = ROWS * COLS;
        for (n, from) in self.delta.chunks(TILE).enumerate() {
            let mut lanes = Lanes::default();
            let mut t = [[0.0; COLS]; ROWS];
            t.as_flattened_mut()[..from.len()].copy_from_slice(from);
            if from.len() == TILE {
                fold.take(&t, n * TILE, COLS, &mut lanes);
            } else {
                for (i, row) in from.chunks(COLS).enumerate() {
                    t[0] = t[i];
                    fold.edge(&t, n * TILE + i * COLS, COLS, (1, row.len()), &mut lanes);
                }
            }
            fold.flush(&lanes);
        }
        fold.finish()
    }
}

struct Fold<'a, E: Element, const SAFE: bool> {
    weights: &'a mut [E::Raw],
    stats: Stats,
    sums: [[f64; LANES]; 3],
    max_delta: [f32; LANES],
    element: PhantomData<E>,
}

/// Statistics since the last flush, lane by lane.
#[derive(Default)]
struct Lanes {
    delta_sq: [f32; LANES],
    moved_dot: [f32; LANES],
    moved_sq: [f32; LANES],
    max_delta: [f32; LANES],
    changed: u32,
}

impl<E: Element, const SAFE: bool> Sink for Fold<'_, E, SAFE> {
    type Lanes = Lanes;

    #[inline(always)]
    fn take(&mut self, t: &Tile, at: usize, cols: usize, lanes: &mut Lanes) {
        // Straight-line code for the four rows keeps T and the lanes in registers.
        let (w0, rest) = self.weights[at..].split_at_mut(cols);
        let (w1, rest) = rest.split_at_mut(cols);
        let (w2, w3) = rest.split_at_mut(cols);
        let rows = (
            w0.first_chunk_mut(),
            w1.first_chunk_mut(),
            w2.first_chunk_mut(),
            w3.first_chunk_mut(),
        );
        if let (Some(w0), Some(w1), Some(w2), Some(w3)) = rows {
            fold::<E, SAFE>(&t[0], w0, lanes);
            fold::<E, SAFE>(&t[1], w1, lanes);
            fold::<E, SAFE>(&t[2], w2, lanes);
            fold::<E, SAFE>(&t[3], w3, lanes);
        }
    }

    #[inline(always)]
    fn edge(
        &mut self,
        t: &Tile,
        at: usize,
        cols: usize,
        (height, width): (usize, usize),
        lanes: &mut Lanes,
    ) {
        for (i, t) in t.iter().enumerate().take(height) {
            let weights = &mut self.weights[at + i * cols..][..width];
            let (mut t_whole, mut w_whole) = ([0.0; COLS], [E::ZERO; COLS]);
            t_whole[..width].copy_from_slice(&t[..width]);
            w_whole[..width].copy_from_slice(weights);
            fold::<E, SAFE>(&t_whole, &mut w_whole, lanes);
            weights.copy_from_slice(&w_whole[..width]);
        }
    }

    #[inline(always)]
    fn flush(&mut self, lanes: &Lanes) {
        for l in 0..LANES {
            self.sums[0][l] += f64::from(lanes.delta_sq[l]);
            self.sums[1][l] += f64::from(lanes.moved_dot[l]);
            self.sums[2][l] += f64::from(lanes.moved_sq[l]);
            self.max_delta[l] = larger(self.max_delta[l], lanes.max_delta[l]);
        }
        self.stats.changed += u64::from(lanes.changed);
    }
}

impl<'a, E: Element, const SAFE: bool> Fold<'a, E, SAFE> {
    fn new(weights: &'a mut [E::Raw]) -> Self {
        let stats = Stats {
            elements: weights.len() as u64,
            ..Stats::default()
        };
        Self {
            weights,
            stats,
            sums: [[0.0; LANES]; 3],
            max_delta: [0.0; LANES],
            element: PhantomData,
        }
    }

    fn finish(self) -> Stats {
        let [delta_sq, moved_dot, moved_sq] = self.sums.map(|lanes| lanes.iter().sum());
        let max_abs_delta = self.max_delta.into_iter().fold(0.0, larger);
        let mut stats = Stats {
            delta_sq,
            moved_dot,
            moved_sq,
            max_abs_delta,
            ..self.stats
        };
        if !moved_sq.is_finite() {
            // A weight that is not finite now did not move by a finite amount. Rare enough to
            // count them in a second pass.
            let odd = |w: &&E::Raw| !E::widen(**w).is_finite();
            stats.non_finite = self.weights.iter().filter(odd).count() as u64;
        }
        stats
    }
}

#[inline(always)]
fn fold<E: Element, const SAFE: bool>(t: &[f32; COLS], w: &mut [E::Raw; COLS], lanes: &mut Lanes) {
    for at in (0..COLS).step_by(LANES) {
        let mut changed = 0;
        for l in 0..LANES {
            let t = t[at + l];
            let before = w[at + l];
            let old = E::widen(before);
            let new = E::round(old + if SAFE { E::round(t) } else { t });
            let after = E::encode(new);
            w[at + l] = after;

            let moved = new - old;
            lanes.delta_sq[l] = t.mul_add(t, lanes.delta_sq[l]);
            lanes.moved_dot[l] = moved.mul_add(t, lanes.moved_dot[l]);
            lanes.moved_sq[l] = moved.mul_add(moved, lanes.moved_sq[l]);
            lanes.max_delta[l] = larger(lanes.max_delta[l], t.abs());
            changed += u32::from(before != after);
        }
        lanes.changed += changed;
    }
}

/// The larger of two, or `a` where they do not compare: one instruction, unlike `f32::max`.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}
