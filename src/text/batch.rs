//! Examples, and batches of them without padding.

use std::ops::Range;

/// Target of a position that has none: no loss is taken there.
pub const IGNORE: u32 = u32::MAX;

/// Positions that go through the model at once in a comparison.
const POSITIONS: usize = 2048;

/// One tokenised example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// Whether each token is to be predicted; the first never can be.
    pub predicted: Vec<bool>,
}

/// Examples end to end. There is no padding: attention and positions start anew with each
/// sequence, so that no example sees another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Input token of each position.
    pub tokens: Vec<u32>,
    /// Token to be predicted at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// The positions of each sequence; together they cover all positions in order.
    pub sequences: Vec<Range<usize>>,
}

impl Batch {
    /// The batch of `examples` in their order. The last token of each is only ever a target.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            let inputs = example.tokens.len().saturating_sub(1);
            let start = batch.tokens.len();
            batch.tokens.extend(&example.tokens[..inputs]);
            let next = example.tokens.iter().zip(&example.predicted).skip(1);
            batch
                .targets
                .extend(next.map(|(token, yes)| if *yes { *token } else { IGNORE }));
            batch.targets.resize(start + inputs, IGNORE);
            batch.sequences.push(start..start + inputs);
        }
        batch
    }

    /// Number of positions that have a target.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORE).count()
    }
}

/// Texts in their order, as many at a time as fit.
pub(crate) fn batches(texts: &[Example]) -> impl Iterator<Item = Batch> + '_ {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut positions = 0;
        let within = |e: &&Example| {
            positions += e.tokens.len();
            positions <= POSITIONS
        };
        let count = rest.iter().take_while(within).count().max(1);
        let (now, later) = rest.split_at(count.min(rest.len()));
        rest = later;
        (!now.is_empty()).then(|| Batch::new(now))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens_and_never_cross_examples() {
        let example = |tokens: &[u32], from: usize| Example {
            tokens: tokens.to_vec(),
            predicted: (0..tokens.len()).map(|i| i >= from).collect(),
        };
        let batch = Batch::new([&example(&[1, 2, 3], 0), &example(&[4, 5, 6, 7], 2)]);
        assert_eq!(batch.tokens, [1, 2, 4, 5, 6]);
        assert_eq!(batch.targets, [2, 3, IGNORE, 6, 7]);
        assert_eq!(batch.sequences, [0..2, 2..5]);
        assert_eq!(batch.target_count(), 4);
    }
}
