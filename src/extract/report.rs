//! What an extraction says of itself.

use serde::Serialize;

/// One module of an extracted adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExtractedModule {
    /// Its path in the base; of a parameter of experts, its name.
    pub module: String,
    /// Rank of what is written; 0 for one that the budget leaves nothing.
    pub rank: usize,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F, in f64, of the factors as they are stored.
    pub error: f64,
    /// What no factors of this rank are below.
    pub bound: f64,
    /// ‖ΔW‖_F.
    pub norm: f64,
}

/// What was extracted. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExtractReport {
    /// Error of what is written, in the type it is written in.
    pub error: f64,
    /// What no adapter of these ranks is below; with a tied form, what no untied one is.
    pub bound: f64,
    /// ‖ΔW‖_F of the modules.
    pub norm: f64,
    /// The highest rank of a module.
    pub rank: usize,
    /// Bytes of the modules' factors.
    pub bytes: u64,
    /// The result in one sentence for people.
    pub summary: String,
    /// The modules that changed, by name.
    pub modules: Vec<ExtractedModule>,
    /// Tensors that changed and go along whole.
    pub extras: Vec<String>,
    /// Number of tensors that are the same in both.
    pub unchanged: usize,
    /// Tensors that changed, or that only one checkpoint has, and are left out.
    pub left_out: Vec<String>,
    /// What is to be known of the adapter, for people.
    pub notes: Vec<String>,
}

/// `part / whole` of squares, as a ratio of lengths; 0 of nothing.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    match whole > 0.0 {
        true => (part.max(0.0) / whole).sqrt(),
        false => 0.0,
    }
}
