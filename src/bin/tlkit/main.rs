//! The `tlkit` command. Arguments, progress and tables live in [`command`]; all logic is the library's.

mod command;
mod pages;

use std::ffi::OsString;
use std::process::ExitCode;

use command::memory::Coded;
use mimalloc::MiMalloc;

// Training allocates and frees the same large blocks at every step, which the system's allocator
// gives back and faults in again each time.
#[global_allocator]
static ALLOCATOR: Coded<MiMalloc> = Coded(MiMalloc);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Here and not with the command, which the Python package has too, without this allocator.
    if args.iter().any(|arg| arg == "train" || arg == "sweep") {
        pages::keep();
    }
    ExitCode::from(command::run(&args))
}
