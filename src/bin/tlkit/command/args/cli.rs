//! The command, and what it can be told to do.

use clap::{Parser, Subcommand};

use super::{
    Audit, Check, Combine, Convert, Demo, Dequantise, Devices, Eval, Extract, Generate, Inspect,
    Merge, Pack, Params, Plan, Sign, Store, Sweep, Train, Unmerge, Verify,
};

const EXIT_CODES: &str = "\
Exit codes: 0 done, or equal; 1 not equal (verify), or does not fit (check); 2 wrong usage;
3 input or output failed; 4 a file is malformed or damaged; 5 not supported;
6 adapter and base do not fit; 70 tlkit itself failed; 130 interrupted

SIGINT, SIGTERM and SIGHUP end every command within a second";

/// Train, store, convert, merge and verify Tied-LoRA adapters
#[derive(Debug, Parser)]
#[command(name = "tlkit", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Number of threads; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", display_order = 901)]
    pub(crate) threads: Option<usize>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert between PEFT directories and .tl files, without loss unless asked
    #[command(subcommand)]
    Convert(Convert),
    /// Combine adapters of one base into one: their weighted sum exactly, cut to a rank, or as PEFT
    Combine(Combine),
    /// Train an adapter on a base model
    Train(Box<Train>),
    /// Train and score a grid of methods, ranks and learning rates
    Sweep(Sweep),
    /// Merge adapters into base weights
    Merge(Merge),
    /// Write the adapter between a base and a model that was made of it
    Extract(Box<Extract>),
    /// Write a quantised base with full-width weights, as its own library dequantises it
    #[command(visible_alias = "dequantize")]
    Dequantise(Dequantise),
    /// Restore the original bytes of a base that was merged in place
    Unmerge(Unmerge),
    /// Prove what a file, two adapters or a merged model are
    #[command(subcommand)]
    Verify(Verify),
    /// Say whether an adapter fits a base, and what programs that serve it would do
    Check(Check),
    /// Show what a .tl file, PEFT directory or base checkpoint holds
    Inspect(Inspect),
    /// Rewrite a .tl fat, thin or compressed; the root stays the same, unless --dtype rounds
    Pack(Pack),
    /// Sign a file or a folder
    Sign(Sign),
    /// Keep adapters of many users and tasks in a folder or an object store
    #[command(subcommand)]
    Store(Store),
    /// Continue prompts with a model, with or without an adapter
    Generate(Generate),
    /// Score a model on a task, with or without an adapter
    Eval(Eval),
    /// Count what each method would train on a model, without its weights
    Params(Params),
    /// Say what a fleet of adapters costs, where its bytes are, and what other forms would take
    Audit(Audit),
    /// Project what a fleet would cost in every form, without any files
    Plan(Plan),
    /// List what this machine can merge on, and measure it
    Devices(Devices),
    /// Train, convert, merge, verify, unmerge, store and audit on a small built-in model
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}
