//! Orthonormal bases of the columns of tall matrices.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply_q,
    apply_block_householder_sequence_transpose_on_the_left_in_place_scratch as transpose_scratch,
    apply_block_householder_sequence_transpose_on_the_left_in_place_with_conj as apply_transpose,
};
use faer::linalg::solvers::Qr;
use faer::{Conj, Mat, MatRef, Par};

/// A basis as reflections: it takes no more than the matrix did.
pub(in crate::fit) struct Basis {
    qr: Qr<f64>,
    /// Length of a vector.
    pub(in crate::fit) rows: usize,
    /// Number of vectors.
    pub(in crate::fit) size: usize,
}

impl Basis {
    /// The basis of a matrix's columns, and their coordinates in it (size × columns).
    pub(in crate::fit) fn of(columns: &Mat<f64>) -> (Self, Mat<f64>) {
        let qr = columns.qr();
        let coordinates = qr.thin_R().to_owned();
        let basis = Self {
            qr,
            rows: columns.nrows(),
            size: coordinates.nrows(),
        };
        (basis, coordinates)
    }

    /// Vectors (size × n) in full length (rows × n).
    pub(in crate::fit) fn lift(&self, small: MatRef<'_, f64>) -> Mat<f64> {
        let mut full = Mat::zeros(self.rows, small.ncols());
        full.as_mut().subrows_mut(0, self.size).copy_from(small);
        let block = self.qr.Q_coeff().nrows();
        let scratch = apply_scratch::<f64>(self.rows, block, small.ncols());
        apply_q(
            self.qr.Q_basis(),
            self.qr.Q_coeff(),
            Conj::No,
            full.as_mut(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
        full
    }

    /// Coordinates of vectors (rows × n) in a basis that begins with this one: the first `size`
    /// rows are those in it, the others (n at most) those of what lies outside.
    pub(in crate::fit) fn coordinates(&self, mut vectors: Mat<f64>) -> Mat<f64> {
        let n = vectors.ncols();
        let block = self.qr.Q_coeff().nrows();
        let scratch = transpose_scratch::<f64>(self.rows, block, n);
        apply_transpose(
            self.qr.Q_basis(),
            self.qr.Q_coeff(),
            Conj::No,
            vectors.as_mut(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
        let outside = vectors.subrows(self.size, self.rows - self.size).qr();
        let outside = outside.thin_R();
        let mut all = Mat::zeros(self.size + outside.nrows(), n);
        let (mut inside, mut rest) = all.as_mut().split_at_row_mut(self.size);
        inside.copy_from(vectors.subrows(0, self.size));
        rest.copy_from(outside);
        all
    }
}
