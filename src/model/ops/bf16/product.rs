//! Products with frozen weights, forward and backward, over rows of them.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::fresh::{filled, over};
use super::cut::{Block, PACKED, Panel};
use super::kernel::Kernel;
use super::left::Left;
use super::multiply::multiply;
use super::pack::{Weight, across, along};

/// Rows of a weight: as many columns of a product.
pub(in super::super) type Rows<'a> = (Weight<'a>, Range<usize>);

/// x·Wᵀ, tokens × Σ rows; x is tokens × in, row-major.
pub(in super::super) fn product(
    kernel: Kernel,
    x: &[f32],
    in_features: usize,
    pieces: &[Rows<'_>],
) -> Vec<f32> {
    let width: usize = pieces.iter().map(|(_, rows)| rows.len()).sum();
    let tokens = x.len() / in_features.max(1);
    match in_features {
        0 => vec![0.0; tokens * width],
        // SAFETY: all rows of all pieces are panels, and K is not empty.
        _ => unsafe {
            filled(tokens * width, |out| {
                write_product(kernel, x, in_features, pieces, out);
            })
        },
    }
}

/// As [`product`], into `out`, overwritten.
pub(in super::super) fn product_into(
    kernel: Kernel,
    x: &[f32],
    in_features: usize,
    pieces: &[Rows<'_>],
    out: &mut [f32],
) {
    // SAFETY: products are numbers.
    write_product(kernel, x, in_features, pieces, unsafe { over(out) });
}

fn write_product(
    kernel: Kernel,
    x: &[f32],
    in_features: usize,
    pieces: &[Rows<'_>],
    out: &mut [MaybeUninit<f32>],
) {
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
    let blocks: Vec<Block> = Block::cut(0..in_features, 0).collect();
    let pack = |panels: &[Panel], block: &Block, packed: &mut [u32]| {
        for (panel, packed) in panels.iter().zip(packed.chunks_exact_mut(PACKED)) {
            let (number, row) = panel.source;
            let rows = row..row + panel.columns.len();
            along(&pieces[number].0, rows, block.columns.clone(), packed);
        }
    };
    multiply(
        kernel,
        &Left::of(x, in_features, &blocks, None),
        &panels,
        &blocks,
        &pack,
        out,
        column,
    );
}

/// dy·W, tokens × in; dy is tokens × `width`, the rows of all pieces, of which there are some.
pub(in super::super) fn backward(
    kernel: Kernel,
    dy: &[f32],
    width: usize,
    pieces: &[Rows<'_>],
) -> Vec<f32> {
    let in_features = pieces.first().map_or(0, |(weight, _)| weight.columns);
    let tokens = dy.len() / width.max(1);
    match width {
        0 => vec![0.0; tokens * in_features],
        // SAFETY: all columns of the weights are panels, and K, the rows of all pieces, is not empty.
        _ => unsafe {
            filled(tokens * in_features, |dx| {
                write_backward(kernel, dy, width, None, pieces, dx);
            })
        },
    }
}

/// As [`backward`], into `dx`, overwritten; each row of `dy` is multiplied by its scale first, where there are scales.
pub(in super::super) fn backward_into(
    kernel: Kernel,
    dy: &[f32],
    width: usize,
    scales: Option<&[f32]>,
    pieces: &[Rows<'_>],
    dx: &mut [f32],
) {
    // SAFETY: products are numbers.
    write_backward(kernel, dy, width, scales, pieces, unsafe { over(dx) });
}

fn write_backward(
    kernel: Kernel,
    dy: &[f32],
    width: usize,
    scales: Option<&[f32]>,
    pieces: &[Rows<'_>],
    dx: &mut [MaybeUninit<f32>],
) {
    let in_features = pieces.first().map_or(0, |(weight, _)| weight.columns);
    let columns = (0..in_features).step_by(Panel::WIDEST);
    let panels: Vec<Panel> = columns
        .map(|start| Panel {
            columns: start..(start + Panel::WIDEST).min(in_features),
            source: (0, start),
        })
        .collect();
    let (mut blocks, mut column) = (Vec::new(), 0);
    for (number, (_, rows)) in pieces.iter().enumerate() {
        blocks.extend(Block::cut(column..column + rows.len(), number));
        column += rows.len();
    }
    assert_eq!(column, width, "rows of the pieces");
    let pack = |panels: &[Panel], block: &Block, packed: &mut [u32]| {
        let (number, row) = block.source;
        let (weight, rows) = &pieces[number];
        let first = rows.start + row;
        let columns: Vec<_> = panels.iter().map(|p| p.columns.clone()).collect();
        across(weight, first..first + block.columns.len(), &columns, packed);
    };
    multiply(
        kernel,
        &Left::of(dy, width, &blocks, scales),
        &panels,
        &blocks,
        &pack,
        dx,
        in_features,
    );
}
