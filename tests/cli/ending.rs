//! How commands end at a signal, and that nothing of theirs stays.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Run, Shell};
use crate::shared::names;

/// What a busy machine may add to the second that is promised.
const PATIENCE: Duration = Duration::from_secs(5);

fn signal(name: &str, child: &Child) {
    let status = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Starts a command, sends it a signal once it is at work, and waits for its end.
fn stopped(shell: &Shell, name: &str, line: &str, after: Duration) -> (Run, Duration) {
    let mut command = shell.command(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    sleep(after);
    signal(name, &child);
    let start = Instant::now();
    let run = Run::of(child.wait_with_output().unwrap());
    (run, start.elapsed())
}

#[track_caller]
fn assert_interrupted(shell: &Shell, before: &[String], line: &str, run: &Run, took: Duration) {
    assert_eq!(run.code, 130, "{line}: {}", run.stderr);
    let errors = run.stderr.lines().filter(|l| l.starts_with("error["));
    assert_eq!(errors.count(), 1, "{line}: {}", run.stderr);
    assert!(
        run.stderr.contains("error[TL0005]: "),
        "{line}: {}",
        run.stderr
    );
    assert!(took < PATIENCE, "{line}: {took:?}");
    assert_eq!(names(shell.dir.path()), before, "{line}");
}

/// Breaks where a command that waits for a pipe's other end does not end at a signal.
#[test]
fn a_pipe_that_nobody_writes_to_ends_at_a_signal() {
    let shell = Shell::new();
    let pipe = shell.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let before = names(shell.dir.path());
    for (name, line) in [
        ("TERM", "train --model base --data pipe -o t.tl"),
        ("INT", "generate --model base --prompts pipe"),
        ("TERM", "eval --model base --data pipe --task qa"),
        (
            "INT",
            "verify logits --base base --adapter style.tl --merged base --data pipe",
        ),
        ("HUP", "--json generate --model base --prompts pipe"),
    ] {
        let (run, took) = stopped(&shell, name, line, Duration::from_millis(700));
        assert_interrupted(&shell, &before, line, &run, took);
        if line.starts_with("--json") {
            let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            assert_eq!(json["error"]["code"], "TL0005");
        }
    }
}

/// Breaks where a command hangs on a pipe that is named where a file has to be: it is to be refused, or
/// to end at a signal.
#[test]
fn a_pipe_in_place_of_a_file_never_hangs() {
    let shell = Shell::new();
    let made = Command::new("mkfifo").arg(shell.path("pipe")).status();
    assert!(made.unwrap().success());
    for line in [
        "inspect pipe",
        "verify file pipe",
        "verify adapters pipe style.tl",
        "merge pipe style.tl -o m.safetensors",
        "merge base pipe -o m",
        "convert peft-to-tied pipe -o c.tl",
        "convert tied-to-peft pipe -o c",
        "pack pipe -o p.tl",
        "audit lora --owners pipe",
        "sweep --config pipe -o s",
        "train --config pipe",
        "unmerge base --undo pipe",
        "store put pipe a/b style.tl",
    ] {
        let (run, took) = stopped(&shell, "TERM", line, Duration::from_millis(700));
        assert!(took < PATIENCE, "{line}: {took:?}");
        assert!(
            [2, 3, 4, 6, 130].contains(&run.code),
            "{line}: {}: {}",
            run.code,
            run.stderr
        );
        assert!(run.stderr.contains("error"), "{line}: {}", run.stderr);
    }
}

/// Breaks where a command that waits for the network, of a store as well, does not end at a signal.
#[test]
fn a_server_that_never_answers_ends_at_a_signal() {
    let shell = Shell::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", server.local_addr().unwrap());
    for (name, line) in [
        ("TERM", "store list s3://fleet/a"),
        ("INT", "store put s3://fleet/a ann/sum style.tl"),
        ("TERM", "store gc s3://fleet/a --json"),
        ("INT", "audit s3://fleet/a"),
    ] {
        let mut command = shell.command(line);
        for (key, value) in [
            ("AWS_ENDPOINT", address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
        ] {
            command.env(key, value);
        }
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(700));
        signal(name, &child);
        let start = Instant::now();
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!(run.code, 130, "{line}: {}", run.stderr);
        assert!(start.elapsed() < PATIENCE, "{line}");
        assert!(
            run.stderr.contains("error[TL0005]: "),
            "{line}: {}",
            run.stderr
        );
    }
}

/// Breaks where packing or converting runs on after a signal, or leaves a part of its output.
#[test]
fn long_work_ends_at_a_signal_and_leaves_nothing() {
    let shell = Shell::new();
    big_adapter(&shell);
    shell.ok("convert peft-to-tied big -o big.tl");
    let before = names(shell.dir.path());
    for (name, line) in [
        ("TERM", "pack big.tl -o o.tl --dtype int8 --zstd"),
        ("INT", "convert peft-to-tied big -o p.tl --zstd"),
        ("INT", "pack big.tl -o o.tl --zstd --json"),
        ("TERM", "convert tied-to-peft big.tl -o out"),
    ] {
        let mut command = shell.command(line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        sleep(Duration::from_millis(100));
        let start = Instant::now();
        if child.try_wait().unwrap().is_none() {
            signal(name, &child);
        }
        let run = Run::of(child.wait_with_output().unwrap());
        assert!(start.elapsed() < PATIENCE, "{line}");
        if run.code == 0 {
            // It was faster than the signal.
            let _ = fs::remove_file(shell.path("o.tl"));
            let _ = fs::remove_file(shell.path("p.tl"));
            let _ = fs::remove_dir_all(shell.path("out"));
        } else {
            assert_eq!(run.code, 130, "{line}: {}", run.stderr);
        }
        assert_eq!(names(shell.dir.path()), before, "{line}");
    }
}

/// A LoRA of rank 512 on two layers of width 4096, which takes seconds to pack.
fn big_adapter(shell: &Shell) {
    let mut state = 1u32;
    let mut noise = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 1e7 - 0.8
        };
        (0..n).map(|_| next()).collect()
    };
    let mut tensors = Vec::new();
    for layer in 0..2 {
        for (part, shape) in [("A", [512, 4096]), ("B", [4096, 512])] {
            let name = format!(
                "base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"
            );
            let values = noise(512 * 4096);
            let tensor = tlkit::tensor::Tensor::from_f32(shape.to_vec(), &values).unwrap();
            tensors.push((name, tensor));
        }
    }
    fs::create_dir(shell.path("big")).unwrap();
    shell.write("big/adapter_model.safetensors", &tensors);
    let config =
        r#"{"peft_type":"LORA","r":512,"lora_alpha":8,"bias":"none","target_modules":["q_proj"]}"#;
    fs::write(shell.path("big/adapter_config.json"), config).unwrap();
}

/// Breaks where a run that is told to stop does not say how to go on with it.
#[test]
fn a_run_saves_itself_at_a_signal() {
    let shell = Shell::new();
    let line = (0..64).map(|n| format!("{{\"text\": \"{n} abc abc abc abc\"}}\n"));
    fs::write(shell.path("data.jsonl"), line.collect::<String>()).unwrap();
    let line = "train --model base --data data.jsonl -o t.tl --max-steps 1000000 --seq-len 32 \
                --global-batch 2 --batch-size 2 --device cpu";
    let (run, took) = stopped(&shell, "TERM", line, Duration::from_secs(2));
    assert_eq!(run.code, 130, "{}", run.stderr);
    assert!(took < PATIENCE);
    assert!(!shell.path("t.tl").exists());
    assert!(run.stderr.contains("--resume"), "{}", run.stderr);
}

/// Breaks where memory that the system refuses ends in an abort.
#[test]
fn refused_memory_is_a_coded_error() {
    let shell = Shell::new();
    big_adapter(&shell);
    let mut refused = 0;
    for megabytes in [80, 90, 100, 110, 120, 140] {
        for json in ["", "--json"] {
            let line = format!(
                "ulimit -v {}; exec {} convert peft-to-tied big -o big.tl --force --threads 1 {json}",
                megabytes << 10,
                env!("CARGO_BIN_EXE_tlkit")
            );
            let mut command = Command::new("sh");
            let command = command.arg("-c").arg(line).current_dir(shell.dir.path());
            let run = Run::of(command.output().unwrap());
            if run.code == 0 {
                continue;
            }
            refused += 1;
            assert_eq!(run.code, 3, "{megabytes} MB: {}", run.stderr);
            assert!(
                run.stderr.starts_with("error[TL0"),
                "{megabytes} MB: {}",
                run.stderr
            );
            if !json.is_empty() {
                serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap();
            }
        }
    }
    assert!(refused > 0);
}
