//! Cells side by side, one thread each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::grid::Cell;
use super::result::CellResult;
use crate::error::{Code, Error, Result};

/// What the one who waits is told.
pub(super) enum News {
    /// A cell of this number has begun.
    Begun(usize, Cell),
    /// It is done.
    Done(usize, CellResult),
}

/// Does `work` for every cell on `workers` threads, and tells `news` on this one. After an error no cell is begun; those that
/// have are ended.
///
/// # Errors
/// The first of `work` or `news`; [`Code::Io`] where there is no thread to be had.
pub(super) fn side_by_side(
    workers: usize,
    cells: &[(usize, Cell)],
    work: &(dyn Fn(Cell) -> Result<CellResult> + Sync),
    mut news: impl FnMut(News) -> Result<()>,
) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (tell, hear) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            // Products are shared out in the pool that they are called from: this one has one thread.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let pool = pool.map_err(|e| {
                failed.store(true, Ordering::Relaxed);
                Error::new(Code::Io, "no thread to train on").cause(e)
            })?;
            let (tell, next, failed) = (tell.clone(), &next, &failed);
            scope.spawn(move || {
                while !failed.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((number, cell)) = cells.get(at).copied() else {
                        return;
                    };
                    let begun = tell.send(Ok(News::Begun(number, cell)));
                    let done = pool.install(|| work(cell));
                    if done.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    let done = done.map(|result| News::Done(number, result));
                    if begun.and(tell.send(done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        let mut outcome = Ok(());
        for heard in hear {
            // What others did until then is kept.
            let told = heard.and_then(&mut news);
            if told.is_err() {
                failed.store(true, Ordering::Relaxed);
                outcome = outcome.and(told);
            }
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::result;
    use super::*;
    use crate::adapter::Method;

    fn cells(n: usize) -> Vec<(usize, Cell)> {
        (0..n)
            .map(|rank| {
                let cell = Cell {
                    method: Method::Lora,
                    rank,
                    lr: 1.0,
                    seed: None,
                };
                (10 + rank, cell)
            })
            .collect()
    }

    fn done(cell: Cell) -> CellResult {
        result(cell.method, cell.rank, cell.lr, None)
    }

    /// Breaks where a cell is lost, done twice, or put in the place of another.
    #[test]
    fn every_cell_is_done_once() {
        let mut seen = Vec::new();
        side_by_side(3, &cells(20), &|cell| Ok(done(cell)), |news| {
            if let News::Done(number, result) = news {
                seen.push((number, result.rank));
            }
            Ok(())
        })
        .unwrap();
        seen.sort_unstable();
        let want: Vec<_> = (0..20).map(|rank| (10 + rank, rank)).collect();
        assert_eq!(seen, want);
    }

    /// Breaks where a failure is lost or hangs, or what was done beside it is.
    #[test]
    fn a_failure_ends_all() {
        let work = |cell: Cell| match cell.rank {
            2 => Err(Error::new(Code::Interrupted, "stopped on request")),
            _ => Ok(done(cell)),
        };
        let mut kept = Vec::new();
        let e = side_by_side(2, &cells(1000), &work, |news| {
            if let News::Done(_, result) = news {
                kept.push(result.rank);
            }
            Ok(())
        })
        .unwrap_err();
        assert_eq!(e.code(), Code::Interrupted);
        assert!(kept.contains(&0) && kept.contains(&1), "{kept:?}");
        let full = |_| Err(Error::new(Code::Io, "the disk is full"));
        let e = side_by_side(2, &cells(9), &|cell| Ok(done(cell)), full).unwrap_err();
        assert_eq!(e.code(), Code::Io);
    }
}
