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
    pub(super) fn chunk(len: usize, chunk: Chunk) -> Option<Self> {
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

    /// Its entries.
    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| self.start + i * self.step)
    }

    pub(super) fn is_apart(&self, other: &Self) -> bool {
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

    /// Whether its rows are rows of the tensor of the extents `stored`, and they are all outputs of the update.
    pub(super) fn has_whole_rows(&self, stored: &[usize], shape: &Shape) -> bool {
        let all = |span: Span, len: usize| span == Span::all(len);
        !self.transposed
            && all(self.outs, shape.out)
            && all(self.ins, shape.in_features)
            && all(self.cols, stored.last().copied().unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn module(expert: Option<usize>) -> Module {
        Module {
            path: "experts.gate_up_proj".to_owned(),
            expert,
            group: 0,
            layer: 0,
            target: 0,
        }
    }

    fn cut(index: Option<usize>, chunk: Option<(usize, usize, usize, bool)>, flip: Flip) -> Cut {
        let chunk = chunk.map(|(axis, part, of, interleaved)| Chunk {
            axis,
            part,
            of,
            interleaved,
        });
        Cut { index, chunk, flip }
    }

    /// Values of a tensor that say where they are in the update: expert, output, input.
    fn laid(region: &Region, cols: usize, expert: usize, tensor: &mut [Option<[usize; 3]>]) {
        let Region {
            rows,
            cols: across,
            outs,
            ins,
            transposed,
        } = *region;
        for i in 0..rows.len {
            for j in 0..across.len {
                let (o, n) = if transposed { (j, i) } else { (i, j) };
                let at = (rows.start + i * rows.step) * cols + across.start + j * across.step;
                let value = [expert, outs.start + o * outs.step, ins.start + n * ins.step];
                assert_eq!(tensor[at].replace(value), None, "an element twice");
            }
        }
    }

    proptest! {
        /// Breaks where an expert's update goes to another's rows, or a whole parameter is not covered once,
        /// whatever its orientation; square ones too.
        #[test]
        fn a_whole_parameter_is_covered_expert_by_expert(
            experts in 1usize..5, out in 1usize..6, n in 1usize..6, transposed: bool, flipped: bool,
        ) {
            let shape = Shape { out, in_features: n, transposed, experts: Some(experts) };
            let (rows, cols) = if transposed ^ flipped { (n, out) } else { (out, n) };
            let flip = if flipped { Flip::Yes } else { Flip::No };
            let piece = Piece { place: (), at: cut(None, None, flip), of: Cut::WHOLE };
            let mut tensor = vec![None; experts * rows * cols];
            for e in 0..experts {
                let found = region(&[experts, rows, cols], &piece, &module(Some(e)), &shape).unwrap();
                laid(&found, cols, e, &mut tensor);
            }
            for (at, value) in tensor.into_iter().enumerate() {
                let (e, i, j) = (at / (rows * cols), at / cols % rows, at % cols);
                let (o, k) = if transposed ^ flipped { (j, i) } else { (i, j) };
                prop_assert_eq!(value, Some([e, o, k]));
            }
        }

        /// Breaks where gate and up of single experts do not cover a fused tensor once: one after the
        /// other or interleaved, stored (out, in) or (in, out); and the way round, where a fused update's
        /// parts are not those of the single tensors.
        #[test]
        fn gate_and_up_are_the_halves_of_a_fused_parameter(
            experts in 1usize..4, half in 1usize..5, n in 1usize..6, interleaved: bool, flipped: bool,
        ) {
            let (rows, cols) = if flipped { (n, 2 * half) } else { (2 * half, n) };
            let flip = if flipped { Flip::Yes } else { Flip::No };
            let single = Shape { out: half, in_features: n, transposed: false, experts: None };
            let fused = Shape { out: 2 * half, in_features: n, transposed: false, experts: Some(experts) };
            let mut tensor = vec![None; experts * rows * cols];
            for e in 0..experts {
                for part in 0..2 {
                    let chunk = Some((1, part, 2, interleaved));
                    let piece = Piece { place: (), at: cut(Some(e), chunk, flip), of: Cut::WHOLE };
                    let found = region(&[experts, rows, cols], &piece, &module(None), &single).unwrap();
                    prop_assert_eq!((found.outs, found.ins), (Span::all(half), Span::all(n)));
                    laid(&found, cols, 2 * e + part, &mut tensor);
                    let back = Piece { place: (), at: Cut::WHOLE, of: cut(Some(e), chunk, Flip::No) };
                    let own = region(&[half, n], &back, &module(Some(e)), &fused).unwrap();
                    let place = |i: usize| if interleaved { 2 * i + part } else { part * half + i };
                    for i in 0..half {
                        prop_assert_eq!(own.outs.start + i * own.outs.step, place(i));
                    }
                }
            }
            for (at, value) in tensor.into_iter().enumerate() {
                let (e, i, j) = (at / (rows * cols), at / cols % rows, at % cols);
                let (o, k) = if flipped { (j, i) } else { (i, j) };
                let (part, own) = if interleaved { (o % 2, o / 2) } else { (o / half, o % half) };
                prop_assert_eq!(value, Some([2 * e + part, own, k]));
            }
        }

        /// Breaks where rows of a block are taken for others of a part, or some are left out.
        #[test]
        fn a_block_has_the_rows_of_a_part_that_are_in_it(
            start in 0usize..9, step in 1usize..4, len in 0usize..9, from in 0usize..30, rows in 0usize..20,
        ) {
            let span = Span { start, step, len };
            let own: Vec<usize> = span.within(from, from + rows).collect();
            let expected = (0..len).filter(|k| (from..from + rows).contains(&(start + k * step)));
            prop_assert_eq!(own, expected.collect::<Vec<_>>());
        }
    }

    /// Breaks where a tensor of other extents is merged into: another number of experts, an odd width,
    /// or the other orientation.
    #[test]
    fn other_extents_have_no_region() {
        let shape = Shape {
            out: 6,
            in_features: 4,
            transposed: false,
            experts: Some(3),
        };
        let piece = |at| Piece {
            place: (),
            at,
            of: Cut::WHOLE,
        };
        let whole = piece(Cut::WHOLE);
        for stored in [
            vec![2, 6, 4],
            vec![3, 4, 6],
            vec![3, 6, 5],
            vec![6, 4],
            vec![3, 6, 4, 1],
        ] {
            assert_eq!(
                region(&stored, &whole, &module(Some(1)), &shape),
                None,
                "{stored:?}"
            );
        }
        assert!(region(&[3, 6, 4], &whole, &module(Some(2)), &shape).is_some());
        let single = Shape {
            out: 3,
            experts: None,
            ..shape
        };
        let half = piece(cut(Some(0), Some((1, 0, 2, false)), Flip::No));
        assert_eq!(region(&[3, 7, 4], &half, &module(None), &single), None);
        assert!(region(&[3, 6, 4], &half, &module(None), &single).is_some());
        // Where the disk may have either order, what fits as it is stays as it is.
        let unless = piece(cut(None, None, Flip::Unless));
        let of = |stored: &[usize]| {
            region(stored, &unless, &module(Some(0)), &shape).map(|r| r.transposed)
        };
        assert_eq!((of(&[3, 6, 4]), of(&[3, 4, 6])), (Some(false), Some(true)));
    }
}
