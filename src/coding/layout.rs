//! Which number of a tensor belongs to which line, and which lines to which stream.

use crate::error::{Code, Error, Result};

/// Fewest numbers of a stream that is not the last: enough that what a stream costs is nothing, few
/// enough that streams are read in parallel.
const STREAM: usize = 1 << 15;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Numbers that lie one after the other: for A, what one rank reads.
    Rows,
    /// One number of every row: for B, what one rank writes.
    Columns,
}

/// A tensor's extents: matrices of rows and columns, as many as the axes before the last two say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Number of matrices.
    pub slices: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
}

impl Extents {
    /// Those of a shape; a vector is one row.
    ///
    /// # Errors
    /// [`Code::ShapeDisagrees`] for a scalar, or a tensor without numbers.
    pub fn of(shape: &[usize]) -> Result<Self> {
        let none = || Error::new(Code::ShapeDisagrees, "a coded tensor has one axis or more");
        let (columns, before) = shape.split_last().ok_or_else(none)?;
        let (rows, outer) = before.split_last().unwrap_or((&1, &[]));
        let slices = outer.iter().try_fold(1usize, |n, e| n.checked_mul(*e));
        let slices = slices.ok_or_else(none)?;
        let all = slices
            .checked_mul(*rows)
            .and_then(|n| n.checked_mul(*columns));
        match all {
            Some(1..) => Ok(Self {
                slices,
                rows: *rows,
                columns: *columns,
            }),
            _ => Err(none()),
        }
    }

    /// Numbers of one matrix.
    pub fn slice_len(&self) -> usize {
        self.rows * self.columns
    }

    /// Lines of one matrix.
    pub fn lines(&self, axis: Axis) -> usize {
        match axis {
            Axis::Rows => self.rows,
            Axis::Columns => self.columns,
        }
    }

    /// Numbers of a line.
    pub fn line_len(&self, axis: Axis) -> usize {
        match axis {
            Axis::Rows => self.columns,
            Axis::Columns => self.rows,
        }
    }

    /// How many matrices a stream holds; the last one may hold fewer.
    pub(super) fn slices_per_stream(&self) -> usize {
        STREAM.div_ceil(self.slice_len()).min(self.slices)
    }

    /// Where number `i` of line `line` lies in its matrix.
    pub(super) fn place(&self, axis: Axis, line: usize, i: usize) -> usize {
        match axis {
            Axis::Rows => line * self.columns + i,
            Axis::Columns => i * self.columns + line,
        }
    }
}
