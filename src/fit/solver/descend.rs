//! A descent by rounds of least squares that looks ahead: Anderson's mixing of the last rounds, kept
//! only where the error falls.

use faer::linalg::solvers::Solve;
use faer::{Mat, Scale, Side};

/// Rounds that are mixed.
const MEMORY: usize = 6;
/// The rounds end where this many gain less than this share of the error.
const PATIENCE: usize = 8;
const GAIN: f64 = 1e-5;
/// The mix keeps to short steps by this share of the history's largest square.
const DAMPING: f64 = 1e-10;

/// What a descent moves.
pub(in crate::fit) trait Point: Clone {
    /// The numbers that the next round reads.
    fn parts(&self) -> Vec<&Mat<f64>>;
    /// This point with other numbers.
    fn with(&self, parts: Vec<Mat<f64>>) -> Self;
}

/// Where a descent ended.
pub(in crate::fit) struct Descent<P> {
    pub(in crate::fit) point: P,
    pub(in crate::fit) error: f64,
    pub(in crate::fit) rounds: usize,
}

/// At most `most` rounds from `point`, whose error is known; fewer where the error is at `floor` or
/// falls no more. `round` gives the next point and its error. The error never rises.
pub(in crate::fit) fn descend<P: Point>(
    point: P,
    error: f64,
    (most, floor): (usize, f64),
    round: impl Fn(&P) -> Option<(P, f64)>,
) -> Descent<P> {
    let mut now = Descent {
        point,
        error,
        rounds: 0,
    };
    let mut history = History::default();
    let mut past = vec![error];
    while now.rounds < most && now.error > floor {
        now.rounds += 1;
        let ahead = history.mix(&now.point);
        let mixed = ahead.is_some();
        let tried = ahead.and_then(|from| Some((round(&from)?, from)));
        let better = tried.filter(|((_, e), _)| *e <= now.error);
        let ((next, error), from) = match better {
            Some(found) => found,
            None => {
                // What led astray is forgotten.
                if mixed {
                    history.clear();
                }
                match round(&now.point) {
                    Some(next) if next.1 <= now.error => (next, now.point.clone()),
                    _ => break,
                }
            }
        };
        history.push(&from, &next);
        now = Descent {
            point: next,
            error,
            ..now
        };
        past.push(error);
        let before = past[past.len().saturating_sub(PATIENCE + 1)];
        if past.len() > PATIENCE && before - error < GAIN * before {
            break;
        }
    }
    now
}

/// The last rounds: where each ended, and how far it went.
#[derive(Default)]
struct History {
    ends: Vec<Vec<Mat<f64>>>,
    steps: Vec<Vec<Mat<f64>>>,
}

impl History {
    fn clear(&mut self) {
        self.ends.clear();
        self.steps.clear();
    }

    fn push<P: Point>(&mut self, from: &P, to: &P) {
        let ends: Vec<Mat<f64>> = to.parts().into_iter().cloned().collect();
        let step = |(end, start): (&Mat<f64>, &Mat<f64>)| end - start;
        self.steps
            .push(ends.iter().zip(from.parts()).map(step).collect());
        self.ends.push(ends);
        if self.ends.len() > MEMORY {
            self.ends.remove(0);
            self.steps.remove(0);
        }
    }

    /// The combination of the rounds' ends, of weight one in all, whose combined step is shortest.
    fn mix<P: Point>(&self, now: &P) -> Option<P> {
        let n = self.steps.len();
        if n < 2 {
            return None;
        }
        let inner = |a: &[Mat<f64>], b: &[Mat<f64>]| -> f64 {
            let part = |(a, b): (&Mat<f64>, &Mat<f64>)| -> f64 {
                (0..a.ncols())
                    .map(|k| a.col(k).transpose() * b.col(k))
                    .sum()
            };
            a.iter().zip(b).map(part).sum()
        };
        let mut gram = Mat::from_fn(n, n, |i, j| match j <= i {
            true => inner(&self.steps[i], &self.steps[j]),
            false => 0.0,
        });
        let largest = (0..n).fold(0.0, |m: f64, i| m.max(gram[(i, i)]));
        if !(largest.is_finite() && largest > 0.0) {
            return None;
        }
        for i in 0..n {
            gram[(i, i)] += DAMPING * largest;
        }
        let mut weights = Mat::from_fn(n, 1, |_, _| 1.0);
        gram.llt(Side::Lower).ok()?.solve_in_place(&mut weights);
        let sum: f64 = (0..n).map(|i| weights[(i, 0)]).sum();
        if !(sum.is_finite() && sum > 0.0) {
            return None;
        }
        let part = |p: usize| {
            let mut mixed = Scale(weights[(0, 0)] / sum) * &self.ends[0][p];
            for i in 1..n {
                mixed += Scale(weights[(i, 0)] / sum) * &self.ends[i][p];
            }
            mixed
        };
        Some(now.with((0..self.ends[0].len()).map(part).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Point for Mat<f64> {
        fn parts(&self) -> Vec<&Mat<f64>> {
            vec![self]
        }

        fn with(&self, parts: Vec<Mat<f64>>) -> Self {
            parts.into_iter().next().unwrap()
        }
    }

    /// Rounds that shrink each number by its own factor: a slow descent to zero.
    fn shrink(x: &Mat<f64>) -> Option<(Mat<f64>, f64)> {
        const RATES: [f64; 4] = [0.999, 0.99, 0.9, 0.5];
        let next = Mat::from_fn(4, 1, |i, _| RATES[i] * x[(i, 0)]);
        let error = next.squared_norm_l2();
        Some((next, error))
    }

    /// Breaks where looking ahead does not shorten a slow descent, the error rises, or the end is not
    /// the point whose error is told.
    #[test]
    fn a_slow_descent_is_shortened() {
        let start = Mat::from_fn(4, 1, |_, _| 1.0);
        let end = descend(start.clone(), 4.0, (200, 1e-12), shrink);
        // Without looking ahead 13 800 rounds.
        assert!(
            end.rounds < 40 && end.error <= 1e-12,
            "{} {}",
            end.rounds,
            end.error
        );
        assert!((end.point.squared_norm_l2() - end.error).abs() < 1e-18);
        let mut last = 4.0;
        for most in 0..12 {
            let end = descend(start.clone(), 4.0, (most, 0.0), shrink);
            assert!(end.rounds <= most && end.error <= last);
            last = end.error;
        }
    }

    /// Breaks where a round that only rises, or fails, is taken.
    #[test]
    fn a_descent_that_cannot_go_down_stays() {
        let start = Mat::from_fn(4, 1, |_, _| 1.0);
        let up = |x: &Mat<f64>| Some((x * Scale(2.0), 16.0));
        let end = descend(start.clone(), 4.0, (9, 0.0), up);
        assert_eq!((end.error, end.point.as_ref()), (4.0, start.as_ref()));
        let end = descend(start.clone(), 4.0, (9, 0.0), |_| None);
        assert_eq!((end.error, end.point.as_ref()), (4.0, start.as_ref()));
    }
}
