//! How many inputs each module of a VeRA adapter has, which the adapter does not say.

use crate::base::modules::{Source, is_conv1d};
use crate::base::shapes::BaseShapes;
use crate::error::{Code, Error, Result};

/// Input features of each module.
///
/// With the base, from its weights. Without it, only where all modules are fed by the same thing,
/// so that all have the stored projection's width, or where the outputs of the other adapted modules
/// of a layer tell.
///
/// # Errors
/// [`Code::NeedsBase`] where the adapter alone does not tell; [`Code::UnmatchedModule`],
/// [`Code::BaseShape`] where the base disagrees.
pub(super) fn vera_inputs(
    modules: &[(&str, usize)],
    stored_width: Option<usize>,
    base: Option<&dyn BaseShapes>,
    fan_in_fan_out: bool,
) -> Result<Vec<usize>> {
    if let Some(base) = base {
        return modules
            .iter()
            .map(|(module, out)| from_base(base, module, *out, fan_in_fan_out))
            .collect();
    }
    let first = modules.first().and_then(|(m, _)| Source::of(m));
    let alike = first.is_some() && modules.iter().all(|(m, _)| Source::of(m) == first);
    match stored_width {
        Some(width) if alike => Ok(vec![width; modules.len()]),
        Some(width) if let Some(inputs) = from_neighbours(modules, width) => Ok(inputs),
        Some(_) => Err(Error::new(
            Code::NeedsBase,
            "a VeRA adapter on unlike modules does not say how many inputs each of them has",
        )
        .hint("give the base model (only its headers are read)")),
        None => Err(Error::new(
            Code::NeedsBase,
            "a VeRA adapter without projections does not say how many inputs its modules have",
        )
        .hint("give the base model (only its headers are read)")),
    }
}

/// Widths by what the adapted modules of the same layer put out: the block writes back to the
/// stream it reads, attention is as wide as its queries, the inner layer as its gate. `None` where
/// a feeder is missing, feeders disagree, or the widest input is not the stored projection's.
fn from_neighbours(modules: &[(&str, usize)], width: usize) -> Option<Vec<usize>> {
    let fed_by = |source: Source, layer: &str| -> Option<usize> {
        let mut outs = modules
            .iter()
            .filter(|(m, _)| layer_of(m) == layer && source.is_fed_by(m));
        let (_, out) = outs.next()?;
        outs.all(|(_, other)| other == out).then_some(*out)
    };
    let inputs: Option<Vec<usize>> = modules
        .iter()
        .map(|(m, _)| fed_by(Source::of(m)?, layer_of(m)))
        .collect();
    inputs.filter(|i| i.iter().max() == Some(&width))
}

/// A module's path up to its layer number.
fn layer_of(module: &str) -> &str {
    let end = module.split('.').scan(0, |at, segment| {
        *at += segment.len() + 1;
        Some((*at - 1, segment))
    });
    let number = end
        .into_iter()
        .find(|(_, s)| s.bytes().all(|b| b.is_ascii_digit()));
    number.map_or("", |(end, _)| &module[..end])
}

fn from_base(base: &dyn BaseShapes, module: &str, out: usize, flag: bool) -> Result<usize> {
    let conv1d = base.is_conv1d(module);
    let conv1d = conv1d.unwrap_or_else(|| flag && is_conv1d(module));
    let shape = base.weight_shape(module).ok_or_else(|| {
        Error::new(
            Code::UnmatchedModule,
            format!("the base has no weight of `{module}`"),
        )
    })?;
    match shape.as_slice() {
        [rows, columns] if *rows == out && !conv1d => Ok(*columns),
        [rows, columns] if *columns == out && conv1d => Ok(*rows),
        _ => Err(Error::new(
            Code::BaseShape,
            format!("`{module}` has {out} outputs in the adapter, and shape {shape:?} in the base"),
        )),
    }
}
