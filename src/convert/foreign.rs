//! Adapters of other tools to a `.tl`, each by the command of its own name.

use std::path::Path;

use super::tied::ToTiedOptions;
use super::to_tied::{ToTied, peft_to_tied};
use crate::error::{Code, Error, Result};
use crate::mlx::is_mlx_dir;
use crate::nemo::is_nemo_file;

/// Converts an MLX adapter's folder to a `.tl`, as [`peft_to_tied`] does, which takes such a folder too.
///
/// # Errors
/// [`Code::NoAdapter`] for what is no such folder; those of [`peft_to_tied`].
pub fn mlx_to_tied(dir: &Path, output: &Path, options: &ToTiedOptions<'_>) -> Result<ToTied> {
    if !dir.exists() {
        return Err(Error::new(Code::NotFound, "no such folder").file(dir));
    }
    if !is_mlx_dir(dir) {
        let message = "is no MLX adapter's folder";
        return Err(Error::new(Code::NoAdapter, message)
            .file(dir)
            .hint("one has adapters.safetensors, and adapter_config.json with lora_parameters"));
    }
    peft_to_tied(dir, output, options)
}

/// Converts a `.nemo` of NeMo 1.x to a `.tl`, as [`peft_to_tied`] does, which takes such a file too.
///
/// # Errors
/// [`Code::NoAdapter`] for what is no such file; those of [`peft_to_tied`].
pub fn nemo_to_tied(file: &Path, output: &Path, options: &ToTiedOptions<'_>) -> Result<ToTied> {
    if !file.exists() {
        return Err(Error::new(Code::NotFound, "no such file").file(file));
    }
    if !is_nemo_file(file) {
        return Err(Error::new(Code::NoAdapter, "is no .nemo file")
            .file(file)
            .hint("one is a tar archive with model_config.yaml and model_weights.ckpt"));
    }
    peft_to_tied(file, output, options)
}
