//! The `tlkit` command. Arguments, progress and tables live here; all logic is the library's.

mod args;
mod cmd;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Convert, Verify};
use output::{Outcome, Output};

/// Training allocates and frees the same large blocks at every step, which the system's allocator
/// gives back and faults in again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let output = Output::new(cli.json);
    progress::watch_interrupts();
    let outcome = set_threads(cli.threads).and_then(|()| run(cli.command, &output));
    output.finish(outcome)
}

fn set_threads(threads: Option<usize>) -> tlkit::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
    pool.map_err(|e| tlkit::Error::new(tlkit::Code::Usage, format!("--threads {threads}: {e}")))
}

fn run(command: Command, output: &Output) -> tlkit::Result<Outcome> {
    match command {
        Command::Convert(Convert::PeftToTied(args)) => cmd::convert::peft_to_tied(&args, output),
        Command::Convert(Convert::TiedToPeft(args)) => cmd::convert::tied_to_peft(&args, output),
        Command::Train(args) => cmd::train::train(&args, output),
        Command::Sweep(args) => cmd::sweep::sweep(&args, output),
        Command::Merge(args) => cmd::merge::merge(&args, output),
        Command::Unmerge(args) => cmd::merge::unmerge(&args, output),
        Command::Verify(Verify::File(args)) => cmd::verify::file(&args, output),
        Command::Verify(Verify::Adapters(args)) => cmd::verify::adapters(&args, output),
        Command::Verify(Verify::Merged(args)) => cmd::verify::merged(&args, output),
        Command::Verify(Verify::Logits(args)) => cmd::verify::logits(&args, output),
        Command::Inspect(args) => cmd::inspect::inspect(&args, output),
        Command::Pack(args) => cmd::pack::pack(&args, output),
        Command::Generate(args) => cmd::generate::generate(&args, output),
        Command::Eval(args) => cmd::eval::eval(&args, output),
        Command::Params(args) => cmd::params::params(&args, output),
        Command::Audit(args) => cmd::audit::audit(&args, output),
        Command::Plan(args) => cmd::plan::plan(&args, output),
        Command::Demo(args) => cmd::demo::demo(&args, output),
        Command::Completions { shell } => cmd::completions(shell, output),
    }
}
