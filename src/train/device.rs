//! The device that computes, by its name.

use candle_core::Device;

use crate::error::{Code, Error, Result};

/// `cpu` (the default), `auto`, or `cuda[:N]`.
///
/// # Errors
/// [`Code::NoDevice`] for a GPU, which this build cannot use; [`Code::Usage`] for another name.
pub fn device(name: Option<&str>) -> Result<Device> {
    match name.unwrap_or("cpu") {
        "cpu" | "auto" => Ok(Device::Cpu),
        name if name == "cuda" || name.starts_with("cuda:") => {
            let message = format!("this build has no CUDA, so there is no device `{name}`");
            Err(Error::new(Code::NoDevice, message)
                .hint("leave --device out to compute on the processor"))
        }
        name => {
            let message = format!("`{name}` is not a device");
            Err(Error::new(Code::Usage, message).hint("devices are cpu, auto and cuda[:N]"))
        }
    }
}
