//! Products with frozen weights. The fused form reads them where the checkpoint's file is mapped,
//! in its dtype; the composed form holds them on its device, in the dtype it computes in.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::bf16::{self, Kernel, Plain, Rows, Weight};
use super::columns::by_rows;
use super::fresh::zeros;
use super::slices::ROWS;
use super::{f32s, fuses, is_fused, tensor};
use crate::error::{Code, Error, Result};
use crate::tensor::{self, Dtype, widen_into};

/// Rows of a half-precision weight that are widened at a time, to stay in the cache.
const TILE: usize = 128;
/// Below this many tokens the work is shared out by rows of the weight.
pub(super) const FEW: usize = 32;

/// How the fused form multiplies activations with frozen weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Products(Option<Kernel>);

impl Products {
    /// In f32.
    pub const F32: Self = Self(None);

    /// Activations rounded to bf16, and sums in f32, as autocast has them; `None` where the processor has no
    /// instructions for it.
    pub fn bf16() -> Option<Self> {
        Kernel::detect().map(|kernel| Self(Some(kernel)))
    }

    /// By a kernel.
    #[cfg(test)]
    pub(super) fn of(kernel: Kernel) -> Self {
        Self(Some(kernel))
    }

    pub(super) fn kernel(self) -> Option<Kernel> {
        self.0
    }
}

/// A frozen weight, out × in.
#[derive(Debug)]
pub struct Matrix {
    out: usize,
    in_features: usize,
    stored: Stored,
    /// Where the fused form multiplies bf16 numbers: with what.
    kernel: Option<Kernel>,
}

#[derive(Debug)]
enum Stored {
    /// The bytes of the checkpoint, mapped.
    Bytes(tensor::Tensor),
    Device(Tensor),
}

impl Matrix {
    /// A two-dimensional F32, F16 or BF16 tensor for work in `dtype` on `device`.
    ///
    /// # Errors
    /// [`crate::Code::DtypeNotAllowed`] for other dtypes, [`crate::Code::Backend`] where the
    /// device has no room.
    pub fn new(weight: tensor::Tensor, device: &Device, dtype: DType) -> Result<Self> {
        let mapped = Self::mapped(weight)?;
        match fuses(device, dtype) {
            true => Ok(mapped),
            false => Self::joined(&[Piece::whole(&mapped)], device, dtype),
        }
    }

    /// A two-dimensional F32, F16 or BF16 tensor that is left where it is: for the fused form, or
    /// to be [`joined`](Self::joined).
    ///
    /// # Errors
    /// [`crate::Code::DtypeNotAllowed`] for other dtypes.
    pub fn mapped(weight: tensor::Tensor) -> Result<Self> {
        let (out, in_features) = match weight.shape() {
            [out, in_features] => (*out, *in_features),
            shape => (shape.iter().product(), 1),
        };
        if !weight.dtype().is_float() {
            return Err(tensor::not_float(weight.dtype()));
        }
        Ok(Self {
            out,
            in_features,
            stored: Stored::Bytes(weight),
            kernel: None,
        })
    }

    /// The pieces of mapped weights, all with the same columns, as one weight on `device`, of
    /// which one product makes the columns of all.
    ///
    /// # Errors
    /// [`crate::Code::Backend`] where the device has no room.
    pub fn joined(pieces: &[Piece<'_>], device: &Device, dtype: DType) -> Result<Self> {
        let parts: Vec<Tensor> = (pieces.iter())
            .map(|piece| piece.on(device, dtype))
            .collect::<Result<_>>()?;
        let weight = Tensor::cat(&parts, 0)?;
        let (out, in_features) = weight.dims2()?;
        Ok(Self {
            out,
            in_features,
            stored: Stored::Device(weight),
            kernel: None,
        })
    }

    /// The same, with products of bf16 numbers in the fused form where `products` says so.
    #[must_use]
    pub fn with_products(self, products: Products) -> Self {
        let Products(kernel) = products;
        Self { kernel, ..self }
    }

    /// As its file has it.
    fn weight(&self) -> Option<Weight<'_>> {
        match &self.stored {
            Stored::Bytes(weight) => Some(Weight {
                dtype: weight.dtype(),
                bytes: weight.data(),
                columns: self.in_features,
            }),
            Stored::Device(_) => None,
        }
    }

    /// Rows.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The rows of the given numbers, in `dtype` on `device`: the embedding of tokens.
    ///
    /// # Errors
    /// [`crate::Code::Backend`]; a number beyond the rows is the caller's to refuse.
    pub fn select(&self, rows: &[u32], device: &Device, dtype: DType) -> Result<Tensor> {
        match &self.stored {
            Stored::Bytes(_) => {
                let mut values = vec![0.0; rows.len() * self.in_features];
                let mut scratch = Vec::new();
                for (to, row) in values.chunks_mut(self.in_features.max(1)).zip(rows) {
                    let row = *row as usize;
                    to.copy_from_slice(self.rows(row..row + 1, &mut scratch));
                }
                tensor(values, rows.len(), self.in_features)
            }
            Stored::Device(weight) => {
                let rows = Tensor::from_slice(rows, rows.len(), device)?;
                Ok(weight.index_select(&rows, 0)?.to_dtype(dtype)?)
            }
        }
    }

    /// Rows as f32: borrowed where the file holds aligned f32, else widened into `scratch`.
    fn rows<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let Stored::Bytes(weight) = &self.stored else {
            return &[];
        };
        let width = weight.dtype().bits() / 8 * self.in_features;
        let bytes = &weight.data()[rows.start * width..rows.end * width];
        if cfg!(target_endian = "little")
            && weight.dtype() == Dtype::F32
            && let Ok(values) = bytemuck::try_cast_slice(bytes)
        {
            return values;
        }
        scratch.resize(rows.len() * self.in_features, 0.0);
        widen_into(weight.dtype(), bytes, scratch);
        scratch
    }

    /// Tiles that cover `rows`: whole where nothing needs widening.
    fn tiles(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let step = match &self.stored {
            Stored::Bytes(weight) if weight.dtype() == Dtype::F32 => rows.len().max(1),
            _ => TILE,
        };
        rows.clone()
            .step_by(step)
            .map(move |start| start..(start + step).min(rows.end))
    }

    /// The rows of a piece of a weight that is on a device.
    fn narrowed(&self, piece: &Piece<'_>) -> Result<Tensor> {
        match &self.stored {
            Stored::Device(weight) => Ok(weight.narrow(0, piece.row, piece.rows)?),
            Stored::Bytes(_) => Err(Error::new(
                Code::Backend,
                "a weight for f32 on the processor is asked for another device or type",
            )),
        }
    }
}

/// Some rows of a weight: they make as many columns of a product.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The weight.
    pub matrix: &'a Matrix,
    /// Its first row.
    pub row: usize,
    /// How many rows.
    pub rows: usize,
}

impl<'a> Piece<'a> {
    /// All rows of `matrix`.
    pub fn whole(matrix: &'a Matrix) -> Self {
        Self {
            matrix,
            row: 0,
            rows: matrix.out,
        }
    }

    fn range(&self) -> Range<usize> {
        self.row..self.row + self.rows
    }

    /// The rows of a mapped weight, copied.
    fn on(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let (range, in_features) = (self.range(), self.matrix.in_features);
        let Stored::Bytes(weight) = &self.matrix.stored else {
            return self.matrix.narrowed(self);
        };
        let held = match weight.dtype() {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        let width = weight.dtype().bits() / 8 * in_features;
        let bytes = &weight.data()[range.start * width..range.end * width];
        let shape = [range.len(), in_features];
        Ok(Tensor::from_raw_buffer(bytes, held, &shape, device)?.to_dtype(dtype)?)
    }
}

/// x·Wᵀ for the pieces end to end: tokens × in to tokens × Σ rows.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn linear(x: &Tensor, pieces: &[Piece<'_>]) -> Result<Tensor> {
    if !is_fused(x) {
        let parts: Result<Vec<_>> = pieces
            .iter()
            .map(|p| Ok(x.matmul(&p.matrix.narrowed(p)?.t()?)?))
            .collect();
        return Ok(Tensor::cat(&parts?, 1)?);
    }
    let (tokens, in_features) = x.dims2()?;
    let width = pieces.iter().map(|p| p.rows).sum();
    let x = f32s(x)?;
    let out = match narrow(pieces).filter(|_| tokens >= FEW) {
        Some((kernel, rows)) => bf16::product(kernel, &Plain::new(&x, in_features), &rows),
        None => {
            let mut out = zeros(tokens * width);
            product(&x, in_features, pieces, &mut out);
            out
        }
    };
    tensor(out, tokens, width)
}

/// dy·W: the gradient with respect to the input of [`linear`], tokens × in.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn linear_backward(dy: &Tensor, pieces: &[Piece<'_>]) -> Result<Tensor> {
    let (tokens, width) = dy.dims2()?;
    let in_features = pieces.first().map_or(0, |p| p.matrix.in_features);
    if !is_fused(dy) {
        let mut column = 0;
        let mut dx: Option<Tensor> = None;
        for p in pieces {
            let part = dy.narrow(1, column, p.rows)?.contiguous()?;
            let part = part.matmul(&p.matrix.narrowed(p)?)?;
            dx = Some(match dx {
                Some(dx) => (dx + part)?,
                None => part,
            });
            column += p.rows;
        }
        return match dx {
            Some(dx) => Ok(dx),
            None => Ok(Tensor::zeros(
                (tokens, in_features),
                dy.dtype(),
                dy.device(),
            )?),
        };
    }
    let dy = f32s(dy)?;
    let dx = match narrow(pieces) {
        Some((kernel, rows)) => bf16::backward(kernel, &Plain::new(&dy, width), &rows),
        None => {
            let mut dx = zeros(tokens * in_features);
            product_backward(&dy, width, pieces, &mut dx);
            dx
        }
    };
    tensor(dx, tokens, in_features)
}

/// As [`linear`], over slices. `out` is overwritten.
pub(super) fn product(x: &[f32], in_features: usize, pieces: &[Piece<'_>], out: &mut [f32]) {
    let width: usize = pieces.iter().map(|p| p.rows).sum();
    let tokens = x.len() / in_features.max(1);
    if let Some((kernel, rows)) = narrow(pieces) {
        return match tokens < FEW {
            true => bf16::few(x, in_features, &rows, out),
            false => bf16::product_into(kernel, &Plain::new(x, in_features), &rows, out),
        };
    }
    if tokens < FEW {
        return product_few(x, in_features, pieces, out);
    }
    let share = share(tokens);
    out.par_chunks_mut(share * width)
        .zip(x.par_chunks(share * in_features))
        .for_each_init(Vec::new, |scratch, (out, x)| {
            let rows = x.len() / in_features;
            let x = MatRef::from_row_major_slice(x, rows, in_features);
            let mut column = 0;
            for piece in pieces {
                for tile in piece.matrix.tiles(piece.range()) {
                    let n = tile.len();
                    let w = piece.matrix.rows(tile, scratch);
                    let w = MatRef::from_row_major_slice(w, n, in_features);
                    let out = MatMut::from_row_major_slice_mut(out, rows, width);
                    let out = out.subcols_mut(column, n);
                    matmul(out, Accum::Replace, x, w.transpose(), 1.0, Par::Seq);
                    column += n;
                }
            }
        });
}

/// Rows of a task that reads whole weights: weights are packed, and widened, anew in each, so that there are no more tasks
/// than threads. What a row becomes does not depend on those beside it, but where it is alone, which no row of several is:
/// the last of at most 64 tasks of at least [`ROWS`] rows lacks fewer than 64.
fn share(rows: usize) -> usize {
    let most = rayon::current_num_threads().clamp(1, ROWS / 2);
    rows.div_ceil((rows / ROWS).clamp(1, most)).max(1)
}

/// What multiplies bf16 numbers, and the rows of weights that the pieces are, where all are for it.
pub(super) fn narrow<'a>(pieces: &[Piece<'a>]) -> Option<(Kernel, Vec<Rows<'a>>)> {
    let kernel = pieces.first()?.matrix.kernel?;
    let rows = pieces.iter().map(|p| Some((p.matrix.weight()?, p.range())));
    Some((kernel, rows.collect::<Option<_>>()?))
}

fn product_few(x: &[f32], in_features: usize, pieces: &[Piece<'_>], out: &mut [f32]) {
    let tokens = x.len() / in_features.max(1);
    let x = MatRef::from_row_major_slice(x, tokens, in_features);
    let ranges: Vec<Range<usize>> = pieces.iter().map(Piece::range).collect();
    by_rows(
        &ranges,
        TILE,
        out,
        Vec::new,
        |scratch, number, rows, part| {
            let n = rows.len();
            let w = pieces[number].matrix.rows(rows, scratch);
            let w = MatRef::from_row_major_slice(w, n, in_features);
            let to = MatMut::from_row_major_slice_mut(part, tokens, n);
            matmul(to, Accum::Replace, x, w.transpose(), 1.0, Par::Seq);
        },
    );
}

/// As [`linear_backward`], over slices, with sums in f32. `dx` is overwritten.
pub(super) fn product_backward(dy: &[f32], width: usize, pieces: &[Piece<'_>], dx: &mut [f32]) {
    let in_features = pieces.first().map_or(0, |p| p.matrix.in_features);
    if in_features == 0 || width == 0 {
        return;
    }
    let share = share(dy.len() / width);
    dx.par_chunks_mut(share * in_features)
        .zip(dy.par_chunks(share * width))
        .for_each_init(Vec::new, |scratch, (dx, dy)| {
            let rows = dy.len() / width;
            let dy = MatRef::from_row_major_slice(dy, rows, width);
            let mut dx = MatMut::from_row_major_slice_mut(dx, rows, in_features);
            let (mut column, mut accumulate) = (0, Accum::Replace);
            for piece in pieces {
                for tile in piece.matrix.tiles(piece.range()) {
                    let n = tile.len();
                    let w = piece.matrix.rows(tile, scratch);
                    let w = MatRef::from_row_major_slice(w, n, in_features);
                    let dy = dy.subcols(column, n);
                    matmul(dx.rb_mut(), accumulate, dy, w, 1.0, Par::Seq);
                    accumulate = Accum::Add;
                    column += n;
                }
            }
        });
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, random};
    use super::*;

    fn matrix(dtype: Dtype, out: usize, in_features: usize, like: DType) -> Matrix {
        let values: Vec<f32> = f32s(&random(out, in_features, 7)).unwrap().to_vec();
        let weight = tensor::Tensor::narrowed(dtype, vec![out, in_features], &values).unwrap();
        Matrix::new(weight, &Device::Cpu, like).unwrap()
    }

    #[test]
    fn fused_products_equal_composed_ones_in_every_dtype() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            for tokens in [1, 5, 64, 300] {
                let (w32, w64) = (
                    matrix(dtype, 200, 24, DType::F32),
                    matrix(dtype, 200, 24, DType::F64),
                );
                fn cut(m: &Matrix) -> [Piece<'_>; 2] {
                    [
                        Piece {
                            matrix: m,
                            row: 40,
                            rows: 150,
                        },
                        Piece {
                            matrix: m,
                            row: 0,
                            rows: 7,
                        },
                    ]
                }
                let x = random(tokens, 24, 1);
                let wide = x.to_dtype(DType::F64).unwrap();
                close(
                    &linear(&x, &cut(&w32)).unwrap(),
                    &linear(&wide, &cut(&w64)).unwrap(),
                    1e-5,
                );
                let dy = random(tokens, 157, 2);
                let wide = dy.to_dtype(DType::F64).unwrap();
                close(
                    &linear_backward(&dy, &cut(&w32)).unwrap(),
                    &linear_backward(&wide, &cut(&w64)).unwrap(),
                    1e-5,
                );
            }
        }
    }

    /// Breaks where a kernel adds up other numbers than bf16's, or reads beyond a weight's rows.
    #[test]
    fn products_of_bf16_are_those_of_rounded_numbers() {
        let rounded = |x: &Tensor| {
            // By way of f32, which holds them: from f64 candle rounds some ties otherwise.
            let x = x
                .to_dtype(DType::F32)
                .unwrap()
                .to_dtype(DType::BF16)
                .unwrap();
            x.to_dtype(DType::F64).unwrap()
        };
        for kernel in Kernel::available() {
            for (dtype, tokens, out, n) in [
                (Dtype::BF16, 1, 300, 1111),
                (Dtype::F16, 7, 200, 40),
                (Dtype::BF16, 32, 200, 24),
                (Dtype::BF16, 300, 1100, 96),
                (Dtype::F32, 65, 97, 1111),
                (Dtype::F16, 100, 64, 64),
            ] {
                let narrow =
                    matrix(dtype, out, n, DType::F32).with_products(Products(Some(kernel)));
                let wide = matrix(dtype, out, n, DType::F64);
                let Stored::Device(weight) = &wide.stored else {
                    unreachable!()
                };
                let cut = |w: &Tensor| {
                    let parts = [
                        w.narrow(0, 40, out - 50).unwrap(),
                        w.narrow(0, 0, 7).unwrap(),
                    ];
                    Tensor::cat(&parts, 0).unwrap()
                };
                let weight = cut(&rounded(weight));
                let pieces = [(40, out - 50), (0, 7)].map(|(row, rows)| Piece {
                    matrix: &narrow,
                    row,
                    rows,
                });
                let x = random(tokens, n, 1);
                let want = rounded(&x).matmul(&weight.t().unwrap()).unwrap();
                close(&linear(&x, &pieces).unwrap(), &want, 2e-5);
                let dy = random(tokens, out - 43, 2);
                let want = rounded(&dy).matmul(&weight).unwrap();
                close(&linear_backward(&dy, &pieces).unwrap(), &want, 2e-5);
            }
        }
    }

    /// Breaks where the library's sums of a row depend on how many rows are multiplied at once, and so on the threads.
    #[test]
    fn products_in_f32_do_not_depend_on_threads() {
        for (dtype, tokens, out, n) in [
            (Dtype::F32, 129, 70, 24),
            (Dtype::F32, 257, 4, 4),
            (Dtype::F32, 700, 1, 90),
            (Dtype::F32, 513, 1500, 1100),
            (Dtype::BF16, 1029, 700, 530),
            (Dtype::F16, 897, 33, 2050),
        ] {
            let weight = matrix(dtype, out, n, DType::F32);
            let pieces = [Piece::whole(&weight)];
            let (x, dy) = (random(tokens, n, 1), random(tokens, out, 2));
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let both = pool.install(|| {
                    let y = linear(&x, &pieces).unwrap();
                    [y, linear_backward(&dy, &pieces).unwrap()]
                });
                both.map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            let one = run(1);
            for threads in [2, 3, 4, 7, 16] {
                assert!(
                    run(threads) == one,
                    "{dtype:?} {tokens} {out} {n}: {threads}"
                );
            }
        }
    }

    /// Breaks where a sum depends on which thread adds.
    #[test]
    fn products_of_bf16_do_not_depend_on_threads() {
        for kernel in Kernel::available() {
            let weight = matrix(Dtype::BF16, 300, 70, DType::F32);
            let weight = weight.with_products(Products(Some(kernel)));
            let pieces = [Piece::whole(&weight)];
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| {
                    [3, 90].map(|tokens| {
                        let y = linear(&random(tokens, 70, 1), &pieces).unwrap();
                        let dx = linear_backward(&y, &pieces).unwrap();
                        [y, dx].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                    })
                })
            };
            assert_eq!(run(1), run(3));
        }
    }

    #[test]
    fn an_embedding_is_the_rows_of_its_tokens() {
        let (w32, w64) = (
            matrix(Dtype::BF16, 9, 4, DType::F32),
            matrix(Dtype::BF16, 9, 4, DType::F64),
        );
        let rows = [3, 0, 8, 3];
        let narrow = w32.select(&rows, &Device::Cpu, DType::F32).unwrap();
        close(
            &narrow,
            &w64.select(&rows, &Device::Cpu, DType::F64).unwrap(),
            0.0,
        );
    }
}
