//! Files in an adapter's folder that the adapter does not need, by their names.

use std::path::Path;

/// Why a file could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// A whole model.
    FullWeights,
    /// The state of a training run.
    Optimizer,
}

/// What begins and ends the names of whole models.
const FULL_WEIGHTS: [(&str, &str); 7] = [
    ("model", ".safetensors"),
    ("pytorch_model", ".bin"),
    ("consolidated", ".pth"),
    ("consolidated", ".safetensors"),
    ("", ".gguf"),
    ("tf_model", ".h5"),
    ("flax_model", ".msgpack"),
];

/// What begins and ends the names of files that transformers, accelerate, DeepSpeed and FSDP keep
/// to resume a run.
const OPTIMIZER: [(&str, &str); 11] = [
    ("optimizer", ".pt"),
    ("optimizer", ".bin"),
    ("scheduler", ".pt"),
    ("scheduler", ".bin"),
    ("scaler", ".pt"),
    ("rng_state", ".pth"),
    ("random_states", ".pkl"),
    ("training_args", ".bin"),
    ("zero_pp_rank", ".pt"),
    ("bf16_zero_pp_rank", ".pt"),
    ("", "_optim_states.pt"),
];

/// What begins the names of folders that hold such state whole.
const OPTIMIZER_FOLDERS: [&str; 2] = ["global_step", "optimizer_"];

/// What a file is, by its path inside the adapter's folder.
pub(super) fn leftover(inner: &Path) -> Option<Leftover> {
    let name = inner.file_name()?.to_str()?;
    let is = |(start, end): &(&str, &str)| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let mut folders = inner.parent()?.iter().filter_map(|f| f.to_str());
    if folders.any(|f| OPTIMIZER_FOLDERS.iter().any(|start| f.starts_with(start)))
        || OPTIMIZER.iter().any(is)
    {
        return Some(Leftover::Optimizer);
    }
    FULL_WEIGHTS.iter().any(is).then_some(Leftover::FullWeights)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where an adapter's own file would be called waste, or waste its own.
    #[test]
    fn files_are_told_apart_by_name_and_folder() {
        let of = |path: &str| leftover(Path::new(path));
        for path in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "x.gguf",
            "sub/pytorch_model-00001-of-00002.bin",
            "consolidated.00.pth",
        ] {
            assert_eq!(of(path), Some(Leftover::FullWeights), "{path}");
        }
        for path in [
            "optimizer.pt",
            "optimizer.bin",
            "rng_state_3.pth",
            "scaler.pt",
            "global_step500/mp_rank_00_model_states.pt",
            "optimizer_0/__0_0.distcp",
            "global_step500/model.safetensors",
        ] {
            assert_eq!(of(path), Some(Leftover::Optimizer), "{path}");
        }
        for path in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "adapter_model.bin",
            "README.md",
            "tokenizer.model",
            "trainer_state.json",
            "global_step.txt",
            "my-model.safetensors.txt",
            "",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
