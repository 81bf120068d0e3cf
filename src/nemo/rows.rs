//! The rows of Megatron's fused weights, and where each projection's are.

use std::ops::Range;

use super::config::Heads;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// Rows of a fused weight that are one projection's, in its order.
pub(super) type Rows = Vec<Range<usize>>;

/// Query, key and value: for each query group its query heads, then a key head, then a value head.
pub(super) fn of_qkv(heads: Heads) -> [Rows; 3] {
    let Heads {
        queries,
        groups,
        size,
    } = heads;
    let each = queries / groups;
    let start = |group: usize, head: usize| (group * (each + 2) + head) * size;
    let of = |head: usize, count: usize| -> Rows {
        let group = |g| start(g, head)..start(g, head + count);
        (0..groups).map(group).collect()
    };
    [of(0, each), of(each, 1), of(each + 1, 1)]
}

/// Gate and up: one after the other in what each of `ranks` has of `rows`.
pub(super) fn of_gate_up(rows: usize, ranks: usize) -> Result<[Rows; 2]> {
    let ranks = ranks.max(1);
    if !rows.is_multiple_of(2 * ranks) {
        let message = format!("{rows} rows are no gate and up in {ranks} parts");
        return Err(Error::new(Code::FactorShape, message));
    }
    let half = rows / (2 * ranks);
    let of = |second: usize| -> Rows {
        let rank = |r| {
            let start = (2 * r + second) * half;
            start..start + half
        };
        (0..ranks).map(rank).collect()
    };
    Ok([of(0), of(1)])
}

/// Number of rows.
pub(super) fn count(rows: &Rows) -> usize {
    rows.iter().map(Range::len).sum()
}

/// These rows of a tensor, by its first axis.
///
/// # Errors
/// [`Code::FactorShape`] where it has not got them.
pub(super) fn take<'r>(
    tensor: &Tensor,
    rows: impl Iterator<Item = &'r Range<usize>>,
) -> Result<Tensor> {
    let mut shape = tensor.shape().to_vec();
    let mut data = Vec::new();
    let mut taken = 0;
    for range in rows {
        let part = tensor.slice_first(range.clone()).ok_or_else(|| {
            let message = format!("rows {range:?} are beyond its shape {shape:?}");
            Error::new(Code::FactorShape, message)
        })?;
        data.extend_from_slice(part.data());
        taken += range.len();
    }
    if let Some(first) = shape.first_mut() {
        *first = taken;
    }
    Tensor::new(tensor.dtype(), shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a row is another projection's: Megatron's order, and that of several ranks.
    #[test]
    fn every_row_has_its_place() {
        let heads = Heads {
            queries: 4,
            groups: 2,
            size: 3,
        };
        let [q, k, v] = of_qkv(heads);
        assert_eq!(q, [0..6, 12..18]);
        assert_eq!(k, [6..9, 18..21]);
        assert_eq!(v, [9..12, 21..24]);
        assert_eq!((count(&q), count(&v)), (12, 6));
        let [gate, up] = of_gate_up(8, 2).unwrap();
        assert_eq!((gate, up), (vec![0..2, 4..6], vec![2..4, 6..8]));
        assert_eq!(of_gate_up(6, 2).unwrap_err().code(), Code::FactorShape);
        let t = Tensor::from_f32(vec![4, 1], &[0.0, 1.0, 2.0, 3.0]).unwrap();
        let taken = take(&t, [2..4, 0..1].iter()).unwrap();
        assert_eq!(
            (taken.shape(), taken.to_f32().unwrap()),
            (&[3, 1][..], vec![2.0, 3.0, 0.0])
        );
        assert_eq!(
            take(&t, std::iter::once(&(3..5))).unwrap_err().code(),
            Code::FactorShape
        );
    }
}
