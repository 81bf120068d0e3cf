//! An adapter as training sees it: laid out on a model, by a spec or from one that exists.

mod existing;
mod group;
mod init;
mod layout;
mod left;
mod spec;

pub use init::Init;
pub use layout::TrainingAdapter;
pub use spec::AdapterSpec;
