//! What the kernels of every kind take: sizes, and a place in a product.

/// Rows and columns of an accumulating tile.
pub(super) const TILE: usize = 16;
/// How many numbers of K a step takes: 16 pairs.
pub(super) const PAIRED: usize = 2 * TILE;
/// Columns of a panel: two tiles.
pub(super) const WIDE: usize = 2 * TILE;
/// Rows of the left side that are multiplied at a time: two tiles.
pub(super) const TALL: usize = 2 * TILE;
/// Numbers that [`TALL`] rows have for a step of K: two tiles.
pub(super) const STRIDE: usize = TALL * PAIRED;
/// 32-bit pairs of a panel for one step: two tiles, each 16 pairs × 16 columns.
pub(super) const STEP: usize = 2 * TILE * TILE;

/// 32 rows × 32 columns of a product, where they go, and what is in it already.
pub(super) struct Target {
    /// The first number. 32 rows of 32 numbers from here on may be read and written.
    pub(super) start: *mut f32,
    /// Numbers from one row to the next.
    pub(super) stride: usize,
    /// Whether what is there is added to.
    pub(super) add: bool,
}
