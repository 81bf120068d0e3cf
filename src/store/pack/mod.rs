//! Packs: many records of a tenant in one object (`spec/tl-store-v1.md` §5 and §7). Where each lies, the tenant's state
//! of collection says; so adding records to a pack, and taking them out, is making the next state.

pub(super) mod index;
mod keep;
pub(super) mod name;
pub(super) mod read;
#[cfg(test)]
mod tests;
mod write;
