//! A base checkpoint as an adapter means it: which tensor a name leads to, which are one in the
//! model, and what names say of modules. It knows no adapter.

pub(crate) mod architecture;
mod called;
mod class_names;
mod config;
pub(crate) mod cut;
pub(crate) mod edits;
pub(crate) mod heads;
mod hub;
pub(crate) mod known;
pub(crate) mod llama_cpp;
mod load_rules;
pub(crate) mod modules;
pub(crate) mod names;
mod python_json;
mod rewrite;
pub(crate) mod shapes;
mod table;
pub(crate) mod ties;

pub(crate) use called::Called;
pub(crate) use config::{CONFIG_FILE, MAX_CONFIG_BYTES, layers_of, read_config, read_config_of};
pub(crate) use hub::hub_name;
pub(crate) use python_json::strict_json;
