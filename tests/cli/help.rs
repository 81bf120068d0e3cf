use super::{Shell, assert_transcript};

const COMMANDS: &[&str] = &[
    "",
    "convert",
    "convert peft-to-tied",
    "convert tied-to-peft",
    "convert tied-to-gguf",
    "combine",
    "convert mlx-to-tied",
    "convert nemo-to-tied",
    "convert tied-to-mlx",
    "train",
    "sweep",
    "merge",
    "extract",
    "unmerge",
    "verify",
    "verify file",
    "verify adapters",
    "verify merged",
    "verify logits",
    "verify signature",
    "check",
    "inspect",
    "pack",
    "store",
    "store init",
    "store put",
    "store get",
    "store list",
    "store history",
    "store tag",
    "store rm",
    "store stat",
    "store fsck",
    "store gc",
    "store publish",
    "store quota",
    "store export",
    "store import",
    "store sync",
    "store watch",
    "generate",
    "eval",
    "params",
    "audit",
    "plan",
    "devices",
    "demo",
    "completions",
];

/// Breaks where an option appears, vanishes or is described otherwise without anyone meaning it.
#[test]
fn help_of_every_command() {
    let mut shell = Shell::new();
    for command in COMMANDS {
        let run = shell.run(&format!("{command} --help"));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{command}");
    }
    assert_transcript!(shell);
}

/// Breaks where a shell's script forgets a command.
#[test]
fn completions_know_every_command() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = shell.quiet(&format!("completions {name}"));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{name}");
        for word in COMMANDS.iter().flat_map(|c| c.split_whitespace()) {
            assert!(run.stdout.contains(word), "{name} lacks {word}");
        }
    }
}
