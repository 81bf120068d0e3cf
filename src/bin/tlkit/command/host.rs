//! A command inside another program: what it reports is given back, and what is the process's own stays as it is.

use std::ffi::OsString;
use std::sync::Arc;

use clap::Parser;
use tlkit::{Code, Error, Result};

use super::args::Cli;
use super::output::{Outcome, Output, Told, usage_error};
use super::run::dispatch;
use super::watch::Watch;

/// Does what the arguments say, on this thread and under `watch`.
pub(crate) fn call(args: &[OsString], watch: &Arc<Watch>) -> (Result<Outcome>, Told) {
    let output = Output::kept();
    let outcome = watch.over(|| work(args, watch, &output));
    (outcome, output.into_told())
}

fn work(args: &[OsString], watch: &Arc<Watch>, output: &Output) -> Result<Outcome> {
    let cli = Cli::try_parse_from(args).map_err(|e| usage_error(&e.to_string()))?;
    let Some(threads) = cli.threads else {
        return dispatch(cli.command, output);
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| {
        let message = format!("cannot start {threads} threads: {e}");
        Error::new(Code::OutOfMemory, message)
    })?;
    pool.install(|| watch.over(|| dispatch(cli.command, output)))
}
