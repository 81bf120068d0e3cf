//! MLX's factors as the domain has them: rows where MLX has columns.

use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The transpose of a matrix, of any element that is whole bytes.
///
/// # Errors
/// [`Code::FactorShape`] for what is no matrix.
pub(super) fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let ([rows, columns], item) = (tensor.shape(), tensor.dtype().bits() / 8) else {
        let message = format!("has shape {:?}, which is no matrix", tensor.shape());
        return Err(Error::new(Code::FactorShape, message));
    };
    let (rows, columns) = (*rows, *columns);
    let data = tensor.data();
    let mut out = vec![0; data.len()];
    for (i, row) in data.chunks_exact((columns * item).max(1)).enumerate() {
        for (j, element) in row.chunks_exact(item.max(1)).enumerate() {
            let at = (j * rows + i) * item;
            if let Some(place) = out.get_mut(at..at + item) {
                place.copy_from_slice(element);
            }
        }
    }
    Tensor::new(tensor.dtype(), vec![columns, rows], out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn rows_become_columns() {
        let t = Tensor::new(Dtype::F16, vec![2, 3], (0u8..12).collect::<Vec<_>>()).unwrap();
        let back = transposed(&t).unwrap();
        assert_eq!(back.shape(), [3, 2]);
        assert_eq!(**back.data(), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert!(transposed(&back).unwrap().same_bytes(&t));
        let vector = Tensor::from_f32(vec![1], &[0.0]).unwrap();
        assert_eq!(transposed(&vector).unwrap_err().code(), Code::FactorShape);
    }
}
