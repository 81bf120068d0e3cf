//! How large an adapter may be; the format repeats these limits (spec §10).

/// Most tie groups in one adapter.
pub const MAX_GROUPS: usize = 65_536;
/// Most adapted modules, (layer, target) pairs of all tie groups: layers times targets can be
/// billions in a manifest of a few megabytes.
pub const MAX_MODULES: usize = 262_144;
/// Most layers in one tie group, and one more than the highest layer number.
pub const MAX_LAYERS: usize = 4_096;
/// Highest rank.
pub const MAX_RANK: usize = 65_536;
