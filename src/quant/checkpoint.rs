//! A quantised checkpoint as the model that it stands for.

use std::collections::{BTreeMap, BTreeSet};

use super::config::Config;
use super::decode::Native;
use super::recognise::{Recogniser, is_code};
use super::unknown;
use super::weight::QuantisedWeight;
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Dtype;

/// Ends of names that only a quantised weight's companions have.
const COMPANIONS: [&str; 10] = [
    ".absmax",
    ".nested_absmax",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    ".SCB",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale_inv",
    ".weight_shape",
];

/// Those of MLX, which other models may have for themselves.
const MLX: [&str; 2] = [".scales", ".biases"];

/// The quantised weights of a checkpoint.
#[derive(Debug)]
pub struct Quantised<'a> {
    weights: Vec<QuantisedWeight<'a>>,
    by_location: BTreeMap<Location, usize>,
    by_name: BTreeMap<String, usize>,
    companions: BTreeSet<Location>,
    dtype: Dtype,
}

impl<'a> Quantised<'a> {
    /// Recognises the quantised weights of a checkpoint, by its config and by their companions' names; `None`
    /// where it is not quantised. Reads headers, and small companions of some kinds.
    ///
    /// # Errors
    /// [`Code::BaseDtype`] where it is quantised in a way that is not read, which the message names, and where
    /// parts of a weight are missing or do not fit one another; [`Code::ConfigInvalid`], [`Code::Io`].
    pub fn of(base: &'a Checkpoint) -> Result<Option<Self>> {
        let config = Config::of(base)?;
        let method = config.method();
        if let Some((name, tool)) = base
            .tensors()
            .keys()
            .find_map(|n| Some((n, unknown::mark(n)?)))
        {
            return Err(refused(base, tool).tensor(name));
        }
        if let Some(method) = method.as_deref().filter(|m| !unknown::is_read(m)) {
            return Err(refused(base, unknown::name(method)));
        }
        if let Some(part) = unknown::unread_part(&config, method.as_deref()) {
            return Err(refused(base, &part));
        }
        let recogniser = Recogniser {
            base,
            config: &config,
            method: method.clone(),
        };
        let mut weights = Vec::new();
        for (name, location) in base.tensors() {
            weights.extend(recogniser.weight(name, *location)?);
        }
        check_rest(base, &weights, method.as_deref())?;
        if weights.is_empty() {
            return Ok(None);
        }
        let dtype = model_dtype(&weights, config.dtype);
        Self::new(base, weights, dtype).map(Some)
    }

    fn new(base: &Checkpoint, weights: Vec<QuantisedWeight<'a>>, dtype: Dtype) -> Result<Self> {
        let companions = weights.iter().flat_map(|w| w.companions.iter().copied());
        let companions = companions.collect();
        let number = |(i, w): (usize, &QuantisedWeight<'_>)| (w.location, i);
        let by_location = weights.iter().enumerate().map(number).collect();
        let mut by_name = BTreeMap::new();
        for (i, weight) in weights.iter().enumerate() {
            let stored = base.locate(&weight.name);
            if by_name.insert(weight.name.clone(), i).is_some()
                || stored.is_some_and(|l| l != weight.location)
            {
                let message = "stands in the checkpoint twice: quantised, and as it is";
                return Err(Error::new(Code::BaseDtype, message)
                    .tensor(&weight.name)
                    .file(base.path()));
            }
        }
        Ok(Self {
            weights,
            by_location,
            by_name,
            companions,
            dtype,
        })
    }

    /// Every quantised weight, by the names of their codes.
    pub fn weights(&self) -> &[QuantisedWeight<'a>] {
        &self.weights
    }

    /// The quantised weight whose codes are at `location`.
    pub fn at(&self, location: Location) -> Option<&QuantisedWeight<'a>> {
        self.by_location.get(&location).map(|i| &self.weights[*i])
    }

    /// The quantised weight of a name that an unquantised checkpoint would have it under.
    pub fn named(&self, name: &str) -> Option<&QuantisedWeight<'a>> {
        self.by_name.get(name).map(|i| &self.weights[*i])
    }

    /// What an unquantised checkpoint has not: scales, zero points, tables.
    pub fn companions(&self) -> &BTreeSet<Location> {
        &self.companions
    }

    /// The dtype of the model that the weights are made for: that of bitsandbytes' `quant_state`; else what the
    /// config says; else that of the numbers that the library gives; else BF16.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How many weights are quantised in each way, as people call it.
    pub fn kinds(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        for weight in &self.weights {
            *kinds.entry(weight.kind.as_str()).or_default() += 1;
        }
        kinds
    }

    /// The way in which most weights are quantised.
    pub fn kind(&self) -> &str {
        let kinds = self.kinds();
        kinds
            .into_iter()
            .max_by_key(|(_, n)| *n)
            .map_or("", |(kind, _)| kind)
    }
}

fn refused(base: &Checkpoint, tool: &str) -> Error {
    Error::new(
        Code::BaseDtype,
        format!("quantised by {tool}, which is not read"),
    )
    .file(base.path())
    .hint("take the F32, F16 or BF16 weights that it was quantised from")
}

/// Fails where a part of a quantised weight is left over, or a config's weight is not recognised.
fn check_rest(
    base: &Checkpoint,
    weights: &[QuantisedWeight<'_>],
    method: Option<&str>,
) -> Result<()> {
    let parts = weights
        .iter()
        .flat_map(|w| w.companions.iter().chain([&w.location]));
    let known: BTreeSet<Location> = parts.copied().collect();
    let quantised = !weights.is_empty() || method.is_some();
    for (name, location) in base.tensors().iter().filter(|(_, l)| !known.contains(*l)) {
        let (file, info) = base.at(*location);
        let of_mlx = method == Some("mlx") && MLX.iter().any(|end| name.ends_with(end));
        let what = if of_mlx || COMPANIONS.iter().any(|end| name.ends_with(end)) {
            "belongs to a quantised weight that is not there"
        } else if quantised && is_code(info.dtype) && name.ends_with(".weight") {
            "quantised, and its scale is missing"
        } else {
            continue;
        };
        return Err(Error::new(Code::BaseDtype, what)
            .tensor(name)
            .file(file.path()));
    }
    Ok(())
}

fn model_dtype(weights: &[QuantisedWeight<'_>], config: Option<Dtype>) -> Dtype {
    let mut counts: BTreeMap<Dtype, usize> = BTreeMap::new();
    let mut bnb: BTreeMap<Dtype, usize> = BTreeMap::new();
    for weight in weights {
        if let Native::Fixed(dtype) = weight.native() {
            let is_bnb4 = weight.kind.starts_with("bitsandbytes") && !weight.kind.ends_with("int8");
            let counts = if is_bnb4 { &mut bnb } else { &mut counts };
            *counts.entry(dtype).or_default() += 1;
        }
    }
    let most =
        |counts: BTreeMap<Dtype, usize>| counts.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d);
    most(bnb)
        .or(config)
        .or_else(|| most(counts).filter(|d| *d != Dtype::F32))
        .unwrap_or(Dtype::BF16)
}
