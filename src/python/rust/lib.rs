//! The native part of the Python package `tlkit`: adapters as objects, and the command as a function.
//!
//! Everything that takes a while releases the interpreter's lock. What a function means is said in Python, where
//! users read it; here is what needs Rust.

mod adapter;
mod array;
mod call;
#[path = "../../bin/tlkit/command/mod.rs"]
mod command;
mod error;

use std::alloc::System;

use command::memory::Coded;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: Coded<System> = Coded(System);

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::adapter::{Adapter, from_parts, seeded};
    #[pymodule_export]
    use crate::array::Array;
    #[pymodule_export]
    use crate::call::{call, commands, main};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
