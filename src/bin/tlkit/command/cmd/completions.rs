//! `completions`: what a shell completes.

use clap::CommandFactory;
use tlkit::Result;

use crate::command::args::Cli;
use crate::command::output::{Outcome, Output};

pub(crate) fn completions(shell: clap_complete::Shell, output: &Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tlkit", &mut script);
    output.print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Outcome::Success)
}
