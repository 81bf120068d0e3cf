//! An adapter as training sees it: laid out on a model, by a spec or from one that exists.

mod existing;
mod group;
mod layout;
mod left;
mod spec;

pub use layout::TrainingAdapter;
pub use spec::AdapterSpec;
