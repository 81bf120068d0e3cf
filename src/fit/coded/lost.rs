//! What coding lost, as texts measure it.

/// Squared errors of a module, and its squared norms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    /// ‖ΔW − ΔW'‖², ‖ΔW‖².
    pub(super) updates: [f64; 2],
    /// E‖(ΔW − ΔW')·x‖², E‖ΔW·x‖².
    pub(super) outputs: [f64; 2],
}

/// The relative error of all modules together.
pub(super) fn share(lost: &[Lost], of: impl Fn(&Lost) -> [f64; 2]) -> f64 {
    let [off, all] = lost
        .iter()
        .map(of)
        .fold([0.0; 2], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
    match all > 0.0 {
        true => (off / all).sqrt(),
        false => 0.0,
    }
}
