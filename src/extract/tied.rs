//! A tied adapter that is fitted to what was extracted.

use std::collections::HashMap;

use super::options::{Budget, ExtractOptions, TiedForm};
use super::report::{ExtractReport, ratio};
use super::unit::Unit;
use crate::adapter::{Adapter, Module};
use crate::convert::{Tied, find_ties};
use crate::error::{Code, Error, Result};
use crate::fit::{self, FitOptions, fit_adapter, stored_as};
use crate::peft::import::PeftKind;

/// The tied form of an adapter in groups of one layer, and its errors in the report.
///
/// # Errors
/// Those of [`fit_adapter`].
pub(super) fn fitted(
    source: Adapter,
    form: TiedForm,
    units: &[Unit<'_>],
    options: &ExtractOptions,
    report: &mut ExtractReport,
) -> Result<Adapter> {
    let Budget::Rank(rank) = options.budget else {
        return Err(Error::new(Code::Usage, "a tied form needs a rank"));
    };
    let mut how = FitOptions::new(fit::Budget::Rank(rank));
    how.core = form == TiedForm::Core;
    how.quick = form == TiedForm::Quick;
    let (adapter, found) = find_ties(&source, PeftKind::Lora)?;
    let tied = Tied::exact(source, adapter, found);
    let fit = fit_adapter(&tied, &how)?;
    let (adapter, fit) = stored_as(&tied, &how, fit, options.dtype)?;
    measure(&adapter, units, report)?;
    report.notes.push(format!("tied: {}", fit.summary));
    Ok(adapter)
}

fn measure(adapter: &Adapter, units: &[Unit<'_>], report: &mut ExtractReport) -> Result<()> {
    let places: HashMap<String, Module> = adapter
        .modules()
        .into_iter()
        .map(|m| (m.label(), m))
        .collect();
    let units: HashMap<&str, &Unit<'_>> = units.iter().map(|u| (u.name.as_str(), u)).collect();
    let (mut missed, mut whole) = (0.0, 0.0);
    for module in &mut report.modules {
        let square = module.norm * module.norm;
        let own = match (
            places.get(&module.module),
            units.get(module.module.as_str()),
        ) {
            (Some(place), Some(unit)) => {
                let group = &adapter.groups[place.group];
                module.rank = group.rank;
                unit.missed_by(&group.low_rank(place.layer, place.target)?)?
            }
            _ => square,
        };
        module.error = ratio(own, square);
        (missed, whole) = (missed + own, whole + square);
    }
    report.error = ratio(missed, whole);
    report.rank = report.modules.iter().map(|m| m.rank).max().unwrap_or(0);
    Ok(())
}
