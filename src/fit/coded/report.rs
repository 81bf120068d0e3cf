//! What coding an adapter came to.

use serde::Serialize;

use super::assemble::{Assembled, coded_bytes};
use super::bound::bound;
use super::lost;
use super::plan::{At, Found, Plan};

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
    /// √(E‖(ΔW − ΔW')·x‖² ÷ E‖ΔW·x‖²), where it was coded to outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
}

/// What coding lost and saved. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all coded modules together, of the F32 values
/// that a reader gets; bits are for each number of the factors as they were.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedReport {
    /// Error of what is written.
    pub error: f64,
    /// √(Σ E‖(ΔW − ΔW')·x‖² ÷ Σ E‖ΔW·x‖²), x being what modules read on the texts, where it was coded to outputs. Then this
    /// is the error that `bound` is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Numbers of the coded modules' factors before.
    pub numbers: u64,
    /// Bytes of the file, all of them.
    pub file_bytes: u64,
    /// Bytes of the coded tensors.
    pub coded_bytes: u64,
    /// Bits of the whole file for each of the numbers.
    pub bits: f64,
    /// Bits that no code of Gaussian components of these energies needs less than at this error; of an error of outputs, no
    /// code that treats the inputs of a module as uncorrelated.
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

/// One adapter of several that are coded together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedAdapter {
    /// Error of its coded modules together.
    pub error: f64,
    /// Bytes of its file, without what it shares.
    pub file_bytes: u64,
    /// Its coded modules, in its order.
    pub modules: Vec<CodedModule>,
    /// Modules kept as they were.
    pub kept: Vec<String>,
}

/// What coding several adapters together lost and saved; in the terms of [`CodedReport`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CodedFleet {
    /// Error over all coded modules of all adapters.
    pub error: f64,
    /// As [`CodedReport::output_error`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Numbers of the factors before; shared ones count once.
    pub numbers: u64,
    /// Bytes of all files, and of what they share.
    pub file_bytes: u64,
    /// Of these, what several of them share.
    pub shared_bytes: u64,
    /// Bytes of the coded tensors.
    pub coded_bytes: u64,
    /// Bits of all these files for each of the numbers.
    pub bits: f64,
    /// As [`CodedReport::bound`].
    pub bound: f64,
    /// `bits` less `bound`.
    pub gap: f64,
    /// The result in one sentence for people.
    pub summary: String,
    /// In the order given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<CodedAdapter>,
}

impl CodedReport {
    /// Of a fleet of one.
    pub(super) fn of(fleet: CodedFleet) -> Self {
        let only = fleet.adapters.into_iter().next();
        let (modules, kept) = only.map(|a| (a.modules, a.kept)).unwrap_or_default();
        Self {
            error: fleet.error,
            output_error: fleet.output_error,
            numbers: fleet.numbers,
            file_bytes: fleet.file_bytes,
            coded_bytes: fleet.coded_bytes,
            bits: fleet.bits,
            bound: fleet.bound,
            gap: fleet.gap,
            summary: fleet.summary,
            modules,
            kept,
        }
    }
}

pub(super) fn report(plan: &Plan<'_>, found: &Found, made: &Assembled) -> CodedFleet {
    let per_number = |bits: f64| bits / plan.numbers.max(1) as f64;
    let outputs = found.lost.as_ref().map(|l| lost::share(l, |l| l.outputs));
    let updates = found.lost.as_ref().map(|l| lost::share(l, |l| l.updates));
    let (error, counted) = (
        updates.unwrap_or(found.error),
        outputs.unwrap_or(found.error),
    );
    let off = counted * counted * plan.square;
    let bits = per_number(8.0 * made.total() as f64);
    let bound = per_number(bound(&plan.terms, off).0);
    let all = modules(plan, found);
    let adapter = |(number, file_bytes): (usize, &u64)| {
        let own: Vec<_> = all.iter().filter(|m| m.at.0 == number).collect();
        let off = own.iter().map(|m| m.squares[0]).sum();
        let square = own.iter().map(|m| m.squares[1]).sum();
        CodedAdapter {
            error: share(off, square),
            file_bytes: *file_bytes,
            modules: own.into_iter().map(|m| m.module.clone()).collect(),
            kept: kept(plan, number),
        }
    };
    let told = match outputs {
        None => format!("the updates are off by {:.2} %", 100.0 * error),
        Some(outputs) => format!(
            "the outputs on the texts are off by {:.2} % and the updates by {:.2} %,",
            100.0 * outputs,
            100.0 * error
        ),
    };
    CodedFleet {
        error,
        output_error: outputs,
        numbers: plan.numbers,
        file_bytes: made.total(),
        shared_bytes: made.shared_bytes,
        coded_bytes: coded_bytes(&made.adapters),
        bits,
        bound,
        gap: bits - bound,
        summary: format!(
            "coded, {told} in {bits:.2} bits a number; no code of Gaussian components needs less than {bound:.2}",
        ),
        adapters: made.bytes.iter().enumerate().map(adapter).collect(),
    }
}

/// A module with where it stands, its squared error, and ‖ΔW‖².
struct Measured {
    at: At,
    squares: [f64; 2],
    module: CodedModule,
}

impl Measured {
    fn new(at: At, module: String, ranks: [usize; 2], squares: [f64; 2]) -> Self {
        Self {
            at,
            squares,
            module: CodedModule {
                module,
                rank_before: ranks[0],
                rank: ranks[1],
                error: share(squares[0], squares[1]),
                norm: squares[1].sqrt(),
                output_error: None,
            },
        }
    }
}

fn share(off: f64, square: f64) -> f64 {
    if square > 0.0 {
        (off / square).sqrt()
    } else {
        0.0
    }
}

fn modules(plan: &Plan<'_>, found: &Found) -> Vec<Measured> {
    let measured = |i: usize| found.lost.as_ref().map(|l| l[i]);
    let plain = plan.places.iter().zip(&found.coded).enumerate();
    let plain = plain.map(|(i, (place, coded))| {
        let group = plan.group(place.at);
        let paths = group.targets.iter();
        let paths: Vec<String> = paths
            .map(|t| group.module_path(t, place.instance))
            .collect();
        let ranks = [group.rank, coded.terms.iter().flatten().count()];
        let (name, squares) = (paths.join("+"), [coded.square, place.module.square()]);
        match measured(i) {
            None => Measured::new(place.at, name, ranks, squares),
            Some(lost) => {
                let mut measured = Measured::new(place.at, name, ranks, lost.updates);
                let [off, all] = lost.outputs;
                measured.module.output_error = Some(share(off, all));
                measured
            }
        }
    });
    let tied = plan.ties.iter().zip(&found.tied).flat_map(|(ties, coded)| {
        let squares = coded.squares.iter().zip(&ties.tied.squares);
        ties.at.iter().zip(squares).map(|(at, (off, square))| {
            let group = plan.group(*at);
            let targets = group.targets.iter().map(|t| t.module.as_str());
            let name = targets.collect::<Vec<_>>().join("+");
            Measured::new(*at, name, [group.rank; 2], [*off, *square])
        })
    });
    plain.chain(tied).collect()
}

fn kept(plan: &Plan<'_>, number: usize) -> Vec<String> {
    let coded = |g: usize| {
        let at = (number, g);
        plan.places.iter().any(|p| p.at == at) || plan.ties.iter().any(|t| t.at.contains(&at))
    };
    let modules = plan.adapters[number].modules().into_iter();
    let kept = modules.filter(|m| !coded(m.group));
    kept.map(|m| m.path).collect()
}
