use super::*;

fn shop() -> Shop {
    let shop = Shop::new();
    shop.base("base", Dtype::BF16, &[[64, 64]]);
    shop.lora("a", 4, &[[64, 64]], 0.3);
    shop
}

/// Runs the merge with the simulator's settings given, and expects it to fail with one sentence.
fn fails(settings: &[(&str, &str)], options: &str, code: i32, sentence: &str) {
    let shop = shop();
    let line = format!("merge base.safetensors a -o out {options}");
    let mut command = shop.command(&line, Driver::Late);
    command.envs(settings.iter().copied());
    let run = run(&mut command);
    assert_eq!(run.code, code, "{}", run.stderr);
    let first = run.stderr.lines().next().unwrap_or_default();
    assert!(first.contains(sentence), "{}", run.stderr);
    assert!(!shop.path("out").exists());
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

/// Breaks where a GPU that is missing, or too old, ends in anything but a clear sentence and exit code 5.
#[test]
fn every_missing_piece_is_named() {
    let nowhere = tempfile::tempdir().unwrap();
    let nowhere = nowhere.path().to_str().unwrap();
    // Machines with a driver of their own find that one.
    if !Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        let sentence = "there is no NVIDIA driver: libcuda was not found";
        fails(
            &[("LD_LIBRARY_PATH", nowhere)],
            "--device cuda",
            5,
            sentence,
        );
        // Nothing is missing where nobody asks for it.
        let shop = shop();
        let mut auto = shop.command(
            "merge base.safetensors a -o out --device auto",
            Driver::Late,
        );
        let auto = run(auto.env("LD_LIBRARY_PATH", nowhere));
        assert_eq!(auto.code, 0, "{}", auto.stderr);
    }
    let cuda = "--device cuda";
    let sentence = "the NVIDIA driver finds no GPU";
    fails(&[("SIM_CUDA_DEVICES", "0")], cuda, 5, sentence);
    let sentence = "the NVIDIA driver did not start: no CUDA-capable device is detected";
    fails(&[("SIM_CUDA_INIT", "100")], cuda, 5, sentence);
    let sentence = "there is no GPU 2: the driver finds 1";
    fails(&[], "--device cuda:2", 5, sentence);
    let sentence = "Simulated GPU is too old: its compute capability is 6.1, 7.5 is the least";
    fails(&[("SIM_CUDA_CAPABILITY", "61")], cuda, 5, sentence);
    let sentence = "the NVIDIA driver is too old: it is of CUDA 11.4, 12.0 is the least";
    fails(&[("SIM_CUDA_VERSION", "11040")], cuda, 5, sentence);
}

/// Breaks where a missing compiler is not named, or one that fails ends without its reason.
#[test]
fn the_compiler_is_named() {
    let only_driver = tempfile::tempdir().unwrap();
    fs::copy(
        simulator().join("libcuda.so.1"),
        only_driver.path().join("libcuda.so.1"),
    )
    .unwrap();
    let path = only_driver.path().to_str().unwrap();
    let sentence = "NVRTC, which compiles the kernels, was not found: libnvrtc";
    fails(&[("LD_LIBRARY_PATH", path)], "--device cuda", 5, sentence);
    let sentence = "NVRTC does not compile the kernels: simulated failure";
    fails(
        &[("SIM_CUDA_NO_COMPILER", "1")],
        "--device cuda",
        3,
        sentence,
    );
}

/// Breaks where too little device memory, by the flag or by the device, is not said, or leaves something behind.
#[test]
fn device_memory_is_bounded() {
    let sentence = "more bytes of device memory are needed";
    fails(&[], "--device cuda --device-memory 4kB", 3, sentence);
    let sentence = "taking memory failed on the GPU: out of memory";
    fails(&[("SIM_CUDA_MIB", "0")], "--device cuda", 3, sentence);
}

/// Breaks where a newer GPU than the compiler knows is refused instead of served with portable code.
#[test]
fn a_newer_gpu_than_the_compiler_gets_portable_code() {
    let shop = shop();
    let cpu = shop.run("merge base.safetensors a -o cpu", Driver::Late);
    assert_eq!(cpu.code, 0, "{}", cpu.stderr);
    let mut command = shop.command(
        "merge base.safetensors a -o gpu --device cuda",
        Driver::Late,
    );
    let gpu = run(command.env("SIM_CUDA_CAPABILITY", "120"));
    assert_eq!(gpu.code, 0, "{}", gpu.stderr);
    assert!(shop.bytes("cpu") == shop.bytes("gpu"));
}

/// Breaks where a device that does not exist is a failure of the machine instead of the command line.
#[test]
fn names_of_devices_are_checked() {
    let shop = shop();
    for name in ["gpu", "cuda:x", "cuda:"] {
        let line = format!("merge base.safetensors a -o out --device {name}");
        let run = shop.run(&line, Driver::Late);
        assert_eq!(run.code, 2, "{}", run.stderr);
    }
}
