use super::{Shell, assert_transcript};

/// Breaks where a budget, what is left out or what is refused reaches the command otherwise, or its report changes.
#[test]
fn the_adapter_between_two_models() {
    let mut shell = Shell::new();
    shell.ok("merge base lora -o tuned");
    shell.run("extract base tuned -o rank.tl --rank 8");
    shell.run(
        "extract base tuned -o error.tl --error 0.5 --dtype bf16 --exclude v_proj --allow-left-out",
    );
    shell.run("extract base tuned -o tied.tl --rank 4 --tied quick");
    shell.run("extract base tuned -o no.tl --max-bytes 40kB --targets v_proj");
    shell.run("extract base base -o no.tl --rank 4");
    shell.run("extract base tuned -o rank.tl --rank 4");
    shell.run("extract base tuned -o no.tl");
    assert!(!shell.path("no.tl").exists());
    // The same bytes for any number of threads.
    shell.ok("extract base tuned -o one.tl --rank 8 --threads 1");
    shell.ok("verify file one.tl");
    let bytes = |name| std::fs::read(shell.path(name)).unwrap();
    assert_eq!(bytes("rank.tl"), bytes("one.tl"));
    assert_transcript!(shell);
}
