//! Which multiples of its step a number may be: those of the state that the numbers before it lead to.
//!
//! Dependent quantisation, as in video coding (VVC): two sets of multiples, 2k and 2k − sgn k, and a
//! machine of eight states that goes by the parity of k. A line begins in state 0.

/// Number of states.
pub const STATES: usize = 8;

/// The state after an integer of even or odd parity.
pub const NEXT: [[u8; 2]; STATES] = [
    [0, 2],
    [5, 7],
    [1, 3],
    [6, 4],
    [2, 0],
    [4, 6],
    [3, 1],
    [7, 5],
];

/// Which set of multiples a state has: 0 for 2k, 1 for 2k − sgn k.
pub fn set(state: usize) -> usize {
    state & 1
}

/// The multiple of the step that `k` stands for.
pub fn multiple(set: usize, k: i32) -> i32 {
    2 * k - set as i32 * k.signum()
}

/// The state after `k`.
pub fn next(state: usize, k: i32) -> usize {
    NEXT[state % STATES][(k & 1) as usize].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a state cannot be reached, or a set lacks a multiple that the other has not.
    #[test]
    fn the_two_sets_share_zero_alone() {
        let of = |s| (-50..=50).map(|k| multiple(s, k)).collect::<Vec<_>>();
        let both = of(0).into_iter().filter(|x| of(1).contains(x));
        assert_eq!(both.collect::<Vec<_>>(), [0]);
        let mut into: Vec<u8> = NEXT.iter().flatten().copied().collect();
        into.sort_unstable();
        assert_eq!(into, (0..8).flat_map(|s| [s, s]).collect::<Vec<u8>>());
        assert!(NEXT.iter().all(|n| n[0] != n[1]));
    }
}
