//! The keys of an adapter's provenance that tlkit writes.

/// The settings of the training run.
pub(crate) const TRAIN: &str = "train";
/// VeRA's `projection_prng_key`.
pub(crate) const VERA_KEY: &str = "vera.projection_prng_key";
/// How VeRA's projections were made from their key.
pub(crate) const VERA_REGENERATED: &str = "vera.projection_regenerated";
