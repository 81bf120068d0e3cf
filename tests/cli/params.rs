use std::fs;

use super::{Shell, assert_transcript};

/// Breaks where a count, its unit or what it is compared with changes.
#[test]
fn the_method_table() {
    let mut shell = Shell::new();
    shell.run("params --layers 32 --hidden 4096");
    shell.run("params --layers 32 --hidden 4096 --kv-dim 1024 --rank 2,64 --dtype bf16");
    shell.run("params --layers 24 --hidden 2048 --rank 8 --lora-rank 4");
    shell.run("params --model base --rank 4 --json");
    assert_transcript!(shell);
}

/// Breaks where a model needs its weights to be counted, or a wrong one is no clear failure.
#[test]
fn a_model_without_weights() {
    let mut shell = Shell::new();
    fs::create_dir(shell.path("bare")).unwrap();
    shell.run("params --model bare");
    let sizes = r#"{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4"#;
    fs::write(shell.path("bare/config.json"), format!("{sizes}}}")).unwrap();
    shell.ok("params --model bare");
    fs::write(shell.path("bare/config.json"), "{}").unwrap();
    shell.run("params --model bare");
    shell.run("params --layers 2 --hidden 64 --rank 65537");
    shell.run("params --layers 4096 --hidden 18446744073709551615");
    assert_transcript!(shell);
}
