//! The loops around a block.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::vector::vectorised;
use super::cut::{Block, PACKED, Panel};
use super::kernel::Kernel;
use super::left::{Left, bits};
use super::tile::{STEP, STRIDE, TALL, Target, WIDE};
use super::{amx, avx512};

/// Most panels that are packed together: what they hold stays in the second cache.
const GROUP: usize = 4;
/// Columns of a group.
const GROUPED: usize = GROUP * WIDE;

/// The right side of a product.
pub(super) trait Right: Sync {
    /// Packs panels, each into its [`PACKED`] numbers of `packed`, for a block of K: with zeros behind them.
    fn pack(&self, panels: &[Panel], block: &Block, packed: &mut [u32]);

    /// Asks for what [`pack`](Self::pack) will read: of so many parts of it the one of that number.
    fn ahead(&self, panels: &[Panel], block: &Block, part: [usize; 2]);
}

/// Where a product goes, row-major: the columns of its panels are overwritten.
pub(super) enum Out<'a> {
    /// The sums.
    Sums(&'a mut [MaybeUninit<f32>]),
    /// Numbers, to which the sums are added.
    More(&'a mut [f32]),
    /// The sums, rounded to bf16: their bits.
    Rounded(&'a mut [MaybeUninit<u16>]),
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Sums(to) => to.len(),
            Self::More(to) => to.len(),
            Self::Rounded(to) => to.len(),
        }
    }
}

/// The first number of an [`Out`].
#[derive(Clone, Copy)]
enum Place {
    Sums(*mut f32),
    Rounded(*mut u16),
}

// SAFETY: `multiply` gives each panel, and so each place, to one thread.
unsafe impl Sync for Place {}

/// How a product is cut.
pub(super) struct Cut<'a> {
    /// Side by side.
    pub(super) panels: &'a [Panel],
    /// Of K, in order.
    pub(super) blocks: &'a [Block],
    /// Columns of the product.
    pub(super) width: usize,
}

/// `left` · right, into `out`. Where there are blocks of K, and the panels are all columns, that is all of it.
pub(super) fn multiply(
    kernel: Kernel,
    left: &Left,
    cut: &Cut<'_>,
    right: &dyn Right,
    out: Out<'_>,
) {
    let (panels, width) = (cut.panels, cut.width);
    let adjoin = panels
        .windows(2)
        .all(|two| two[0].columns.end == two[1].columns.start);
    let inside = panels
        .iter()
        .all(|p| p.columns.len() <= WIDE && p.columns.end <= width);
    assert!(
        adjoin && inside && out.len() >= left.rows() * width,
        "panels"
    );
    let more = matches!(out, Out::More(_));
    let place = match out {
        Out::Sums(to) => Place::Sums(to.as_mut_ptr().cast()),
        Out::More(to) => Place::Sums(to.as_mut_ptr()),
        Out::Rounded(to) => Place::Rounded(to.as_mut_ptr().cast()),
    };
    let groups = groups(panels.len(), rayon::current_num_threads());
    let all = groups.par_iter().enumerate().with_max_len(1);
    all.for_each(|(number, group)| {
        let place = &place;
        let next = groups.get(number + 1).map(|group| &panels[group.clone()]);
        let group = Group {
            panels: &panels[group.clone()],
            next: next.unwrap_or_default(),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            kernel.ready(|| {
                // SAFETY: the panels' columns are inside `out`, which was measured, and no other thread has them.
                unsafe { group.multiply(kernel, left, cut, right, (*place, more), scratch) }
            });
        });
    });
}

/// Panels that are packed together, and those that come after them.
struct Group<'a> {
    panels: &'a [Panel],
    next: &'a [Panel],
}

impl Group<'_> {
    /// # Safety
    /// The columns of the panels, in all rows, may be read and written from `place` on; the kernel is ready.
    unsafe fn multiply(
        &self,
        kernel: Kernel,
        left: &Left,
        cut: &Cut<'_>,
        right: &dyn Right,
        (place, more): (Place, bool),
        scratch: &mut Scratch,
    ) {
        let Some(first) = self.panels.first().map(|p| p.columns.start) else {
            return;
        };
        let Scratch {
            packed,
            aside,
            sums,
        } = scratch;
        packed.resize(GROUP * PACKED, 0);
        aside.resize(TALL * WIDE, 0.0);
        // SAFETY: a group's columns are inside its rows, of which there are as many as the left side has.
        let (start, stride) = match place {
            Place::Sums(start) => (unsafe { start.add(first) }, cut.width),
            Place::Rounded(_) => {
                let need = left.rows() * GROUPED;
                sums.resize(need.max(sums.len()), 0.0);
                (sums.as_mut_ptr(), GROUPED)
            }
        };
        let parts = left.rows().div_ceil(TALL);
        let mut step = 0;
        for (at, block) in cut.blocks.iter().enumerate() {
            let steps = block.steps();
            right.pack(self.panels, block, packed);
            for (part, row) in (0..left.rows()).step_by(TALL).enumerate() {
                let rows = left.from(row, step, steps);
                let panels = self.panels.iter().zip(packed.chunks_exact(PACKED));
                for (number, (panel, packed)) in panels.enumerate() {
                    // Little by little: the memory takes few requests at a time, and the next would wait.
                    let of = [part * self.panels.len() + number, parts * self.panels.len()];
                    match cut.blocks.get(at + 1) {
                        Some(block) => right.ahead(self.panels, block, of),
                        None => right.ahead(self.next, &cut.blocks[0], of),
                    }
                    let shape = [(left.rows() - row).min(TALL), panel.columns.len()];
                    // SAFETY: `row` and the panel's columns are where the caller promises, or in `sums`.
                    unsafe {
                        let to = Target {
                            start: start.add(row * stride + panel.columns.start - first),
                            stride,
                            add: at > 0 || more,
                        };
                        let packed = &packed[..steps * STEP];
                        block_into(kernel, rows, packed, steps, to, shape, aside);
                    }
                }
            }
            step += steps;
        }
        if let Place::Rounded(start) = place {
            // SAFETY: as the caller promises.
            unsafe { self.round(sums, left.rows(), start, cut.width) };
        }
    }

    /// Sums of a group, to where they belong.
    ///
    /// # Safety
    /// The columns of the panels, in so many rows of `width`, may be written from `start` on.
    unsafe fn round(&self, sums: &[f32], rows: usize, start: *mut u16, width: usize) {
        let (Some(first), Some(last)) = (self.panels.first(), self.panels.last()) else {
            return;
        };
        let columns = first.columns.start..last.columns.end;
        for (row, sums) in sums.chunks(GROUPED).take(rows).enumerate() {
            // SAFETY: as the caller promises.
            let to = unsafe {
                let start = start.add(row * width + columns.start);
                std::slice::from_raw_parts_mut(start.cast(), columns.len())
            };
            round(&sums[..columns.len()], to);
        }
    }
}

vectorised! {
    fn round(from: &[f32], to: &mut [MaybeUninit<u16>]) -> () {
        for (to, from) in to.iter_mut().zip(from) {
            *to = MaybeUninit::new(bits(*from));
        }
    }
}

/// What a thread keeps from product to product, as clearing it for each takes long.
struct Scratch {
    packed: Vec<u32>,
    /// A block that is not whole.
    aside: Vec<f32>,
    /// Of a group, before they are rounded.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            packed: Vec::new(),
            aside: Vec::new(),
            sums: Vec::new(),
        })
    };
}

/// Panels that are packed together, at most [`GROUP`]: as many groups for each thread, of nearly as many panels, so that
/// threads end together.
fn groups(panels: usize, threads: usize) -> Vec<Range<usize>> {
    let threads = threads.max(1);
    let groups = (panels.div_ceil(threads * GROUP) * threads).min(panels);
    let start = |group| group * panels / groups;
    (0..groups).map(|g| start(g)..start(g + 1)).collect()
}

/// 32 × 32 numbers of a product over `steps` steps of K, into `out`, whose rows begin `stride` apart. The kernel is ready.
pub(super) fn block(
    kernel: Kernel,
    rows: &[u16],
    panel: &[u32],
    steps: usize,
    (out, stride): (&mut [f32], usize),
    add: bool,
) {
    assert!(
        rows.len() >= steps * STRIDE
            && panel.len() >= steps * STEP
            && stride >= WIDE
            && out.len() >= (TALL - 1) * stride + WIDE,
        "a block"
    );
    let to = Target {
        start: out.as_mut_ptr(),
        stride,
        add,
    };
    // SAFETY: the sides have so many steps and the place so much room, as was measured.
    unsafe { tiles(kernel, rows, panel, steps, &to) }
}

/// 32 rows × 32 columns by the kernel's instructions.
///
/// # Safety
/// As for [`amx::block`] and [`avx512::block`]; the kernel is ready.
unsafe fn tiles(kernel: Kernel, rows: &[u16], panel: &[u32], steps: usize, to: &Target) {
    // SAFETY: as the caller promises.
    unsafe {
        match kernel {
            Kernel::Amx => amx::block(rows, panel, steps, to),
            Kernel::Avx512 => avx512::block(rows, panel, steps, to),
        }
    }
}

/// Up to 32 rows × 32 columns of a product.
///
/// # Safety
/// `rows` and `packed` have `steps` steps; the numbers of `to` that `shape` has (rows, columns) may be read and written;
/// the kernel is ready.
unsafe fn block_into(
    kernel: Kernel,
    rows: &[u16],
    packed: &[u32],
    steps: usize,
    to: Target,
    [tall, wide]: [usize; 2],
    aside: &mut [f32],
) {
    let whole = tall == TALL && wide == WIDE;
    let place = match whole {
        true => Target { ..to },
        false => Target {
            start: aside.as_mut_ptr(),
            stride: WIDE,
            add: to.add,
        },
    };
    // SAFETY: as the caller promises; `aside` is 32 × 32 numbers.
    unsafe {
        if !whole && to.add {
            load(to.start, to.stride, tall, wide, aside);
        }
        tiles(kernel, rows, packed, steps, &place);
        if !whole {
            store(to.start, to.stride, tall, wide, aside);
        }
    }
}

/// # Safety
/// `rows` rows of `columns` numbers, `width` apart, may be read from `start` on.
unsafe fn load(start: *const f32, width: usize, rows: usize, columns: usize, to: &mut [f32]) {
    for (row, to) in to.chunks_mut(WIDE).take(rows).enumerate() {
        // SAFETY: as the caller promises.
        let from = unsafe { std::slice::from_raw_parts(start.add(row * width), columns) };
        to[..columns].copy_from_slice(from);
    }
}

/// # Safety
/// As for [`load`], to be written.
unsafe fn store(start: *mut f32, width: usize, rows: usize, columns: usize, from: &[f32]) {
    for (row, from) in from.chunks(WIDE).take(rows).enumerate() {
        // SAFETY: as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(start.add(row * width), columns) };
        to.copy_from_slice(&from[..columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a panel is in no group or in two, one takes more than fit, or one thread has more to do than another
    /// where it need not.
    #[test]
    fn groups_are_of_as_many_panels() {
        for (panels, threads) in [
            (0, 2),
            (1, 2),
            (18, 2),
            (152, 2),
            (28, 3),
            (5, 16),
            (4748, 7),
        ] {
            let groups = groups(panels, threads);
            assert_eq!(groups.iter().map(Range::len).sum::<usize>(), panels);
            assert!(groups.windows(2).all(|two| two[0].end == two[1].start));
            assert!(
                groups
                    .iter()
                    .all(|group| (1..=GROUP).contains(&group.len()))
            );
            assert!(groups.len().is_multiple_of(threads) || groups.len() == panels);
        }
    }
}
