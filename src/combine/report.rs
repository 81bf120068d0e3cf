//! What a combination came to.

use serde::Serialize;

use super::method::CombineMethod;

/// One adapter of a combination.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CombinedPart {
    /// What it is called: usually the path.
    pub adapter: String,
    /// Its weight.
    pub weight: f64,
    /// A `.tl`'s root, or a digest over the files of a PEFT directory.
    pub identity: String,
    /// Number of modules it adapts.
    pub modules: usize,
    /// Its highest rank.
    pub rank: usize,
    /// Bytes of its files.
    pub bytes: u64,
}

/// One module of a combination.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CombinedModule {
    /// Its path in the base, with the expert where there is one.
    pub module: String,
    /// The rank in each adapter that has it.
    pub ranks: Vec<usize>,
    /// The rank of the result; 0 where it is left out, being zero.
    pub rank: usize,
    /// ‖ΔW − Σ w_i ΔW_i‖_F / ‖Σ w_i ΔW_i‖_F of what is written.
    pub error: f64,
    /// ‖Σ w_i ΔW_i‖_F.
    pub norm: f64,
}

/// What a combination came to. Errors are relative, over all modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CombineReport {
    /// How.
    pub method: CombineMethod,
    /// The adapters, in the order given.
    pub adapters: Vec<CombinedPart>,
    /// ‖ΔW − Σ w_i ΔW_i‖_F / ‖Σ w_i ΔW_i‖_F of what is written, in the type it is written in: rounding with `cat`, the
    /// truncation too with `svd`. The other methods mean to give something else than that sum.
    pub error: f64,
    /// What no LoRA of these ranks is below: the singular values that are left out, relative to ‖Σ w_i ΔW_i‖_F. `None`
    /// where nothing is cut, or something else than that sum.
    pub bound: Option<f64>,
    /// ‖ΔW − D‖_F / ‖D‖_F of what is written, with D what a method on ΔW makes before it is cut; `None` of others.
    pub cut: Option<f64>,
    /// The highest rank of the result.
    pub rank: usize,
    /// Modules that more than one adapter has.
    pub common: usize,
    /// Modules of the result that are tied over layers.
    pub tied: usize,
    /// The modules.
    pub modules: Vec<CombinedModule>,
    /// Bytes of all adapters' factors and extras before.
    pub tensor_bytes_before: u64,
    /// Bytes of those of the result.
    pub tensor_bytes: u64,
    /// What was noticed, for people.
    pub notes: Vec<String>,
}
