//! How large an adapter may be; the format repeats these limits (spec §10).

/// Most tie groups in one adapter: one for each module, as an import makes them.
pub const MAX_GROUPS: usize = MAX_MODULES;
/// Most adapted weights, (layer, expert, target) of all tie groups: layers times targets can be
/// billions in a manifest of a few megabytes.
pub const MAX_MODULES: usize = 262_144;
/// Most experts of one parameter.
pub const MAX_EXPERTS: usize = 4_096;
/// Most layers in one tie group, and one more than the highest layer number.
pub const MAX_LAYERS: usize = 4_096;
/// Highest rank.
pub const MAX_RANK: usize = 65_536;
