//! In a build without the feature `cuda`.

use candle_core::Device;

use super::gpu::{Gpu, no_device};
use crate::error::Result;

pub(super) fn gpus() -> Result<Vec<Gpu>> {
    Err(no_device("this build has no CUDA backend"))
}

/// Never reached: there is no GPU to open.
pub(super) fn open(_: usize, _: &Gpu) -> Result<Device> {
    Err(no_device("this build has no CUDA backend"))
}
