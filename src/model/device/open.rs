//! A device by its name: found, chosen among those there are, and opened.

use candle_core::{Device, DeviceLocation};

use super::cuda;
use super::gpu::{Gpu, no_device};
use crate::compute::DeviceChoice;
use crate::error::Result;

/// The oldest compute capability that is used: the first with bf16 arithmetic, and the one that
/// `benches/gpu/build.sh` compiles for.
const OLDEST: (i32, i32) = (8, 0);

/// The device called `name`: `cpu` (also without a name), `cuda` and `cuda:N` for a GPU by its
/// number, or `auto` for the first GPU that can be used, and the processor where there is none.
///
/// # Errors
/// [`Code::NoDevice`](crate::Code::NoDevice) for a device that this build cannot use, that is not there, is too old, or
/// has a driver that is too old; [`Code::Usage`](crate::Code::Usage) for another name.
pub fn device(name: Option<&str>) -> Result<Device> {
    let name = name.unwrap_or("cpu");
    let chosen = choose(name.parse()?, cuda::gpus)
        .map_err(|e| e.context(format_args!("device `{name}`")))?;
    match chosen {
        None => Ok(Device::Cpu),
        Some((number, gpu)) => {
            cuda::open(number, &gpu).map_err(|e| e.context(format_args!("device `{name}`")))
        }
    }
}

/// What a device is called, as [`device`] takes it.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The number of the GPU to use; none for the processor. `probe` finds the GPUs.
fn choose(
    wanted: DeviceChoice,
    probe: impl Fn() -> Result<Vec<Gpu>>,
) -> Result<Option<(usize, Gpu)>> {
    match wanted {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Auto => {
            let gpus = probe().unwrap_or_default().into_iter().enumerate();
            Ok(gpus.into_iter().find(|(_, gpu)| gpu.capability >= OLDEST))
        }
        DeviceChoice::Cuda(number) => {
            let mut gpus = probe()?;
            if number >= gpus.len() {
                let there = match gpus.len() {
                    0 => "no GPU".to_owned(),
                    1 => "one GPU, number 0".to_owned(),
                    n => format!("{n} GPUs, numbers 0 to {}", n - 1),
                };
                return Err(no_device(format!("the machine has {there}")));
            }
            let gpu = gpus.swap_remove(number);
            let ((major, minor), (least, zero)) = (gpu.capability, OLDEST);
            match gpu.capability >= OLDEST {
                true => Ok(Some((number, gpu))),
                false => Err(no_device(format!(
                    "GPU {number} ({}) has compute capability {major}.{minor}, {least}.{zero} is the oldest that is used",
                    gpu.name
                ))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn machine(gpus: &[(&str, (i32, i32))]) -> impl Fn() -> Result<Vec<Gpu>> {
        let gpus: Vec<Gpu> = (gpus.iter())
            .map(|(name, capability)| Gpu {
                name: (*name).to_owned(),
                capability: *capability,
            })
            .collect();
        move || Ok(gpus.clone())
    }

    /// Breaks where the processor is not what there is without a name, or a misspelt device is taken for
    /// one that is not there.
    #[test]
    fn names_of_devices() {
        assert_eq!(device(Some("gpu")).unwrap_err().code(), Code::Usage);
        for name in [None, Some("cpu")] {
            assert!(device(name).unwrap().is_cpu());
        }
        assert_eq!(device_name(&Device::Cpu), "cpu");
    }

    /// Breaks where `auto` takes a GPU that cannot be used, or fails where there is none; or where
    /// a GPU that was asked for is silently replaced by another, or by the processor.
    #[test]
    fn the_gpu_that_is_used() {
        let none = || Err(no_device("no driver"));
        assert_eq!(choose(DeviceChoice::Auto, none).unwrap(), None);
        assert_eq!(choose(DeviceChoice::Auto, machine(&[])).unwrap(), None);
        let mixed = machine(&[("old", (7, 5)), ("A100", (8, 0)), ("H100", (9, 0))]);
        let number = |wanted| choose(wanted, &mixed).unwrap().map(|(number, _)| number);
        assert_eq!(number(DeviceChoice::Cpu), None);
        assert_eq!(number(DeviceChoice::Auto), Some(1));
        assert_eq!(number(DeviceChoice::Cuda(2)), Some(2));
        let says = |wanted, probe: &dyn Fn() -> Result<Vec<Gpu>>| {
            let error = choose(wanted, probe).unwrap_err();
            assert_eq!(error.code(), Code::NoDevice);
            error.message().to_owned()
        };
        assert_eq!(says(DeviceChoice::Cuda(0), &none), "no driver");
        assert_eq!(
            says(DeviceChoice::Cuda(0), &machine(&[])),
            "the machine has no GPU"
        );
        assert_eq!(
            says(DeviceChoice::Cuda(3), &mixed),
            "the machine has 3 GPUs, numbers 0 to 2"
        );
        assert_eq!(
            says(DeviceChoice::Cuda(0), &mixed),
            "GPU 0 (old) has compute capability 7.5, 8.0 is the oldest that is used"
        );
    }

    /// Breaks where a build without CUDA takes the processor for the GPU that was asked for.
    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_has_no_gpu() {
        let error = device(Some("cuda:1")).unwrap_err();
        assert_eq!(error.code(), Code::NoDevice);
        assert_eq!(
            error.message(),
            "device `cuda:1`: this build has no CUDA backend"
        );
        assert!(device(Some("auto")).unwrap().is_cpu());
    }
}
