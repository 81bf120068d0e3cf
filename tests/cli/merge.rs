use std::collections::BTreeMap;
use std::fs;

use super::{Shell, assert_transcript, walk};

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

/// Breaks where an output of `--each` is not the bytes of a merge of its adapter alone, for any
/// number of threads, or has another name.
#[test]
fn each_adapter_alone() {
    let mut shell = Shell::new();
    let base = shell.tensors("base/model-00001-of-00002.safetensors");
    let rest = shell.tensors("base/model-00002-of-00002.safetensors");
    shell.write("whole.safetensors", &[base, rest].concat());
    fs::create_dir(shell.path("alone")).unwrap();
    shell.run("merge base lora vera=0.5 style.tl --each -o all --dry-run");
    assert!(!shell.path("all").exists());
    shell.run("merge base lora vera=0.5 style.tl --each -o all");
    shell.ok("merge whole.safetensors lora vera=0.5 style.tl --each -o files --threads 1");
    shell.ok("merge whole.safetensors lora vera=0.5 style.tl --each -o files3 --threads 3");
    for (adapter, name) in [
        ("lora", "lora"),
        ("vera=0.5", "vera"),
        ("style.tl", "style"),
    ] {
        shell.ok(&format!("merge base {adapter} -o alone/{name} --threads 2"));
        shell.ok(&format!(
            "merge whole.safetensors {adapter} -o alone-{name}"
        ));
        let files = |dir: &str| {
            let mut found = BTreeMap::new();
            walk(&shell.path(dir).join(name), &mut found);
            let names = found
                .into_iter()
                .map(|(p, b)| (p.file_name().unwrap().to_owned(), b));
            names.collect::<BTreeMap<_, _>>()
        };
        assert!(files("alone") == files("all"), "{name}");
        let alone = fs::read(shell.path(&format!("alone-{name}"))).unwrap();
        for folder in ["files", "files3"] {
            let path = shell.path(&format!("{folder}/{name}.safetensors"));
            assert!(fs::read(path).unwrap() == alone, "{folder}/{name}");
        }
    }
    assert_transcript!(shell);
}

/// Breaks where `--each` writes something before it has refused what cannot be, or its report is
/// not one document with a list.
#[test]
fn each_adapter_refused_or_reported() {
    let mut shell = Shell::new();
    let before = shell.files();
    shell.run("merge base style style.tl --each -o all");
    shell.run("merge base lora style.tl --each --in-place");
    shell.run("merge base lora style.tl --each");
    shell.run("merge base lora base --each -o all");
    shell.run("merge base lora=nan style.tl --each -o all");
    assert_eq!(shell.files(), before);
    shell.ok("merge base lora --each -o all");
    shell.run("merge base style.tl lora --each -o all");
    assert!(!shell.path("all/style").exists());
    let options = "--rounding peft-safe --rename a=b --tied shared --no-fsync --force --json";
    let run = shell.quiet(&format!("merge base style.tl lora --each -o all {options}"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["outputs"][1]["output"], "all/lora");
    assert_eq!(report["outputs"][1]["rounding"], "peft-safe");
    assert_eq!(report["total"]["adapters"], 2);
    let run = shell.quiet("merge base style.tl lora --each -o other --dry-run --json");
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["outputs"][0]["output"], "other/style");
    assert_eq!(report["outputs"][0]["tensors_total"], 39);
    shell.ok("merge base style.tl --each -o checked --check-base");
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

/// Breaks where a merge method, what it was asked for or its refusals are said otherwise, its bytes depend on
/// threads, or `verify merged` does not know them again.
#[test]
fn adapters_made_one_by_a_method() {
    let mut shell = Shell::new();
    let by = "--method dare-ties --density 0.5,0.8 --seed 3 --sign-method frequency --lambda 1.5";
    shell.run(&format!("merge base lora=0.5 style.tl=-1 -o merged {by}"));
    shell.ok(&format!(
        "merge base lora=0.5 style.tl=-1 -o one {by} --threads 1"
    ));
    shell.ok(&format!(
        "merge base lora=0.5 style.tl=-1 -o five {by} --threads 5"
    ));
    let adapters = "--adapter lora=0.5 --adapter style.tl=-1";
    shell.run(&format!(
        "verify merged --base base {adapters} --merged merged {by}"
    ));
    shell.run(&format!(
        "verify merged --base base {adapters} --merged one --method linear"
    ));
    for name in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ] {
        let read = |folder: &str| fs::read(shell.path(folder).join(name)).unwrap();
        assert!(
            read("one") == read("merged") && read("five") == read("merged"),
            "{name}"
        );
    }
    shell.run(
        "merge base lora style.tl -o ties --method ties --density 0.3 --json --dry-run --threads 2",
    );
    shell.run("merge base lora style.tl -o ties --method ties");
    shell.run("merge base lora style.tl -o ties --method ties --density 0");
    shell.run("merge base lora style.tl -o ties --method ties --density 0.1,0.2,0.3");
    shell.run("merge base lora style.tl -o ties --method linear --density 0.5");
    shell.run("merge base lora style.tl -o ties --method ties --density 0.5 --device cuda");
    shell.run("merge base lora style.tl -o ties --density 0.5");
    shell.run("merge base lora style.tl -o ties --method slerp");
    assert!(!shell.path("ties").exists());
    assert_transcript!(shell);
}
