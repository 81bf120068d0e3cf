//! A base as plans need it: looked at once, for however many plans.

use std::sync::Arc;

use super::dequantised::Dequantised;
use super::trained::BaseName;
use crate::base::architecture::Architecture;
use crate::base::names::Names;
use crate::base::ties::Ties;
use crate::error::Result;
use crate::quant::View;
use crate::safetensors::Checkpoint;

/// What is known of a base before any adapter is.
pub(super) struct ReadBase<'o, 'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) architecture: &'o Architecture,
    pub(super) names: &'o Names<'o, View<'o, 'a>>,
    pub(super) called: &'o BaseName,
    pub(super) ties: &'o Ties<'o>,
    pub(super) quantised: Option<Dequantised<'a>>,
}

/// Calls `f` with what is known of a base; `quantised` are its quantised weights.
///
/// # Errors
/// Those of reading the base's config, and of `f`.
pub(super) fn with_base<'a, T>(
    base: &'a Checkpoint,
    quantised: Option<Dequantised<'a>>,
    f: impl FnOnce(&ReadBase<'_, 'a>) -> Result<T>,
) -> Result<T> {
    let architecture = Architecture::of(base)?;
    let weights = quantised.as_ref().map(|q| Arc::clone(q.weights()));
    let view = View::new(base, weights.as_deref());
    let names = Names::new(&view, &architecture);
    let ties = Ties::of(base, &architecture, &names)?;
    let called = BaseName::of(base)?;
    f(&ReadBase {
        base,
        architecture: &architecture,
        names: &names,
        called: &called,
        ties: &ties,
        quantised,
    })
}
