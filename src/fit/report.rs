//! What a fit came to, group by group and in all.

use serde::Serialize;

use super::solver::starts::Start;
use crate::adapter::TieGroup;

/// One layer of a fitted tie group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerFit {
    /// Layer number.
    pub layer: u32,
    /// ‖ΔW_l − ΔW_l'‖_F / ‖ΔW_l‖_F over the group's targets; 0 where the layer's update is zero.
    pub error: f64,
}

/// One fitted tie group. Errors are relative: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all its layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GroupFit {
    /// Module paths with `{}` for the layer number, in the order of B's rows.
    pub targets: Vec<String>,
    /// Rank of A and B.
    pub rank: usize,
    /// Whether it has a core for each layer in place of u.
    pub with_core: bool,
    /// Whether it has a v: where one was affordable, and no fit without v of the same bytes is as close.
    pub with_v: bool,
    /// Error of what is written, in the type it is written in.
    pub error: f64,
    /// What no tied adapter of this rank and form is below. Without v, the spans of A and B have
    /// `rank` dimensions for all layers together, whatever u; with v, `bound_with_v`.
    pub bound: f64,
    /// What no tied adapter of this rank is below, with any u and v: only the span of A is common.
    pub bound_with_v: f64,
    /// Error of the `rank` largest singular triplets over all layers, the fit to beat.
    pub baseline: f64,
    /// Error of an untied LoRA of the same bytes and type, without what rounding to it costs: the largest triplets, as many as they buy without
    /// u and v, each layer (and where that is better, each target) at the rank it needs.
    pub untied: f64,
    /// ‖ΔW‖_F over all layers.
    pub norm: f64,
    /// Bytes of the factors before.
    pub bytes_before: u64,
    /// Bytes of A, B, u or the cores, and v.
    pub bytes: u64,
    /// Where the best fit started.
    pub start: Start,
    /// Rounds of alternating least squares from there.
    pub sweeps: usize,
    /// The layer with the largest error.
    pub worst_layer: u32,
    /// Every layer, ascending.
    pub layers: Vec<LayerFit>,
}

impl GroupFit {
    /// Whether it is about this tie group.
    pub fn describes(&self, group: &TieGroup) -> bool {
        let layers = self.layers.iter().map(|l| &l.layer);
        self.targets
            .iter()
            .eq(group.targets.iter().map(|t| &t.module))
            && layers.eq(group.layers.iter().flatten())
    }
}

/// Totals of a fit, and its groups. Errors are over all fitted groups together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FitReport {
    /// As [`GroupFit::error`].
    pub error: f64,
    /// As [`GroupFit::bound`].
    pub bound: f64,
    /// As [`GroupFit::bound_with_v`].
    pub bound_with_v: f64,
    /// As [`GroupFit::baseline`].
    pub baseline: f64,
    /// As [`GroupFit::untied`].
    pub untied: f64,
    /// The highest rank of a group.
    pub rank: usize,
    /// Bytes of the fitted modules' factors before.
    pub bytes_before: u64,
    /// Bytes of the tie groups.
    pub bytes: u64,
    /// The result in one sentence for people.
    pub summary: String,
    /// The fitted tie groups.
    pub groups: Vec<GroupFit>,
    /// Modules kept as they were: tied already, in one layer only, or with an update of zero.
    pub kept: Vec<String>,
}

/// Of all groups together.
pub(super) fn report(groups: Vec<GroupFit>, kept: Vec<String>) -> FitReport {
    let square: f64 = groups.iter().map(|g| g.norm * g.norm).sum();
    let total = |of: fn(&GroupFit) -> f64| {
        let squares = groups.iter().map(|g| (of(g) * g.norm).powi(2));
        (squares.sum::<f64>() / square).sqrt()
    };
    let mut report = FitReport {
        error: total(|g| g.error),
        bound: total(|g| g.bound),
        bound_with_v: total(|g| g.bound_with_v),
        baseline: total(|g| g.baseline),
        untied: total(|g| g.untied),
        rank: groups.iter().map(|g| g.rank).max().unwrap_or(0),
        bytes_before: groups.iter().map(|g| g.bytes_before).sum(),
        bytes: groups.iter().map(|g| g.bytes).sum(),
        summary: String::new(),
        groups,
        kept,
    };
    report.summary = summary(&report);
    report
}

/// Says what the numbers mean, without a claim that a v would break: what was lost, how much of it
/// had to be, and whether tying paid.
fn summary(r: &FitReport) -> String {
    let share = 100.0 * r.bytes as f64 / r.bytes_before.max(1) as f64;
    let took = format!("in {share:.1} % of the bytes");
    if r.error < 1e-5 {
        return format!(
            "the adapter is tied: rank {} holds all of it {took}",
            r.rank
        );
    }
    let lost = format!(
        "tied at rank {}, the updates are off by {:.1} % {took}; no tied adapter of this rank is below {:.1} %",
        r.rank,
        100.0 * r.error,
        100.0 * r.bound_with_v,
    );
    // Less than one part in a hundred is no reason to change the form.
    let verdict = if r.error < 0.99 * r.untied {
        format!(
            ", an untied one of the same bytes is off by {:.1} %",
            100.0 * r.untied
        )
    } else {
        format!(
            ". Tying does not pay here: an untied LoRA of the same bytes (--untied) is off by {:.1} %",
            100.0 * r.untied
        )
    };
    lost + &verdict
}
