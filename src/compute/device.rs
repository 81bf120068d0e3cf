//! Which device is asked for, by name.

use std::fmt;
use std::str::FromStr;

use crate::error::{Code, Error};

/// A device as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// The one that is faster for the work at hand.
    Auto,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:N`, `auto`.
    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || {
            Error::new(Code::Usage, format!("there is no device `{name}`"))
                .hint("one of cpu, cuda, cuda:N, auto")
        };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a misspelt device is taken for another one.
    #[test]
    fn names_of_devices() {
        let of = |name: &str| name.parse::<DeviceChoice>().map_err(|e| e.code());
        assert_eq!(of("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(of("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(of("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(of("cuda:17"), Ok(DeviceChoice::Cuda(17)));
        for name in [
            "", "gpu", "cuda:", "cuda:+1", "cuda:x", "cuda:-1", "CUDA", "cpu:0",
        ] {
            assert_eq!(of(name), Err(Code::Usage), "{name}");
        }
        for choice in [DeviceChoice::Cpu, DeviceChoice::Cuda(3), DeviceChoice::Auto] {
            assert_eq!(of(&choice.to_string()), Ok(choice));
        }
    }
}
