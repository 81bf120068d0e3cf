//! Products with frozen weights, forward and backward, over rows of them.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::fresh::{filled, over};
use super::cut::{Block, PACKED, Panel};
use super::kernel::Kernel;
use super::left::{Left, Lines};
use super::multiply::{Cut, Out, Right, multiply};
use super::pack::{Weight, across, along};

/// Rows of a weight: as many columns of a product.
pub(in super::super) type Rows<'a> = (Weight<'a>, Range<usize>);

/// x·Wᵀ, tokens × Σ rows; x is tokens × in.
pub(in super::super) fn product(kernel: Kernel, x: &dyn Lines, pieces: &[Rows<'_>]) -> Vec<f32> {
    let len = x.rows() * width(pieces);
    match in_features(pieces) {
        0 => vec![0.0; len],
        // SAFETY: all rows of all pieces are panels, and K is not empty.
        _ => unsafe { filled(len, |out| forward(kernel, x, pieces, Out::Sums(out))) },
    }
}

/// As [`product`], rounded to bf16: the bits of the numbers.
pub(in super::super) fn rounded(kernel: Kernel, x: &dyn Lines, pieces: &[Rows<'_>]) -> Vec<u16> {
    let len = x.rows() * width(pieces);
    match in_features(pieces) {
        0 => vec![0; len],
        // SAFETY: as above.
        _ => unsafe { filled(len, |out| forward(kernel, x, pieces, Out::Rounded(out))) },
    }
}

/// As [`product`], into `out`, overwritten.
pub(in super::super) fn product_into(
    kernel: Kernel,
    x: &dyn Lines,
    pieces: &[Rows<'_>],
    out: &mut [f32],
) {
    // SAFETY: products are numbers.
    forward(kernel, x, pieces, Out::Sums(unsafe { over(out) }));
}

/// dy·W, tokens × in; dy is tokens × the rows of all pieces.
pub(in super::super) fn backward(kernel: Kernel, dy: &dyn Lines, pieces: &[Rows<'_>]) -> Vec<f32> {
    let len = dy.rows() * in_features(pieces);
    match width(pieces) {
        0 => vec![0.0; len],
        // SAFETY: all columns of the weights are panels, and K, the rows of all pieces, is not empty.
        _ => unsafe { filled(len, |dx| back(kernel, dy, 0, pieces, Out::Sums(dx))) },
    }
}

/// As [`backward`], added to `dx`; the columns of dy for the first piece begin at `column`.
pub(in super::super) fn backward_more(
    kernel: Kernel,
    dy: &dyn Lines,
    column: usize,
    pieces: &[Rows<'_>],
    dx: &mut [f32],
) {
    back(kernel, dy, column, pieces, Out::More(dx));
}

fn width(pieces: &[Rows<'_>]) -> usize {
    pieces.iter().map(|(_, rows)| rows.len()).sum()
}

fn in_features(pieces: &[Rows<'_>]) -> usize {
    pieces.first().map_or(0, |(weight, _)| weight.columns)
}

fn forward(kernel: Kernel, x: &dyn Lines, pieces: &[Rows<'_>], out: Out<'_>) {
    let (mut panels, mut column) = (Vec::new(), 0);
    for (number, (_, rows)) in pieces.iter().enumerate() {
        for row in rows.clone().step_by(Panel::WIDEST) {
            let len = (rows.end - row).min(Panel::WIDEST);
            panels.push(Panel {
                columns: column..column + len,
                source: (number, row),
            });
            column += len;
        }
    }
    let blocks: Vec<Block> = Block::cut(0..in_features(pieces), 0).collect();
    let cut = Cut {
        panels: &panels,
        blocks: &blocks,
        width: column,
    };
    multiply(kernel, &Left::of(x, &blocks), &cut, &Along(pieces), out);
}

fn back(kernel: Kernel, dy: &dyn Lines, column: usize, pieces: &[Rows<'_>], out: Out<'_>) {
    let in_features = in_features(pieces);
    let columns = (0..in_features).step_by(Panel::WIDEST);
    let panels: Vec<Panel> = columns
        .map(|start| Panel {
            columns: start..(start + Panel::WIDEST).min(in_features),
            source: (0, start),
        })
        .collect();
    let (mut blocks, mut column) = (Vec::new(), column);
    for (number, (_, rows)) in pieces.iter().enumerate() {
        blocks.extend(Block::cut(column..column + rows.len(), number));
        column += rows.len();
    }
    let cut = Cut {
        panels: &panels,
        blocks: &blocks,
        width: in_features,
    };
    multiply(kernel, &Left::of(dy, &blocks), &cut, &Across(pieces), out);
}

/// Of `all`, a part of so many.
fn share(all: usize, [part, parts]: [usize; 2]) -> Range<usize> {
    all * part / parts..all * (part + 1) / parts
}

/// Wᵀ: panels are rows of the pieces.
struct Along<'a>(&'a [Rows<'a>]);

impl Right for Along<'_> {
    fn pack(&self, panels: &[Panel], block: &Block, packed: &mut [u32]) {
        for (panel, packed) in panels.iter().zip(packed.chunks_exact_mut(PACKED)) {
            let (number, row) = panel.source;
            let rows = row..row + panel.columns.len();
            along(&self.0[number].0, rows, block.columns.clone(), packed);
        }
    }

    fn ahead(&self, panels: &[Panel], block: &Block, part: [usize; 2]) {
        for at in share(panels.len() * Panel::WIDEST, part) {
            let (panel, at) = (&panels[at / Panel::WIDEST], at % Panel::WIDEST);
            if at < panel.columns.len() {
                let (number, row) = panel.source;
                self.0[number].0.ahead(row + at, block.columns.clone());
            }
        }
    }
}

/// W: panels are columns of the pieces' weights, and blocks rows of a piece.
struct Across<'a>(&'a [Rows<'a>]);

impl Across<'_> {
    /// A block's weight, and its rows there.
    fn rows(&self, block: &Block) -> (&Weight<'_>, Range<usize>) {
        let (number, row) = block.source;
        let (weight, rows) = &self.0[number];
        let first = rows.start + row;
        (weight, first..first + block.columns.len())
    }
}

impl Right for Across<'_> {
    fn pack(&self, panels: &[Panel], block: &Block, packed: &mut [u32]) {
        let (weight, rows) = self.rows(block);
        let columns: Vec<_> = panels.iter().map(|p| p.columns.clone()).collect();
        across(weight, rows, &columns, packed);
    }

    fn ahead(&self, panels: &[Panel], block: &Block, part: [usize; 2]) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else {
            return;
        };
        let (weight, rows) = self.rows(block);
        for row in share(rows.len(), part) {
            weight.ahead(rows.start + row, first.columns.start..last.columns.end);
        }
    }
}
