//! Where the update of a part goes: of an expert of a fused parameter, or of one of the weights that a
//! tensor joins.

use crate::adapter::Module;
use crate::base::cut::{Chunk, Cut, Flip, Piece};

/// Entries of an axis: `start`, `start + step`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first.
    pub start: usize,
    /// From one to the next.
    pub step: usize,
    /// How many.
    pub len: usize,
}

/// Which part of an update is added to which part of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// Rows of the tensor, all axes but the last taken for one.
    pub rows: Span,
    /// Columns: entries of the last axis.
    pub cols: Span,
    /// The update's outputs.
    pub outs: Span,
    /// The update's inputs.
    pub ins: Span,
    /// Whether rows are inputs.
    pub transposed: bool,
}

impl Span {
    /// All of an axis.
    pub(super) fn all(len: usize) -> Self {
        Self {
            start: 0,
            step: 1,
            len,
        }
    }

    /// Part `part` of an axis of `len`; `None` where the parts are not of the same length.
    fn chunk(len: usize, chunk: Chunk) -> Option<Self> {
        let Chunk {
            part,
            of,
            interleaved,
            ..
        } = chunk;
        if of == 0 || part >= of || !len.is_multiple_of(of) {
            return None;
        }
        let own = len / of;
        Some(match interleaved {
            true => Self {
                start: part,
                step: of,
                len: own,
            },
            false => Self {
                start: part * own,
                step: 1,
                len: own,
            },
        })
    }

    /// The places among its entries of those that are in `start..end` of the axis.
    pub(super) fn within(&self, start: usize, end: usize) -> std::ops::Range<usize> {
        let place = |at: usize| at.saturating_sub(self.start).div_ceil(self.step.max(1));
        let last = place(end).min(self.len);
        place(start).min(last)..last
    }

    fn is_apart(&self, other: &Self) -> bool {
        let end = |s: &Self| s.start + s.step * s.len.saturating_sub(1) + usize::from(s.len > 0);
        let off = |a: &Self, b: &Self| {
            a.step == b.step && !a.start.abs_diff(b.start).is_multiple_of(a.step.max(1))
        };
        end(self) <= other.start || end(other) <= self.start || off(self, other)
    }
}

impl Region {
    /// Whether no element of the tensor is in both.
    pub(super) fn is_apart(&self, other: &Self) -> bool {
        self.rows.is_apart(&other.rows) || self.cols.is_apart(&other.cols)
    }
}

/// The update of a module: its extents, and whether the class has its weight (in, out).
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) out: usize,
    pub(super) in_features: usize,
    pub(super) transposed: bool,
    pub(super) experts: Option<usize>,
}

impl Shape {
    /// The extents of the weight in the model's class.
    pub(super) fn weight(&self) -> Vec<usize> {
        let (rows, cols) = match self.transposed {
            true => (self.in_features, self.out),
            false => (self.out, self.in_features),
        };
        self.experts.into_iter().chain([rows, cols]).collect()
    }
}

/// Where `piece` of the update of `module` goes in a tensor of the extents `stored`; `None` where the
/// extents do not fit.
pub(super) fn region<P>(
    stored: &[usize],
    piece: &Piece<P>,
    module: &Module,
    shape: &Shape,
) -> Option<Region> {
    let index = match piece.of.index {
        Some(_) => piece.at.index,
        None => piece.at.index.or(module.expert),
    };
    let (first_row, extents) = match (stored, index) {
        ([experts, rows, cols], Some(e)) if e < *experts => (e.checked_mul(*rows)?, [*rows, *cols]),
        ([rows, cols], None) => (0, [*rows, *cols]),
        _ => return None,
    };
    // All experts of the adapter are all experts of the tensor.
    let whole = module.expert.is_some() && piece.of.index.is_none();
    if whole && stored.first() != shape.experts.as_ref() {
        return None;
    }
    let asked = [Span::all(shape.out), Span::all(shape.in_features)];
    let asked = taken(
        &piece.of,
        asked,
        shape.transposed,
        usize::from(shape.experts.is_some()),
    )?;
    let fits = |flipped: bool| {
        let place = [Span::all(extents[0]), Span::all(extents[1])];
        let place = taken(&piece.at, place, flipped, stored.len() - 2)?;
        let transposed = shape.transposed ^ (piece.of.flip == Flip::Yes) ^ flipped;
        let (down, across) = match transposed {
            true => (asked[1], asked[0]),
            false => (asked[0], asked[1]),
        };
        ((place[0].len, place[1].len) == (down.len, across.len)).then_some(Region {
            rows: Span {
                start: first_row + place[0].start,
                ..place[0]
            },
            cols: place[1],
            outs: asked[0],
            ins: asked[1],
            transposed,
        })
    };
    match piece.at.flip {
        Flip::No => fits(false),
        Flip::Yes => fits(true),
        Flip::Unless => fits(false).or_else(|| fits(true)),
    }
}

/// The chunk of a cut, of two axes that stand the other way round where they are `exchanged`; the
/// cut counts them from `before` on.
fn taken(cut: &Cut, mut axes: [Span; 2], exchanged: bool, before: usize) -> Option<[Span; 2]> {
    let Some(chunk) = cut.chunk else {
        return Some(axes);
    };
    let axis = chunk.axis.checked_sub(before).filter(|a| *a < 2)?;
    let axis = if exchanged { 1 - axis } else { axis };
    axes[axis] = Span::chunk(axes[axis].len, chunk)?;
    Some(axes)
}
