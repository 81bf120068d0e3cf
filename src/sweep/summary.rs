//! What the seeds of a method, rank and learning rate come to.

use super::metric::Metric;
use super::result::CellResult;
use crate::adapter::Method;

/// The cells that differ by their seeds alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) method: Method,
    pub(super) rank: usize,
    pub(super) lr: f64,
    pub(super) parameters: u64,
    /// The mean of the seeds' scores; none where a seed has none.
    pub(super) score: Option<f64>,
    /// Their sample standard deviation, where there are several.
    pub(super) spread: Option<f64>,
    /// How many seeds.
    pub(super) seeds: usize,
}

/// Those of `cells`, in the order in which they come.
pub(super) fn summaries(cells: &[CellResult]) -> Vec<Summary> {
    let key = |c: &CellResult| (c.method, c.rank, c.lr.to_bits());
    // Seeds are the innermost axis of a grid.
    cells
        .chunk_by(|a, b| key(a) == key(b) && a.seed.is_some() && b.seed.is_some())
        .filter_map(|seeds| Some(summary(seeds.first()?, seeds)))
        .collect()
}

fn summary(first: &CellResult, seeds: &[CellResult]) -> Summary {
    let finite = |cell: &CellResult| cell.score.filter(|score| score.is_finite());
    let scores: Option<Vec<f64>> = seeds.iter().map(finite).collect();
    let n = seeds.len() as f64;
    let score = scores.as_ref().map(|s| s.iter().sum::<f64>() / n);
    let spread = score.zip(scores).filter(|_| seeds.len() > 1);
    let spread = spread.map(|(mean, scores)| {
        let squares: f64 = scores.iter().map(|s| (s - mean).powi(2)).sum();
        (squares / (n - 1.0)).sqrt()
    });
    Summary {
        method: first.method,
        rank: first.rank,
        lr: first.lr,
        parameters: first.parameters,
        score,
        spread,
        seeds: seeds.len(),
    }
}

/// The best of those that `which` wants; of equal scores, that with the lower rank, and then the first.
pub(super) fn best<'a>(
    summaries: &'a [Summary],
    metric: &Metric,
    which: impl Fn(&Summary) -> bool,
) -> Option<&'a Summary> {
    let key = |s: &Summary| match metric.lower_is_better {
        true => s.score,
        false => s.score.map(|score| -score),
    };
    let scored = summaries.iter().filter(|s| which(s) && s.score.is_some());
    // The first of equals, as `min_by` has it.
    scored.min_by(|a, b| {
        let by_score = key(a)
            .unwrap_or_default()
            .total_cmp(&key(b).unwrap_or_default());
        by_score.then(a.rank.cmp(&b.rank))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LOSS, result};
    use super::*;

    /// Breaks where one seed stands for all, or the rate that is best for a lucky seed is chosen.
    #[test]
    fn seeds_count_together() {
        let seeded = |lr, seed, score| CellResult {
            seed: Some(seed),
            ..result(Method::Tl6, 2, lr, score)
        };
        let cells = [
            seeded(1e-3, 0, Some(1.0)),
            seeded(1e-3, 1, Some(4.0)),
            seeded(1e-2, 0, Some(2.0)),
            seeded(1e-2, 1, Some(2.5)),
            seeded(1e-1, 0, Some(0.5)),
            seeded(1e-1, 1, None),
        ];
        let all = summaries(&cells);
        let told: Vec<_> = all.iter().map(|s| (s.score, s.seeds)).collect();
        assert_eq!(told, [(Some(2.5), 2), (Some(2.25), 2), (None, 2)]);
        let best = best(&all, &LOSS, |_| true).unwrap();
        assert_eq!(best.lr, 1e-2);
        assert!((best.spread.unwrap() - 0.125f64.sqrt()).abs() < 1e-12);

        let one = summaries(&[result(Method::Lora, 2, 1e-3, Some(0.1 + 0.2)); 1]);
        assert_eq!((one[0].score, one[0].spread), (Some(0.1 + 0.2), None));
    }
}
