//! A base checkpoint as an adapter means it: which tensor a name leads to, which are one in the
//! model, and what names say of modules. It knows no adapter.

mod config;
pub(crate) mod edits;
mod hub;
pub(crate) mod modules;
pub(crate) mod names;
mod python_json;
pub(crate) mod shapes;
pub(crate) mod ties;

pub(crate) use config::{CONFIG_FILE, MAX_CONFIG_BYTES, read_config};
pub(crate) use hub::hub_name;
pub(crate) use python_json::strict_json;
