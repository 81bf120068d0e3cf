//! How many inputs each module of a VeRA adapter has, which the adapter does not say.

use super::import::BaseShapes;
use crate::error::{Code, Error, Result};

/// What feeds a module, by the last segment of its name, in the architectures PEFT targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// The residual stream: hidden size.
    Hidden,
    /// The attention's output.
    Attention,
    /// The feed-forward's inner activations.
    Inner,
}

const SOURCES: &[(Source, &[&str])] = &[
    (
        Source::Hidden,
        &[
            "q_proj",
            "k_proj",
            "v_proj",
            "qkv_proj",
            "gate_proj",
            "up_proj",
            "gate_up_proj",
            "query_key_value",
            "c_attn",
            "c_fc",
            "fc1",
            "dense_h_to_4h",
            "query",
            "key",
            "value",
            "Wqkv",
            "in_proj",
            "lm_head",
            "q",
            "k",
            "v",
            "wi",
            "wi_0",
            "wi_1",
        ],
    ),
    (Source::Attention, &["o_proj", "o"]),
    (Source::Inner, &["down_proj", "dense_4h_to_h", "fc2", "wo"]),
];

fn source(module: &str) -> Option<Source> {
    let last = module.rsplit('.').next()?;
    SOURCES
        .iter()
        .find(|(_, names)| names.contains(&last))
        .map(|(s, _)| *s)
}

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
) -> Result<Vec<usize>> {
    if let Some(base) = base {
        return modules
            .iter()
            .map(|(module, out)| from_base(base, module, *out))
            .collect();
    }
    let first = modules.first().and_then(|(m, _)| source(m));
    let alike = first.is_some() && modules.iter().all(|(m, _)| source(m) == first);
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

/// Modules whose outputs are the residual stream, or feed the modules of a [`Source`].
const FEEDERS: &[(Source, &[&str])] = &[
    (
        Source::Hidden,
        &["o_proj", "down_proj", "fc2", "dense_4h_to_h", "wo"],
    ),
    (Source::Attention, &["q_proj"]),
    (
        Source::Inner,
        &["gate_proj", "up_proj", "fc1", "dense_h_to_4h"],
    ),
];

/// Widths by what the adapted modules of the same layer put out: the block writes back to the
/// stream it reads, attention is as wide as its queries, the inner layer as its gate. `None` where
/// a feeder is missing, feeders disagree, or the widest input is not the stored projection's.
fn from_neighbours(modules: &[(&str, usize)], width: usize) -> Option<Vec<usize>> {
    let fed_by = |source: Source, layer: &str| -> Option<usize> {
        let names = FEEDERS.iter().find(|(s, _)| *s == source)?.1;
        let mut outs = modules.iter().filter(|(m, _)| {
            layer_of(m) == layer
                && m.rsplit('.')
                    .next()
                    .is_some_and(|last| names.contains(&last))
        });
        let (_, out) = outs.next()?;
        outs.all(|(_, other)| other == out).then_some(*out)
    };
    let inputs: Option<Vec<usize>> = modules
        .iter()
        .map(|(m, _)| fed_by(source(m)?, layer_of(m)))
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

fn from_base(base: &dyn BaseShapes, module: &str, out: usize) -> Result<usize> {
    let shape = base.weight_shape(module).ok_or_else(|| {
        Error::new(
            Code::UnmatchedModule,
            format!("the base has no weight of `{module}`"),
        )
    })?;
    match shape.as_slice() {
        [rows, columns] if *rows == out => Ok(*columns),
        [rows, columns] if *columns == out => Ok(*rows),
        _ => Err(Error::new(
            Code::BaseShape,
            format!("`{module}` has {out} outputs in the adapter, and shape {shape:?} in the base"),
        )),
    }
}
