use std::fs;

use super::{Shell, assert_transcript};

/// Breaks where a file merges otherwise than it says, or its output gets another name.
#[test]
fn a_file_and_the_name_of_its_output() {
    let mut shell = Shell::new();
    let base = shell.tensors("base/model-00001-of-00002.safetensors");
    let rest = shell.tensors("base/model-00002-of-00002.safetensors");
    shell.write("whole.safetensors", &[base, rest].concat());
    shell.run("merge whole.safetensors style.tl");
    shell.run("merge whole.safetensors style.tl -o named.safetensors --no-fsync --threads 1");
    assert_eq!(
        fs::read(shell.path("whole-style.safetensors")).unwrap(),
        fs::read(shell.path("named.safetensors")).unwrap()
    );
    assert_transcript!(shell);
}

/// Breaks where a model directory, weights or several adapters are read otherwise.
#[test]
fn a_model_directory_and_weights() {
    let mut shell = Shell::new();
    shell.run("merge base style.tl -o merged");
    shell.run("merge base/ lora=0.5 style.tl");
    assert!(shell.path("base-lora-style/config.json").exists());
    shell.run("merge base vera style.tl=-1 -o safe --rounding peft-safe --tied untie");
    assert_transcript!(shell);
}

/// Breaks where a dry run writes something, or leaves out what it would do.
#[test]
fn a_dry_run_writes_nothing() {
    let mut shell = Shell::new();
    let before = shell.files();
    shell.run("merge base lora style.tl=0.5 -o merged --dry-run");
    assert_eq!(shell.files(), before);
    assert_transcript!(shell);
}

/// Breaks where unmerge does not give the very bytes back.
#[test]
fn in_place_and_back() {
    let mut shell = Shell::new();
    let before = shell.files();
    shell.run("merge base style.tl --in-place");
    assert!(shell.path("base.tlkit-undo").exists());
    shell.run("merge base style.tl --in-place");
    shell.run("unmerge base");
    shell.run("unmerge base");
    fs::remove_file(shell.path("base.tlkit-undo")).unwrap();
    assert_eq!(shell.files(), before);
    assert_transcript!(shell);
}

/// Breaks where an adapter on an embedding silently changes the output too, or the way out of the
/// refusal does not work.
#[test]
fn a_tied_embedding_is_not_changed_unasked() {
    let mut shell = Shell::new();
    let mut tensors = shell.tensors("base/model-00001-of-00002.safetensors");
    tensors.extend(shell.tensors("base/model-00002-of-00002.safetensors"));
    tensors.retain(|(name, _)| name != "lm_head.weight");
    fs::create_dir(shell.path("tied")).unwrap();
    shell.write("tied/model.safetensors", &tensors);
    let config = fs::read_to_string(shell.path("base/config.json")).unwrap();
    let config = config.replace(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    assert!(config.contains("\"tie_word_embeddings\": true"), "{config}");
    fs::write(shell.path("tied/config.json"), config).unwrap();
    embedding_adapter(&shell);
    shell.run("merge tied embed -o refused");
    assert!(!shell.path("refused").exists());
    shell.run("merge tied embed -o untied --tied untie");
    shell.run("merge tied embed -o shared --tied shared");
    assert_transcript!(shell);
}

/// A rank-1 LoRA on the embedding, as PEFT names it.
fn embedding_adapter(shell: &Shell) {
    use tlkit::tensor::Tensor;
    let all = "\"k_proj\",\n    \"q_proj\",\n    \"v_proj\"";
    shell.adapter("style", "embed", all, "\"embed_tokens\"");
    let config = shell.path("embed/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, text.replace("\"r\": 4", "\"r\": 1")).unwrap();
    let name = |f: &str| format!("base_model.model.model.embed_tokens.lora_embedding_{f}");
    let values = |n: usize| (0..n).map(|i| (i % 7) as f32 / 16.0).collect::<Vec<_>>();
    shell.write(
        "embed/adapter_model.safetensors",
        &[
            (
                name("A"),
                Tensor::from_f32(vec![1, 128], &values(128)).unwrap(),
            ),
            (
                name("B"),
                Tensor::from_f32(vec![64, 1], &values(64)).unwrap(),
            ),
        ],
    );
}
