//! What names of files and words of models do to a terminal or a spreadsheet: nothing.

use std::fs;

use super::{Shell, copy_dir};

/// Escape, a C1 control, a mark that turns text around, and one that hides it.
const NASTY: &str = "x\u{1b}[31m\u{9b}31m\u{202e}\u{200b}\u{7f}y";

fn harmless(text: &str) -> bool {
    text.chars()
        .all(|c| c == '\n' || c == '\t' || !tlkit::error::is_unprintable(c))
}

/// Breaks where a path or an argument reaches the terminal as it is, on either stream, as text or JSON.
#[test]
fn names_print_no_raw_escapes() {
    let shell = Shell::new();
    copy_dir(&shell.path("lora"), &shell.path(NASTY));
    let tl = format!("{NASTY}.tl");
    fs::copy(shell.path("style.tl"), shell.path(&tl)).unwrap();
    for line in [
        format!("inspect {NASTY}"),
        format!("inspect {tl} --tensors"),
        format!("verify file {tl}"),
        format!("audit {NASTY} {tl}"),
        format!("convert peft-to-tied {NASTY} -o out{NASTY}.tl"),
        format!("merge base {tl} -o merged{NASTY}"),
        format!("pack {tl} -o packed{NASTY}.tl"),
        format!("inspect absent{NASTY}"),
        format!("frobnicate{NASTY}"),
        format!("merge --{NASTY}"),
        format!("merge base style.tl --rounding {NASTY}"),
        format!("merge base style.tl={NASTY}"),
        format!("store list {NASTY}"),
        format!("store get {NASTY} {NASTY}/{NASTY} -o x"),
        format!("plan --model {NASTY} --users 1"),
        format!("--threads {NASTY} demo"),
        format!("train --config {NASTY}"),
    ] {
        for line in [line.clone(), format!("--json {line}")] {
            let run = shell.quiet(&line);
            assert!(harmless(&run.stderr), "{line:?}: {:?}", run.stderr);
            assert!(harmless(&run.stdout), "{line:?}: {:?}", run.stdout);
            assert!(!run.stderr.is_empty() || !run.stdout.is_empty(), "{line:?}");
            if line.starts_with("--json") && !run.stdout.is_empty() {
                serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap();
            }
        }
        let _ = fs::remove_file(shell.path(&format!("out{NASTY}.tl")));
        let _ = fs::remove_file(shell.path(&format!("packed{NASTY}.tl")));
        let _ = fs::remove_dir_all(shell.path(&format!("merged{NASTY}")));
    }
    // JSON says the same name, in other letters.
    let run = shell.quiet(&format!("--json inspect {tl}"));
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(json.to_string().contains('\u{202e}'), "{json}");
}

/// Breaks where a broken settings file's lines, which an error shows, reach the terminal as they are.
#[test]
fn quoted_lines_of_files_print_no_raw_escapes() {
    let shell = Shell::new();
    fs::write(
        shell.path("run.toml"),
        format!("model = \"{NASTY}\"\n{NASTY} = 1\n[["),
    )
    .unwrap();
    fs::write(
        shell.path("data.jsonl"),
        format!("{{\"text\": 1, \"{NASTY}\": 2}}\n"),
    )
    .unwrap();
    for line in [
        "train --config run.toml",
        "sweep --config run.toml -o s",
        "train --model base --data data.jsonl -o t.tl --max-steps 1",
    ] {
        let run = shell.quiet(line);
        assert!(
            run.code != 0 && harmless(&run.stderr),
            "{line}: {:?}",
            run.stderr
        );
    }
}

/// Breaks where a spreadsheet would compute what a stranger named a folder, or a number is no number.
#[test]
fn csv_cells_are_no_formulas() {
    let shell = Shell::new();
    for (user, task) in [
        ("u", "=HYPERLINK(\"http:evil\")"),
        ("@u", "-2+3"),
        ("+u", "\tx"),
    ] {
        let folder = shell.path("fleet").join(user).join(task);
        copy_dir(&shell.path("lora"), &folder);
        let config = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["base_model_name_or_path"] = "=cmd|' /C calc'!A0".into();
        config["lora_alpha"] = (-2.5).into();
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    }
    shell.quiet("audit fleet --template {user}/{task} --csv a.csv");
    let text = fs::read_to_string(shell.path("a.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let (mut rows, mut seen) = (0, Vec::new());
    for record in reader.records() {
        let record = record.unwrap();
        rows += 1;
        for (name, cell) in header.iter().zip(&record) {
            let number = cell.parse::<f64>().is_ok();
            assert!(
                number || !cell.starts_with(['=', '+', '-', '@', '\t', '\r']),
                "{name}: {cell}"
            );
            seen.push(cell.to_owned());
        }
    }
    assert_eq!(rows, 3);
    for cell in ["'=cmd|' /C calc'!A0", "'@u", "'-2+3", "'+u"] {
        assert!(seen.iter().any(|c| c == cell), "{cell}: {text}");
    }
    // A table of owners may be made of what the audit wrote.
    shell.quiet("audit fleet --owners a.csv --csv b.csv");
    assert_eq!(fs::read_to_string(shell.path("b.csv")).unwrap(), text);
}
