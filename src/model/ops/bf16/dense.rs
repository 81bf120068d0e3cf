//! Products of activations with activations, as attention has them: small, both sides made anew each time, one thread each.

use super::super::vector::vectorised;
use super::kernel::Kernel;
use super::left::bits;
use super::multiply::block;
use super::tile::{PAIRED, STEP, TALL, TILE, WIDE};
use super::transpose::turn;

/// Rows and columns of a unit: what is multiplied at once, and what K has for a step.
pub(in super::super) const UNIT: usize = WIDE;

/// Some rows and columns of a row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct View<'a> {
    values: &'a [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

impl<'a> View<'a> {
    /// `rows` × `columns` numbers, of which the first is that of `values`, and rows begin `stride` apart.
    pub(in super::super) fn new(
        values: &'a [f32],
        stride: usize,
        [rows, columns]: [usize; 2],
    ) -> Self {
        let needs = match rows {
            0 => 0,
            rows => (rows - 1) * stride + columns,
        };
        assert!(columns <= stride && needs <= values.len(), "a view");
        Self {
            values,
            stride,
            rows,
            columns,
        }
    }

    /// Its numbers from the first on, and how many from one row to the next.
    pub(in super::super) fn whole(&self) -> (&'a [f32], usize) {
        (self.values, self.stride)
    }

    /// Number of rows.
    pub(in super::super) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(in super::super) fn columns(&self) -> usize {
        self.columns
    }

    /// Row `row`.
    #[inline(always)]
    pub(in super::super) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..self.columns]
    }

    /// Rows `first` to `first + rows`.
    pub(in super::super) fn part(&self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "a part");
        Self {
            values: &self.values[(first * self.stride).min(self.values.len())..],
            rows,
            ..*self
        }
    }
}

/// One side of a product in bf16: lines (rows of the left side, columns of the right one) in units of 32, each with its
/// numbers of K in steps of 32. Zeros fill the last units.
#[derive(Debug, Default)]
pub(in super::super) struct Side {
    units: Vec<u32>,
    steps: usize,
}

impl Side {
    /// `x` as the left side, K being its columns.
    pub(in super::super) fn left(&mut self, x: View<'_>) {
        self.clear(x.rows, x.columns);
        rows(x, self.steps, &mut self.units);
    }

    /// The transpose of `x` as the right side, K being the columns of `x`.
    pub(in super::super) fn right_of_transpose(&mut self, x: View<'_>) {
        self.left(x);
        self.turn();
    }

    /// `x` as the right side, K being its rows.
    pub(in super::super) fn right(&mut self, x: View<'_>) {
        self.clear(x.columns, x.rows);
        pairs(x, self.steps, &mut self.units);
    }

    /// The transpose of `x` as the left side, K being the rows of `x`.
    pub(in super::super) fn left_of_transpose(&mut self, x: View<'_>) {
        self.right(x);
        self.turn();
    }

    fn clear(&mut self, lines: usize, depth: usize) {
        self.steps = depth.div_ceil(UNIT);
        self.units.clear();
        self.units
            .resize(lines.div_ceil(UNIT) * self.steps * STEP, 0);
    }

    fn turn(&mut self) {
        for tile in self.units.chunks_exact_mut(TILE * TILE) {
            turn(tile);
        }
    }

    fn lines(&self) -> usize {
        self.units.len() / (self.steps * STEP).max(1)
    }

    /// Steps of K of a unit of lines.
    fn unit(&self, line: usize, first: usize, steps: usize) -> &[u32] {
        let start = (line * self.steps + first) * STEP;
        &self.units[start..start + steps * STEP]
    }
}

/// left · right into `out`, whose rows begin `stride` apart, or added to it: all rows of the left side, and of the right
/// side `columns`, counted in units, of which the first goes to column 0. Of the right side's K, as many steps as the left has, from
/// `first` on. To be called inside [`Kernel::ready`].
pub(in super::super) fn add_product(
    kernel: Kernel,
    left: &Side,
    (right, columns, first): (&Side, std::ops::Range<usize>, usize),
    (out, stride): (&mut [f32], usize),
    add: bool,
) {
    let (lines, steps) = (left.lines(), left.steps);
    assert!(
        columns.end <= right.lines()
            && first + steps <= right.steps
            && columns.len() * UNIT <= stride
            && (lines * UNIT).saturating_sub(1) * stride + columns.len() * UNIT <= out.len(),
        "a product"
    );
    for (number, column) in columns.enumerate() {
        let panel = right.unit(column, first, steps);
        for line in 0..lines {
            let rows: &[u16] = bytemuck::cast_slice(left.unit(line, 0, steps));
            let start = line * TALL * stride + number * WIDE;
            block(kernel, rows, panel, steps, (&mut out[start..], stride), add);
        }
    }
}

vectorised! {
    /// Rows in units of 32, each rounded to bf16, 16 pairs in a tile's row.
    fn rows(x: View<'_>, steps: usize, units: &mut [u32]) -> () {
        for (unit, units) in units.chunks_exact_mut((steps * STEP).max(1)).enumerate() {
            let first = unit * UNIT;
            for row in first..(first + UNIT).min(x.rows) {
                let numbers = x.row(row).chunks(PAIRED);
                for (numbers, step) in numbers.zip(units.chunks_exact_mut(STEP)) {
                    let to = &mut step[(row - first) * TILE..][..TILE];
                    match <&[f32; PAIRED]>::try_from(numbers) {
                        Ok(numbers) => {
                            for (to, two) in to.iter_mut().zip(numbers.as_chunks::<2>().0) {
                                *to = pair(two[0], two[1]);
                            }
                        }
                        Err(_) => {
                            for (to, two) in to.iter_mut().zip(numbers.chunks(2)) {
                                *to = pair(two[0], two.get(1).copied().unwrap_or(0.0));
                            }
                        }
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Columns in units of 32, pairs of rows in a tile's row.
    fn pairs(x: View<'_>, steps: usize, units: &mut [u32]) -> () {
        let zeros = [0.0; UNIT];
        for (unit, units) in units.chunks_exact_mut((steps * STEP).max(1)).enumerate() {
            let columns = unit * UNIT..(unit * UNIT + UNIT).min(x.columns);
            for at in (0..x.rows).step_by(2) {
                let low = &x.row(at)[columns.clone()];
                let high = match at + 1 < x.rows {
                    true => &x.row(at + 1)[columns.clone()],
                    false => &zeros[..columns.len()],
                };
                let step = &mut units[at / UNIT * STEP..][..STEP];
                let (left, right) = step.split_at_mut(TILE * TILE);
                let start = at % UNIT / 2 * TILE;
                let to = [&mut left[start..start + TILE], &mut right[start..start + TILE]];
                match (<&[f32; UNIT]>::try_from(low), <&[f32; UNIT]>::try_from(high)) {
                    (Ok(low), Ok(high)) => {
                        for (half, to) in to.into_iter().enumerate() {
                            for (j, to) in to.iter_mut().enumerate() {
                                *to = pair(low[half * TILE + j], high[half * TILE + j]);
                            }
                        }
                    }
                    _ => {
                        let both = low.iter().zip(high);
                        let [left, right] = to;
                        for (to, (low, high)) in left.iter_mut().chain(right).zip(both) {
                            *to = pair(*low, *high);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(bits(low)) | u32::from(bits(high)) << 16
}

/// The transpose of `columns` × `rows` numbers whose lines begin `stride` apart, as `rows` lines of `columns` numbers.
pub(in super::super) fn transposed(
    x: &[f32],
    stride: usize,
    [columns, rows]: [usize; 2],
) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    let mut tile = [0u32; TILE * TILE];
    for column in (0..columns).step_by(TILE) {
        let wide = TILE.min(columns - column);
        for row in (0..rows).step_by(TILE) {
            let tall = TILE.min(rows - row);
            for (j, to) in tile.chunks_exact_mut(TILE).take(wide).enumerate() {
                let from = &x[(column + j) * stride + row..][..tall];
                to[..tall].copy_from_slice(bytemuck::cast_slice(from));
            }
            turn(&mut tile);
            for (i, from) in tile.chunks_exact(TILE).take(tall).enumerate() {
                out[(row + i) * columns + column..][..wide]
                    .copy_from_slice(bytemuck::cast_slice(&from[..wide]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 37 + seed * 11) % 129) as f32 / 32.0 - 2.0)
            .collect()
    }

    /// Breaks where a side lies elsewhere than the kernels read it, or units and steps are taken from the wrong place.
    #[test]
    fn products_are_those_of_rounded_numbers() {
        let round = |x: f32| f64::from(bf16::from_f32(x).to_f32());
        for kernel in Kernel::available() {
            for [m, k, n] in [[64, 64, 96], [1, 1, 1], [33, 70, 45], [50, 31, 64]] {
                let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
                let want = |i: usize, j: usize| -> f64 {
                    (0..k)
                        .map(|l| round(a[i * k + l]) * round(b[l * n + j]))
                        .sum()
                };
                let a_turned = transposed(&a, k, [m, k]);
                let b_turned = transposed(&b, n, [k, n]);
                let (mut left, mut right) = (Side::default(), Side::default());
                for way in 0..4 {
                    match way % 2 {
                        0 => left.left(View::new(&a, k, [m, k])),
                        _ => left.left_of_transpose(View::new(&a_turned, m, [k, m])),
                    }
                    match way / 2 {
                        0 => right.right(View::new(&b, n, [k, n])),
                        _ => right.right_of_transpose(View::new(&b_turned, k, [n, k])),
                    }
                    let stride = n.next_multiple_of(UNIT);
                    let mut out = vec![1.0; m.next_multiple_of(UNIT) * stride];
                    let all = 0..n.div_ceil(UNIT);
                    kernel.ready(|| {
                        add_product(kernel, &left, (&right, all, 0), (&mut out, stride), true);
                    });
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let (got, want) = (f64::from(out[i * stride + j]), want(i, j) + 1.0);
                        assert!(
                            (got - want).abs() < 1e-3,
                            "{kernel:?} {way} {i} {j}: {got} {want}"
                        );
                    }
                }
                // The last unit of columns, and the last step of K, alone.
                if k > UNIT && n > UNIT {
                    let deep = (k - 1) / UNIT * UNIT;
                    let part: Vec<f32> =
                        (a.chunks(k)).flat_map(|row| row[deep..].to_vec()).collect();
                    left.left(View::new(&part, k - deep, [m, k - deep]));
                    right.right(View::new(&b, n, [k, n]));
                    let mut out = vec![7.0; m.next_multiple_of(UNIT) * UNIT];
                    kernel.ready(|| {
                        add_product(
                            kernel,
                            &left,
                            (&right, 1..2, deep / UNIT),
                            (&mut out, UNIT),
                            false,
                        );
                    });
                    for (i, j) in (0..m).flat_map(|i| (UNIT..n.min(2 * UNIT)).map(move |j| (i, j)))
                    {
                        let want: f64 = (deep..k)
                            .map(|l| round(a[i * k + l]) * round(b[l * n + j]))
                            .sum();
                        assert!(
                            (f64::from(out[i * UNIT + j - UNIT]) - want).abs() < 1e-3,
                            "{i} {j}"
                        );
                    }
                }
            }
        }
    }
}
