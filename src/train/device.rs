//! Which device computes.

use candle_core::Device;

use crate::error::{Code, Error, Result};

/// The device called `name`: `cpu` (also without a name), `auto` for the best one there is, or
/// `cuda` and `cuda:N`.
///
/// # Errors
/// [`Code::NoDevice`] for a device that this build cannot use; [`Code::Usage`] for another name.
pub fn device(name: Option<&str>) -> Result<Device> {
    match name.unwrap_or("cpu") {
        "cpu" | "auto" => Ok(Device::Cpu),
        name if is_cuda(name) => Err(Error::new(
            Code::NoDevice,
            format!("device `{name}`: this build has no CUDA"),
        )
        .hint("use `cpu`, or `auto` for the best device there is")),
        name => Err(
            Error::new(Code::Usage, format!("there is no device `{name}`"))
                .hint("one of cpu, cuda, cuda:N, auto"),
        ),
    }
}

fn is_cuda(name: &str) -> bool {
    match name.split_once(':') {
        None => name == "cuda",
        Some((kind, number)) => kind == "cuda" && number.parse::<usize>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a missing device is taken for a misspelt one, or the other way round.
    #[test]
    fn names_of_devices() {
        for name in [None, Some("cpu"), Some("auto")] {
            assert!(device(name).unwrap().is_cpu());
        }
        for (name, code) in [
            ("cuda", Code::NoDevice),
            ("cuda:1", Code::NoDevice),
            ("cuda:x", Code::Usage),
            ("gpu", Code::Usage),
            ("", Code::Usage),
        ] {
            assert_eq!(device(Some(name)).unwrap_err().code(), code, "{name}");
        }
    }
}
