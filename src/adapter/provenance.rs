//! The keys of an adapter's provenance that tlkit writes.

/// The settings of the training run.
pub(crate) const TRAIN: &str = "train";
/// The adapters that a combination is made of, as JSON: `[{"adapter": "sha256:…", "weight": 0.7}, …]`; of a list that is
/// longer than a text may be, its digest.
pub(crate) const INPUTS: &str = "combine.inputs";
/// Bytes of the longest such list.
pub(crate) const LONGEST_LIST: usize = 1 << 16;
/// VeRA's `projection_prng_key`.
pub(crate) const VERA_KEY: &str = "vera.projection_prng_key";
/// How VeRA's projections were made from their key.
pub(crate) const VERA_REGENERATED: &str = "vera.projection_regenerated";
