//! What brings adapters to the programs that serve them.

use super::{Shell, assert_transcript};

/// Breaks where a conversion to llama.cpp's format is told otherwise, asks for the base's weights, or writes
/// what it refuses.
#[test]
fn tied_to_gguf() {
    let mut shell = Shell::new();
    std::fs::create_dir(shell.path("config")).unwrap();
    std::fs::copy(
        shell.path("base/config.json"),
        shell.path("config/config.json"),
    )
    .unwrap();
    shell.run("convert tied-to-gguf style.tl -o style.gguf --base config");
    shell.run("convert tied-to-gguf lora -o lora.gguf --base base --dtype f16");
    shell.run("convert tied-to-gguf vera -o vera.gguf --base base --json");
    shell.run("convert tied-to-gguf style.tl -o style.gguf --base config");
    shell.run("convert tied-to-gguf style.tl -o none.gguf --base lora");
    shell.run("convert tied-to-gguf style.tl -o none.gguf --base config --rename model=other");
    shell.run("convert tied-to-gguf base -o none.gguf --base config");
    assert!(!shell.path("none.gguf").exists());
    assert_transcript!(shell);
}
