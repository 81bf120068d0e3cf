//! One run of the command: arguments in, exit code out.

use std::ffi::OsString;

use clap::Parser;

use super::args::{Cli, Command, Convert, Store, Verify};
use super::output::{Outcome, Output};
use super::{cmd, ending, output};

/// Does what the arguments say, the first of which is the command's own name, and gives the exit code. It takes over
/// signals and panics of the process.
pub(crate) fn run(args: &[OsString]) -> u8 {
    let json = output::wants_json(args);
    ending::watch_panics(json);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, json),
    };
    let output = Output::new(cli.json);
    ending::watch_interrupts();
    let outcome = set_threads(cli.threads).and_then(|()| dispatch(cli.command, &output));
    output.finish(outcome)
}

fn set_threads(threads: Option<usize>) -> tlkit::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
    // The number itself is checked with the arguments: what is refused here, the system refuses.
    pool.map_err(|e| {
        let message = format!("cannot start {threads} threads: {e}");
        tlkit::Error::new(tlkit::Code::OutOfMemory, message)
    })
}

/// Does what a command says.
pub(super) fn dispatch(command: Command, output: &Output) -> tlkit::Result<Outcome> {
    match command {
        Command::Convert(Convert::PeftToTied(args)) => cmd::convert::peft_to_tied(&args, output),
        Command::Convert(Convert::TiedToPeft(args)) => cmd::convert::tied_to_peft(&args, output),
        Command::Convert(Convert::TiedToGguf(args)) => cmd::gguf::run(&args, output),
        Command::Combine(args) => cmd::combine::combine(&args, output),
        Command::Convert(Convert::MlxToTied(args)) => cmd::foreign::from_mlx(&args, output),
        Command::Convert(Convert::NemoToTied(args)) => cmd::foreign::from_nemo(&args, output),
        Command::Convert(Convert::TiedToMlx(args)) => cmd::foreign::to_mlx(&args, output),
        Command::Train(args) => cmd::train::train(&args, output),
        Command::Sweep(args) => cmd::sweep::sweep(&args, output),
        Command::Merge(args) => cmd::merge::merge(&args, output),
        Command::Extract(args) => cmd::extract::extract(&args, output),
        Command::Dequantise(args) => cmd::dequantise::dequantise(&args, output),
        Command::Unmerge(args) => cmd::merge::unmerge(&args, output),
        Command::Verify(Verify::File(args)) => cmd::verify::file(&args, output),
        Command::Verify(Verify::Adapters(args)) => cmd::verify::adapters(&args, output),
        Command::Verify(Verify::Merged(args)) => cmd::verify::merged(&args, output),
        Command::Verify(Verify::Logits(args)) => cmd::verify::logits(&args, output),
        Command::Verify(Verify::Signature(args)) => cmd::sign::verify(&args, output),
        Command::Sign(args) => cmd::sign::sign(&args, output),
        Command::Check(args) => cmd::check::check(&args, output),
        Command::Inspect(args) => cmd::inspect::inspect(&args, output),
        Command::Pack(args) => cmd::pack::pack(&args, output),
        Command::Store(command) => store(&command, output),
        Command::Generate(args) => cmd::generate::generate(&args, output),
        Command::Eval(args) => cmd::eval::eval(&args, output),
        Command::Params(args) => cmd::params::params(&args, output),
        Command::Audit(args) => cmd::audit::audit(&args, output),
        Command::Plan(args) => cmd::plan::plan(&args, output),
        Command::Devices(args) => cmd::devices::devices(&args, output),
        Command::Demo(args) => cmd::demo::demo(&args, output),
        Command::Completions { shell } => cmd::completions::completions(shell, output),
    }
}

fn store(command: &Store, output: &Output) -> tlkit::Result<Outcome> {
    match command {
        Store::Init(args) => cmd::store::init(args, output),
        Store::Put(args) => cmd::store::put(args, output),
        Store::Get(args) => cmd::store::get(args, output),
        Store::List(args) => cmd::store::list(args, output),
        Store::History(args) => cmd::store::history(args, output),
        Store::Tag(args) => cmd::store::tag(args, output),
        Store::Rm(args) => cmd::store::rm(args, output),
        Store::Stat(args) => cmd::fleet::stat(args, output),
        Store::Fsck(args) => cmd::fleet::fsck(args, output),
        Store::Gc(args) => cmd::fleet::gc(args, output),
        Store::Publish(args) => cmd::fleet::publish(args, output),
        Store::Quota(args) => cmd::fleet::quota(args, output),
        Store::Export(args) => cmd::fleet::export(args, output),
        Store::Import(args) => cmd::import::import(args, output),
        Store::Sync(args) => cmd::sync::sync(args, output),
        Store::Watch(args) => cmd::changes::watch(args, output),
        Store::Push(args) => cmd::registry::push(args, output),
        Store::Pull(args) => cmd::registry::pull(args, output),
    }
}
