//! How few bits a code of Gaussian components needs at an error.
//!
//! A term σ·u·vᵀ has u of m and v of n numbers. Coded at mean squared errors d_u and d_v (of lengths 1), the term
//! is off by σ²·(1 − (1 − d_u)·(1 − d_v)), and by the rate-distortion function of Gaussian numbers
//! takes at least m/2·log2(1/d_u) + n/2·log2(1/d_v) bits. Of all distributions of their variance, Gaussian
//! numbers take most; those of adapters are near it.
//!
//! Where errors count by the outputs, σ is of ΔW·K^½, and v is off by σ²·s·d_v, where s has the geometric mean of K's
//! diagonal: less than any code gets by with that treats the inputs as uncorrelated, however it shares the error out.
//!
//! The bound of a sum of terms is the largest value of the Lagrangian dual: for any price λ of a bit,
//! Σ min(R + D/λ) − D_max/λ bits are not too many, however the error is shared out.

/// A rank-one term of an update, or a line of a factor that is coded as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// σ²; of a line, the error of leaving it out.
    pub(super) square: f64,
    /// Numbers of u and of v; of a line, its numbers and none.
    pub(super) sizes: [f64; 2],
    /// The error of v's numbers beside σ² where none of them is coded: 1 but where errors of numbers count
    /// otherwise than the numbers do.
    pub(super) second: f64,
}

impl Term {
    /// A line of `size` numbers without which the updates are off by `square`.
    pub(super) fn line(square: f64, size: usize) -> Self {
        Self {
            square,
            sizes: [size as f64, 0.0],
            second: 1.0,
        }
    }

    /// Bits and squared error of the best code where a bit is worth an error of `price`.
    pub(super) fn at(&self, price: f64) -> (f64, f64) {
        const STEPS: usize = 50;
        let dropped = (0.0, self.square);
        if self.square <= 0.0 {
            return dropped;
        }
        if self.sizes[1] == 0.0 {
            let d = self.sizes[0] * price / (2.0 * self.square * std::f64::consts::LN_2);
            return match d < 1.0 {
                true => (-0.5 * self.sizes[0] * d.log2(), self.square * d),
                false => dropped,
            };
        }
        // At the optimum d_u·(1 − s·d_v) and d_v·(1 − d_u) are these shares.
        let shares = self
            .sizes
            .map(|n| n * price / (2.0 * self.square * std::f64::consts::LN_2));
        let shares = [shares[0], shares[1] / self.second];
        let mut d = shares;
        for _ in 0..STEPS {
            let u = shares[0] / (1.0 - self.second * d[1]).max(1e-9);
            let v = (shares[1] / (1.0 - u).max(1e-9)).min(1.0);
            if u >= 1.0 || (v >= 1.0 && self.second >= 1.0) {
                return dropped;
            }
            let moved = (u - d[0]).abs() + (v - d[1]).abs();
            d = [u, v];
            if moved < 1e-14 {
                break;
            }
        }
        let bits = -0.5 * (self.sizes[0] * d[0].log2() + self.sizes[1] * d[1].log2());
        let off = self.square * (d[0] + self.second * d[1] - self.second * d[0] * d[1]);
        match bits + off / price < self.square / price {
            true => (bits, off),
            false => dropped,
        }
    }
}

/// Bits that all terms need for a squared error, and the price of a bit there.
pub(super) fn bound(terms: &[Term], square: f64) -> (f64, f64) {
    const STEPS: usize = 100;
    let total: f64 = terms.iter().map(|t| t.square).sum();
    let (mut low, mut high) = (total * 1e-18, total);
    let mut best = (0.0, high);
    for _ in 0..STEPS {
        let price = (low * high).sqrt();
        let (bits, off) = terms.iter().fold((0.0, 0.0), |sum, t| {
            let (bits, off) = t.at(price);
            (sum.0 + bits, sum.1 + off)
        });
        let dual = bits + (off - square) / price;
        if dual > best.0 {
            best = (dual, price);
        }
        match off > square {
            true => high = price,
            false => low = price,
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(square: f64, n: f64) -> Term {
        Term {
            square,
            sizes: [n, n],
            second: 1.0,
        }
    }

    /// For equal terms and small errors, d = D/2e for each side: n·log2(2e/D) bits a term.
    #[test]
    fn equal_terms_share_the_error() {
        let terms = [term(3.0, 500.0); 4];
        let off = 1e-4 * 12.0;
        let (bits, _) = bound(&terms, off);
        let closed = 4.0 * 500.0 * (2.0 / 1e-4f64).log2();
        assert!((bits / closed - 1.0).abs() < 1e-4, "{bits} {closed}");
    }

    /// Breaks where a term is paid for that is below the water.
    #[test]
    fn small_terms_are_left_out() {
        let terms = [term(1.0, 500.0), term(1e-6, 500.0)];
        let (bits, price) = bound(&terms, 0.01);
        assert_eq!(terms[1].at(price).0, 0.0);
        let alone = bound(&terms[..1], 0.01 - 1e-6).0;
        assert!((bits / alone - 1.0).abs() < 1e-3);
        assert!(bound(&terms, 1.000_001).0 < 0.01);
    }
}
