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
/// so that all have the stored projection's width.
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
        Some(_) => Err(Error::new(
            Code::NeedsBase,
            "a VeRA adapter on unlike modules does not say how many inputs each of them has",
        )
        .hint("pass --base with the base model (only its headers are read)")),
        None => Err(Error::new(
            Code::NeedsBase,
            "a VeRA adapter without projections does not say how many inputs its modules have",
        )
        .hint("pass --base with the base model (only its headers are read)")),
    }
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
