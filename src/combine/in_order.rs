//! Work shared out among threads, whose error is the same however they are timed.

use rayon::iter::IndexedParallelIterator;

use crate::error::Result;

/// All results in order, or the first error in that order.
///
/// # Errors
/// That of the work.
pub(super) fn first_error<T: Send>(
    work: impl IndexedParallelIterator<Item = Result<T>>,
) -> Result<Vec<T>> {
    let done: Vec<Result<T>> = work.collect();
    done.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;
    use crate::error::{Code, Error};

    /// Breaks where which of two mistakes is told depends on which thread was faster.
    #[test]
    fn the_first_of_two_mistakes_is_told() {
        for _ in 0..200 {
            let work = (0..64).into_par_iter().map(|i| match i % 7 {
                3 => Err(Error::new(Code::Usage, i.to_string())),
                _ => Ok(i),
            });
            assert_eq!(first_error(work).unwrap_err().message(), "3");
        }
    }
}
