//! The kernels' programs: compiled by NVRTC for the GPU at hand, and started.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys};

use super::driver::{failed, no_device, text};
use crate::compute::rounding::Rounding;
use crate::error::{Code, Error, Result};
use crate::tensor::Dtype;

const SOURCE: &str = include_str!("kernel.cu");
/// Highest rank that gets a program of its own; others share one with a loop over any rank.
const MOST_OWN: usize = 128;

/// Threads of a block of either kernel.
const THREADS: u32 = 128;

/// What a program is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    dtype: u8,
    safe: bool,
    rank: usize,
    whole: bool,
}

impl Variant {
    /// For a base of `dtype` (F32, F16, BF16) with `cols` columns, and updates of `ranks`.
    pub(super) fn new(dtype: Dtype, rounding: Rounding, ranks: &[usize], cols: usize) -> Self {
        let dtype = match dtype {
            Dtype::BF16 => 1,
            Dtype::F16 => 2,
            _ => 0,
        };
        Self {
            dtype,
            safe: dtype != 0 && rounding == Rounding::PeftSafe,
            rank: match ranks {
                [rank] if *rank <= MOST_OWN => *rank,
                _ => 0,
            },
            whole: cols.is_multiple_of(4),
        }
    }

    fn defines(self) -> [String; 4] {
        [
            format!("-DDTYPE={}", self.dtype),
            format!("-DSAFE={}", u8::from(self.safe)),
            format!("-DRANK={}", self.rank),
            format!("-DWHOLE={}", u8::from(self.whole)),
        ]
    }
}

/// The kernels of one [`Variant`].
#[derive(Debug, Clone)]
pub(super) struct Functions {
    pub(super) merge: CudaFunction,
    pub(super) settle: CudaFunction,
}

/// Fails where there is no NVRTC to open.
pub(super) fn check() -> Result<()> {
    // A build with candle's CUDA is linked to it.
    #[cfg(not(feature = "cuda"))]
    // SAFETY: opens the library by its well-known names, as every later call does.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_device(
            "NVRTC, which compiles the kernels, was not found: libnvrtc".to_owned(),
        )
        .hint(
            "install it (the package nvidia-cuda-nvrtc, or a CUDA toolkit) and have its folder in \
             LD_LIBRARY_PATH, or use the device `cpu`; the result is the same bytes",
        ));
    }
    Ok(())
}

/// Compiles the kernels of `variant` for a GPU of `capability`, and loads them.
pub(super) fn load(
    context: &Arc<CudaContext>,
    capability: u32,
    variant: Variant,
) -> Result<Functions> {
    let newest = architectures()?
        .into_iter()
        .filter(|a| *a <= capability)
        .max()
        .ok_or_else(|| {
            no_device(format!(
                "NVRTC does not compile for compute capability {}.{}",
                capability / 10,
                capability % 10
            ))
        })?;
    // Machine code needs no newer driver than NVRTC's major version. Where NVRTC does not know the
    // GPU yet, the driver translates.
    let code = compile(variant, newest, newest == capability)?;
    let module = context
        .load_module(Ptx::from_binary(code))
        .map_err(failed("loading the kernels"))?;
    let function = |name| {
        module
            .load_function(name)
            .map_err(|e| Error::new(Code::Backend, format!("kernel `{name}`: {}", text(e))))
    };
    Ok(Functions {
        merge: function("merge")?,
        settle: function("settle")?,
    })
}

fn architectures() -> Result<Vec<u32>> {
    let mut count = 0;
    // SAFETY: writes one integer.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }
        .result()
        .map_err(refused)?;
    let mut list = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: writes as many integers as it has said there are.
    unsafe { sys::nvrtcGetSupportedArchs(list.as_mut_ptr()) }
        .result()
        .map_err(refused)?;
    Ok(list.into_iter().filter_map(|a| a.try_into().ok()).collect())
}

/// Machine code for `architecture`, or, not `native`, its portable form (PTX, with a zero at its end).
fn compile(variant: Variant, architecture: u32, native: bool) -> Result<Vec<u8>> {
    let source = CString::new(SOURCE)
        .map_err(|_| Error::new(Code::Backend, "the kernels' text has a zero"))?;
    let program = Program(nvrtc::create_program(&source, Some(c"kernel.cu")).map_err(refused)?);
    let kind = if native { "sm" } else { "compute" };
    let mut options = vec![
        format!("--gpu-architecture={kind}_{architecture}"),
        // Nothing but what is written may be contracted. All else is exact by default.
        "--fmad=false".to_owned(),
    ];
    options.extend(variant.defines());
    // SAFETY: the program was created and is not destroyed yet, here and below.
    if unsafe { nvrtc::compile_program(program.0, &options) }.is_err() {
        return Err(Error::new(
            Code::Backend,
            format!("NVRTC does not compile the kernels: {}", program.log()),
        ));
    }
    if native {
        let mut len = 0;
        // SAFETY: writes one size, then as many bytes.
        unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut len) }
            .result()
            .map_err(refused)?;
        let mut code = vec![0u8; len];
        // SAFETY: as above.
        unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }
            .result()
            .map_err(refused)?;
        Ok(code)
    } else {
        // SAFETY: as above.
        let ptx = unsafe { nvrtc::get_ptx(program.0) }.map_err(refused)?;
        Ok(ptx.into_iter().map(|c| c as u8).collect())
    }
}

/// Destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    /// The compiler's first line.
    fn log(&self) -> String {
        // SAFETY: the program is not destroyed yet.
        let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy);
        let text = text.unwrap_or_default();
        text.lines().next().unwrap_or("no reason given").to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

fn refused(error: nvrtc::NvrtcError) -> Error {
    Error::new(Code::Backend, format!("NVRTC failed: {:?}", error.0))
}

/// Starts a kernel that takes one structure, on `threads` threads or a few more.
///
/// # Safety
/// `arguments` is what `function` expects, and what it points to is alive, and used by nothing else,
/// until `stream` has come to the kernel's end.
pub(super) unsafe fn launch<T: DeviceRepr>(
    stream: &CudaStream,
    function: &CudaFunction,
    threads: u64,
    arguments: &T,
) -> std::result::Result<(), DriverError> {
    let blocks = threads.div_ceil(u64::from(THREADS));
    let config = LaunchConfig {
        grid_dim: (blocks as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    let mut builder = stream.launch_builder(function);
    builder.arg(arguments);
    // SAFETY: the caller's.
    unsafe { builder.launch(config) }.map(drop)
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::*;

    /// Breaks where the kernels' text is not CUDA: NVRTC compiles it for A100 and H100, in every
    /// variant but for the ranks between.
    #[test]
    fn nvrtc_compiles_every_variant() {
        if check().is_err() {
            eprintln!("skipped: there is no NVRTC; tests/cuda/setup.sh installs one");
            return;
        }
        let known = architectures().unwrap();
        for capability in [80, 90] {
            assert!(known.contains(&capability), "{known:?}");
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
                for rounding in [Rounding::Peft, Rounding::PeftSafe] {
                    for (ranks, cols) in [(&[1][..], 64), (&[16], 65), (&[64], 64), (&[8, 8], 64)] {
                        let variant = Variant::new(dtype, rounding, ranks, cols);
                        let code = compile(variant, capability, true).unwrap();
                        assert!(code.starts_with(b"\x7fELF"), "{variant:?}");
                    }
                }
            }
            let variant = Variant::new(Dtype::BF16, Rounding::Peft, &[8], 64);
            let portable = String::from_utf8(compile(variant, capability, false).unwrap()).unwrap();
            assert!(portable.contains(&format!(".target sm_{capability}")));
            for kernel in ["merge", "settle"] {
                assert!(portable.contains(&format!(".entry {kernel}(")));
            }
            // A fused multiply-add that nobody wrote would be another rounding: of the chain, the two
            // sums of products and the square there are as many as in the text, none more.
            assert!(portable.contains("fma.rn.f32") && !portable.contains("mad.f32"));
            assert!(!portable.contains(".ftz"));
        }
    }
}
