//! How far a combination is from Σ w_i ΔW_i, module by module.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::in_order::first_error;
use super::input::CombineInput;
use super::report::CombinedModule;
use crate::adapter::error::{left_columns, product_norm, ratio, right_columns};
use crate::adapter::{Adapter, LowRank, Module};
use crate::error::Result;
use crate::progress::Progress;

/// A module of the sum: what each adapter has of it, and what the result has.
#[derive(Default)]
struct Parts<'a> {
    terms: Vec<(&'a CombineInput, Module)>,
    result: Option<Module>,
}

/// What was lost of one module, squared, beside its report.
pub(super) struct Measured {
    pub(super) module: CombinedModule,
    pub(super) off: f64,
    pub(super) square: f64,
}

/// Every module of any adapter. Memory is that of one module's factors for each thread.
///
/// # Errors
/// Those of [`crate::adapter::TieGroup::low_rank`]; that of `progress`.
pub(super) fn measured(
    inputs: &[CombineInput],
    result: &Adapter,
    progress: Progress<'_>,
) -> Result<Vec<Measured>> {
    let mut modules: BTreeMap<String, Parts<'_>> = BTreeMap::new();
    for input in inputs {
        for module in input.adapter.modules() {
            let parts = modules.entry(module.label()).or_default();
            parts.terms.push((input, module));
        }
    }
    for module in result.modules() {
        let label = module.label();
        modules.entry(label).or_default().result = Some(module);
    }
    let modules: Vec<(String, Parts<'_>)> = modules.into_iter().collect();
    let of = |(name, parts): (String, Parts<'_>)| {
        progress.advance(parts.terms.len() as u64)?;
        of_module(name, &parts, result)
    };
    first_error(modules.into_par_iter().map(of))
}

fn of_module(name: String, parts: &Parts<'_>, result: &Adapter) -> Result<Measured> {
    let update =
        |adapter: &Adapter, m: &Module| adapter.groups[m.group].low_rank(m.layer, m.target);
    let mut terms: Vec<(LowRank, f64)> = Vec::new();
    for (input, module) in &parts.terms {
        terms.push((update(&input.adapter, module)?, input.weight));
    }
    let ranks = terms.iter().map(|(t, _)| t.rank).collect();
    let square = norm(&terms).powi(2);
    let mut rank = 0;
    if let Some(module) = &parts.result {
        let own = update(result, module)?;
        rank = own.rank;
        terms.push((own, -1.0));
    }
    let off = norm(&terms).powi(2);
    Ok(Measured {
        module: CombinedModule {
            module: name,
            ranks,
            rank,
            error: ratio(off.sqrt(), square.sqrt()),
            norm: square.sqrt(),
        },
        off,
        square,
    })
}

/// ‖Σ w·ΔW‖_F in f64.
fn norm(terms: &[(LowRank, f64)]) -> f64 {
    let finite = |t: &LowRank| t.left.iter().chain(&t.right).all(|x| x.is_finite());
    if terms.is_empty() {
        return 0.0;
    }
    // Decompositions of matrices that are not finite promise nothing.
    if !terms.iter().all(|(t, _)| finite(t)) {
        return f64::NAN;
    }
    let weighted: Vec<(&LowRank, f64)> = terms.iter().map(|(t, w)| (t, *w)).collect();
    let all: Vec<&LowRank> = terms.iter().map(|(t, _)| t).collect();
    product_norm(&left_columns(&weighted), &right_columns(&all))
}
