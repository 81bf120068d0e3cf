//! tlkit.
fn main() {}
