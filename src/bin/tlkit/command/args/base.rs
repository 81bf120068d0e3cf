//! How an adapter's names are those of a base.

use clap::Args;

use super::values::rename;

/// What stands beside every argument that names a base.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct BaseNames {
    /// Replace a leading part of adapter module names: --rename backbone=model
    #[arg(long, value_name = "FROM=TO", value_parser = rename)]
    pub(crate) rename: Vec<(String, String)>,
}

/// What stands beside every argument that names a base which adapters go onto.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct Whole {
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long)]
    pub(crate) strict: bool,
}
