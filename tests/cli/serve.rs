//! What brings adapters to the programs that serve them.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

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

/// Breaks where an adapter of another tool is told otherwise, is not opened where adapters are, or leaves files where it is
/// refused.
#[test]
fn adapters_of_other_tools() {
    let mut shell = Shell::new();
    let nemo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nemo");
    for name in ["tied", "tied-add", "no-rank", "vera-megatron"] {
        let file = format!("{name}.nemo");
        std::fs::copy(nemo.join(&file), shell.path(&file)).unwrap();
    }
    shell.run("convert nemo-to-tied tied.nemo -o tied.tl --base base");
    shell.run("inspect tied.nemo --base base");
    shell.run("convert nemo-to-tied tied-add.nemo -o none.tl");
    shell.run("convert nemo-to-tied no-rank.nemo -o none.tl");
    shell.run("convert nemo-to-tied vera-megatron.nemo -o none.tl");
    shell.run("convert tied-to-mlx style.tl -o mlx --base base --json");
    shell.run("convert mlx-to-tied mlx -o style-again.tl --base base");
    shell.run("verify adapters style.tl mlx");
    shell.run("convert mlx-to-tied lora -o none.tl");
    shell.run("convert nemo-to-tied lora -o none.tl");
    shell.ok("merge base tied.nemo mlx -o merged");
    shell.ok("store init store");
    shell.ok("store put store alice/mlx mlx");
    shell.ok("store put store alice/nemo tied.nemo");
    shell.ok("audit mlx tied.nemo");
    assert!(!shell.path("none.tl").exists());
    assert_transcript!(shell);
}

/// Breaks where an adapter that does not fit is called one that does, or the programs that misread it are not named.
#[test]
fn check_says_whether_an_adapter_fits() {
    let mut shell = Shell::new();
    shell.run("check base style.tl");
    shell.run("check base lora");
    shell.run("check base vera --json");
    shell.ok("convert peft-to-tied lora -o lora.tl --base base");
    shell.run("check base lora.tl");
    shell.run("check base lora.tl --shapes-only");
    shell.run("check base style.tl --rename model=other");
    shell.run("check base nothing");
    assert_transcript!(shell);
}

/// Breaks where a folder for servers has another base's name, is not brought up to date, or is told otherwise.
#[test]
fn a_store_as_servers_read_it() {
    let mut shell = Shell::new();
    shell.ok("store init store");
    shell.ok("store put store alice/one style.tl");
    shell.ok("store put store bob/two lora");
    shell.run("store get store alice/one --portable --base-name served -o one");
    let config = std::fs::read_to_string(shell.path("one/adapter_config.json")).unwrap();
    assert!(config.contains("\"base_model_name_or_path\": \"served\""));
    shell.run("store get store bob/two --peft -o two");
    shell.run("store export store -o out --peft --portable --base-name served --versions");
    let config = std::fs::read_to_string(shell.path("out/bob/two@1/adapter_config.json")).unwrap();
    assert!(config.contains("\"base_model_name_or_path\": \"served\""));
    assert!(!config.contains("rslora"));
    shell.ok("store put store alice/one vera");
    shell.ok("store rm store bob/two");
    shell.run("store export store -o out --portable --base-name served --json");
    assert!(!shell.path("out/bob").exists());
    shell.run("store export store -o other --watch");
    shell.run("store export store -o other --peft --thin");
    shell.run("store get store alice/one --portable --zstd -o none");
    assert_transcript!(shell);
}

/// Breaks where a folder that is watched does not follow the store, or the watch does not end as every command does.
#[test]
fn a_watched_folder_follows_until_it_is_interrupted() {
    let shell = Shell::new();
    shell.ok("store init store");
    shell.ok("store put store alice/one style.tl");
    let mut command = shell.command("store export store -o out --peft --watch --every 1s --json");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let link = shell.path("out/alice/one");
    let led_to = |other: Option<&PathBuf>| {
        for _ in 0..600 {
            if let Ok(now) = std::fs::read_link(&link)
                && Some(&now) != other
            {
                return now;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("nothing changed");
    };
    let first = led_to(None);
    shell.ok("store put store alice/one vera");
    led_to(Some(&first));
    let pid = child.id().to_string();
    let status = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(status.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.lines().next().unwrap().starts_with('{'));
}
