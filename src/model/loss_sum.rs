//! A loss, and of how many tokens.

/// A loss summed over target tokens, so that sums over batches of unequal length stay exact.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Sum of −ln p(target), in nats.
    pub nats: f64,
    /// Number of target tokens.
    pub tokens: usize,
}

impl LossSum {
    /// Nats per target token; NaN without targets.
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }
}
