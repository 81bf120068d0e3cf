//! The domain: adapters, tie groups, targets, methods. No files, no devices.
//!
//! For layer l and target t with frozen weight W (out × in), the format says (spec §12)
//! `ΔW = s · diag(v_l) · B · diag(u_l) · A`, or a full matrix C_l, the core, in place of diag(u_l).
//! A [`TieGroup`] is the set of (layer, target) pairs that share one A and one B; stacked factors
//! (one A or B for each layer) make it plain LoRA.

mod base_name;
mod count;
pub(crate) mod error;
mod extra;
mod factor;
mod group;
mod limits;
mod low_rank;
mod method;
mod names;
pub(crate) mod provenance;
mod scaling;
mod stored;
mod target;
mod validate;
mod whole;

pub use self::error::{DeltaError, delta_error};
pub use base_name::quantisation_of_name;
pub(crate) use base_name::unquantised_name;
pub use count::{Shape, percent_tenths};
pub use extra::{Extra, ExtraRole};
pub use factor::{Factor, FactorName, Seed};
pub use group::TieGroup;
pub use limits::{MAX_EXPERTS, MAX_GROUPS, MAX_LAYERS, MAX_MODULES, MAX_RANK};
pub use low_rank::LowRank;
pub use method::Method;
pub use names::{LAYER_PLACE, MAX_NAME_BYTES, without_numbers};
pub(crate) use names::{check_name, split_digits, split_layer};
pub use scaling::{Scaling, ScalingRule};
pub use target::{ModuleKind, Target};
pub use whole::{Adapter, BaseModel, Module};

#[cfg(test)]
mod tests;
