use std::io::Write as _;

use candle_core::{DType, Device, Tensor};

use super::super::slices::tests::{close, random};
use super::super::{Norm, NormKind, Rotation, composing, gate, gate_backward, rotate};
use super::host;

/// The tensors in a type, and how far a result in it may be from one in f64.
fn types() -> [(DType, f64); 2] {
    [(DType::F32, 2e-6), (DType::BF16, 4e-3)]
}

fn as_type(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap()
}

/// What `work` makes of inputs in a type, by kernel, and of the same numbers in f64, composed.
fn both(
    inputs: &[&Tensor],
    work: impl Fn(&[Tensor], DType) -> Tensor,
    bound: impl Fn(DType, f64) -> f64,
) {
    for (dtype, error) in types() {
        let narrow: Vec<Tensor> = inputs.iter().map(|x| as_type(x, dtype)).collect();
        let wide: Vec<Tensor> = narrow.iter().map(|x| as_type(x, DType::F64)).collect();
        let right = work(&wide, DType::F64);
        let calls = host::calls();
        let made = composing::with(|| host::with(|| work(&narrow, dtype)));
        assert!(host::calls() > calls, "no kernel ran");
        assert_eq!(made.dtype(), dtype);
        close(&made, &right, bound(dtype, error));
    }
}

/// Breaks where a kernel's indices or arithmetic are not those of the composed form.
#[test]
fn kernels_compute_what_the_composed_forms_do() {
    let same = |_, error| error;
    let (x, dy) = (random(37, 96, 1), random(37, 96, 2));
    let norm = |dtype| {
        let gain = random(1, 48, 3).flatten_all().unwrap();
        let vectors = [gain.to_vec1().unwrap(), Vec::new()];
        Norm::new(NormKind::Rms, vectors, 1e-5, &Device::Cpu, dtype).unwrap()
    };
    // The fused form's normalisation has no tensors for the kernels to read.
    let norms = composing::with(|| [norm(DType::F32), norm(DType::F64)]);
    let of = |dtype| &norms[usize::from(dtype == DType::F64)];
    both(&[&x], |x, d| of(d).forward(&x[0]).unwrap(), same);
    both(
        &[&dy, &x],
        |x, d| of(d).backward(&x[0], &x[1]).unwrap(),
        same,
    );

    let (big, dy) = ((&x * 20.0).unwrap(), random(37, 48, 4));
    both(&[&big], |x, _| gate(&x[0]).unwrap(), same);
    both(
        &[&dy, &big],
        |x, _| gate_backward(&x[0], &x[1]).unwrap(),
        same,
    );

    // Twelve heads of eight columns, of which nine are turned, by three pairs.
    let angles: Vec<f32> = (0..37 * 3).map(|i| i as f32 * 0.1).collect();
    let rotation = |dtype| {
        let (sin, cos) = angles.iter().map(|a| a.sin_cos()).unzip();
        Rotation::new([cos, sin], 3, &Device::Cpu, dtype).unwrap()
    };
    let rotations = composing::with(|| [rotation(DType::F32), rotation(DType::F64)]);
    for back in [false, true] {
        let turn = |x: &[Tensor], dtype| {
            let rotation = &rotations[usize::from(dtype == DType::F64)];
            rotate(x[0].clone(), 9, 8, rotation, back).unwrap()
        };
        both(&[&x], turn, same);
    }
}

/// Breaks where the kernels are no longer what NVRTC takes for the oldest GPU that is used, or
/// for a newer one.
#[cfg(not(feature = "cuda"))]
#[test]
fn the_kernels_compile_for_gpus() {
    use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, sys};
    #[allow(unsafe_code)]
    // SAFETY: opening NVIDIA's compiler runs nothing but its own initialisation.
    if !unsafe { sys::is_culib_present() } {
        let text = "skipped, the kernels were not compiled: libnvrtc is not there\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    }
    for arch in ["compute_80", "compute_90"] {
        for half in [None, Some("-DHALF")] {
            let mut options = CompileOptions {
                arch: Some(arch),
                options: vec!["-DTHREADS=256".into()],
                ..CompileOptions::default()
            };
            options.options.extend(half.map(str::to_owned));
            let ptx = compile_ptx_with_opts(include_str!("kernels.cu"), options);
            let ptx = ptx.unwrap().to_src();
            assert_eq!(ptx.matches(".visible .entry").count(), 9);
        }
    }
}
