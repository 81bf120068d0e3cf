//! What a fleet would cost, from numbers alone.

use serde::Serialize;

use super::measured::Rate;
use super::money::{Bill, Prices};
use super::scenario::Form;
use super::whatif::header_bytes;
use crate::adapter::{FactorName, Method, Shape};
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

/// Attention shapes of known models: name, layers, hidden size, width of q, width of k and v.
pub const MODELS: &[(&str, u64, u64, u64, u64)] = &[
    ("gemma-2-2b", 26, 2304, 2048, 1024),
    ("gemma-2-9b", 42, 3584, 4096, 2048),
    ("gpt-2b-001", 24, 2048, 2048, 2048),
    ("gpt2", 12, 768, 768, 768),
    ("llama-2-13b", 40, 5120, 5120, 5120),
    ("llama-2-70b", 80, 8192, 8192, 1024),
    ("llama-2-7b", 32, 4096, 4096, 4096),
    ("llama-3-70b", 80, 8192, 8192, 1024),
    ("llama-3-8b", 32, 4096, 4096, 1024),
    ("llama-3.2-1b", 16, 2048, 2048, 512),
    ("llama-3.2-3b", 28, 3072, 3072, 1024),
    ("mistral-7b", 32, 4096, 4096, 1024),
    ("phi-3-mini", 32, 3072, 3072, 3072),
    ("qwen2-0.5b", 24, 896, 896, 128),
    ("qwen2-7b", 28, 3584, 3584, 512),
    ("qwen2-72b", 80, 8192, 8192, 1024),
];

/// The attention shape of a known model.
///
/// # Errors
/// [`Code::Usage`], with the known names as a hint.
pub fn model_shape(name: &str) -> Result<Shape> {
    let known = MODELS.iter().find(|m| m.0.eq_ignore_ascii_case(name));
    let Some((_, layers, input, q, kv)) = known else {
        let names: Vec<&str> = MODELS.iter().map(|m| m.0).collect();
        let message = format!("`{name}` is no model that is known by name");
        return Err(Error::new(Code::Usage, message).hint(format!(
            "known are {}; or give its folder",
            names.join(", ")
        )));
    };
    Ok(Shape {
        layers: *layers,
        input: *input,
        outs: [*q, *kv, *kv],
    })
}

/// The fleet that is planned.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Users.
    pub users: u64,
    /// Adapters of each.
    pub tasks: u64,
    /// The model's q, k and v.
    pub shape: Shape,
    /// Rank of every adapter.
    pub rank: u64,
    /// Type of the stored numbers.
    pub dtype: Dtype,
    /// What bytes and requests cost.
    pub prices: Prices,
    /// What coding a typical adapter takes, see [`rates`](super::rates); empty where none is at hand.
    pub rates: Vec<Rate>,
}

impl PlanOptions {
    /// A fleet of one adapter for each user, of rank 8 in BF16, at the default prices.
    pub fn new(users: u64, shape: Shape) -> Self {
        Self {
            users,
            tasks: 1,
            shape,
            rank: 8,
            dtype: Dtype::BF16,
            prices: Prices::default(),
            rates: Vec::new(),
        }
    }
}

/// One method in a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlannedMethod {
    /// The method.
    pub method: &'static str,
    /// Numbers trained, as `tlkit params` counts them.
    pub parameters: u64,
    /// Bytes of these numbers.
    pub weight_bytes: u64,
    /// Bytes of one adapter: numbers and header. Frozen A and B are kept as seeds.
    pub adapter_bytes: u64,
    /// Bytes of the frozen A and B that all adapters of the model share, if they were kept as
    /// tensors, once, instead of as seeds; not part of any other number.
    pub shared_bytes: u64,
    /// Bytes of all adapters.
    pub fleet_bytes: u64,
    /// `fleet_bytes` over those of LoRA.
    pub share_of_lora: f64,
    /// Bytes of one more task of one user.
    pub next_task_bytes: u64,
    /// Bytes of one more user with all tasks.
    pub next_user_bytes: u64,
    /// The bill for the fleet, in USD a month.
    pub bill: Bill,
}

/// A fleet of LoRAs that are coded, each number in as many bits as one of a typical adapter takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlannedCode {
    /// `coded-1`, `coded-5`, `coded-10`.
    pub name: String,
    /// The error of the typical adapter: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F.
    pub error: f64,
    /// Bits of its file for each number.
    pub bits: f64,
    /// Bits that no code of Gaussian components needs less than.
    pub bound: f64,
    /// Bytes of one adapter.
    pub adapter_bytes: u64,
    /// Bytes of all adapters.
    pub fleet_bytes: u64,
    /// `fleet_bytes` over those of LoRA as it is.
    pub share_of_lora: f64,
    /// Bytes of one more task of one user.
    pub next_task_bytes: u64,
    /// Bytes of one more user with all tasks.
    pub next_user_bytes: u64,
    /// The bill for the fleet, in USD a month.
    pub bill: Bill,
}

/// A fleet in every form.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FleetPlan {
    /// `tlkit-plan/1`.
    pub schema: &'static str,
    /// Users.
    pub users: u64,
    /// Adapters of each.
    pub tasks: u64,
    /// All adapters.
    pub adapters: u64,
    /// Rank.
    pub rank: u64,
    /// Type of the stored numbers.
    pub dtype: &'static str,
    /// The prices.
    pub prices: Prices,
    /// LoRAs coded at an error, where the rates of a typical one are known.
    pub coded: Vec<PlannedCode>,
    /// One for each method, LoRA first.
    pub forms: Vec<PlannedMethod>,
}

/// Projects a fleet in each of the paper's methods; nothing is read.
///
/// # Errors
/// [`Code::Usage`]: as for [`Shape::template`], no float dtype, prices that are none, or a number
/// beyond 64 bits.
pub fn plan(options: &PlanOptions) -> Result<FleetPlan> {
    options.prices.check()?;
    if !options.dtype.is_float() {
        return Err(crate::tensor::not_float(options.dtype));
    }
    let overflow = || Error::new(Code::Usage, "the fleet's bytes overflow a 64-bit count");
    let adapters = options
        .users
        .checked_mul(options.tasks)
        .ok_or_else(overflow)?;
    let width = options.dtype.bits() as u64 / 8;
    let mut forms: Vec<PlannedMethod> = Vec::new();
    for method in Method::PRESETS {
        let parameters = options.shape.parameters(method, options.rank)?;
        let frozen = frozen(&options.shape, method, options.rank)?;
        let form = (|| {
            let weight_bytes = parameters.checked_mul(width)?;
            let adapter_bytes = weight_bytes.checked_add(header_bytes(4))?;
            let fleet_bytes = adapter_bytes.checked_mul(adapters)?;
            let lora = forms.first().map_or(fleet_bytes, |f| f.fleet_bytes);
            Some(PlannedMethod {
                method: method.name(),
                parameters,
                weight_bytes,
                adapter_bytes,
                shared_bytes: frozen.checked_mul(width)?,
                fleet_bytes,
                share_of_lora: match lora {
                    0 => 0.0,
                    lora => fleet_bytes as f64 / lora as f64,
                },
                next_task_bytes: adapter_bytes,
                next_user_bytes: adapter_bytes.checked_mul(options.tasks)?,
                bill: options.prices.bill(fleet_bytes),
            })
        })();
        forms.push(form.ok_or_else(overflow)?);
    }
    let lora = forms.first();
    let code = |rate: &Rate| coded(options, adapters, lora?, rate);
    let coded = options.rates.iter().map(|r| code(r).ok_or_else(overflow));
    Ok(FleetPlan {
        coded: coded.collect::<Result<_>>()?,
        schema: "tlkit-plan/1",
        users: options.users,
        tasks: options.tasks,
        adapters,
        rank: options.rank,
        dtype: options.dtype.as_str(),
        prices: options.prices,
        forms,
    })
}

/// `None` beyond 64 bits.
fn coded(
    options: &PlanOptions,
    adapters: u64,
    lora: &PlannedMethod,
    rate: &Rate,
) -> Option<PlannedCode> {
    let adapter_bytes = (rate.bits * lora.parameters as f64 / 8.0).ceil() as u64;
    let fleet_bytes = adapter_bytes.checked_mul(adapters)?;
    Some(PlannedCode {
        name: Form::Coded(rate.percent).name().into_owned(),
        error: rate.error,
        bits: rate.bits,
        bound: rate.bound,
        adapter_bytes,
        fleet_bytes,
        share_of_lora: fleet_bytes as f64 / lora.fleet_bytes.max(1) as f64,
        next_task_bytes: adapter_bytes,
        next_user_bytes: adapter_bytes.checked_mul(options.tasks)?,
        bill: options.prices.bill(fleet_bytes),
    })
}

/// Numbers in the frozen A and B.
fn frozen(shape: &Shape, method: Method, rank: u64) -> Result<u64> {
    let trains = method.trains().unwrap_or(&[]);
    let parts: Vec<FactorName> = [FactorName::A, FactorName::B]
        .into_iter()
        .filter(|p| !trains.contains(p))
        .collect();
    shape.template(&parts, true, rank)
}
