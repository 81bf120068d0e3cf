//! The `tlkit` command. Arguments, progress and tables live in [`command`]; all logic is the library's.

mod command;

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
    ExitCode::from(command::run(&args))
}
