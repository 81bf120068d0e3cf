//! Which device computes: the processor, or a GPU where the build has the feature `cuda`.

#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
mod cuda;
mod gpu;
mod open;

pub use open::{device, device_name};
