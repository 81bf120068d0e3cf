//! What coding an adapter came to.

use serde::Serialize;

/// One module of a coded adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedModule {
    /// Its path in the base.
    pub module: String,
    /// Rank before.
    pub rank_before: usize,
    /// Terms that are coded; 0 for one that is left out.
    pub rank: usize,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of what a reader gets; 0 where the update is zero.
    pub error: f64,
    /// ‖ΔW‖_F.
    pub norm: f64,
}

/// What coding lost and saved. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all coded modules together, of the F32 values
/// that a reader gets; bits are for each number of the factors as they were.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedReport {
    /// Error of what is written.
    pub error: f64,
    /// Numbers of the coded modules' factors before.
    pub numbers: u64,
    /// Bytes of the file, all of them.
    pub file_bytes: u64,
    /// Bytes of the coded tensors.
    pub coded_bytes: u64,
    /// Bits of the whole file for each of the numbers.
    pub bits: f64,
    /// Bits that no code of Gaussian components of these energies needs less than at this error.
    pub bound: f64,
    /// `bits` less `bound`.
    pub gap: f64,
    /// The result in one sentence for people.
    pub summary: String,
    /// The coded modules, in the order of the adapter.
    pub modules: Vec<CodedModule>,
    /// Modules kept as they were.
    pub kept: Vec<String>,
}

impl CodedReport {
    pub(super) fn summarise(&mut self) {
        self.summary = format!(
            "coded, the updates are off by {:.2} % in {:.2} bits a number; no code of Gaussian \
             components needs less than {:.2}",
            100.0 * self.error,
            self.bits,
            self.bound
        );
    }
}
