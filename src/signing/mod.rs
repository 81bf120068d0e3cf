//! Signatures of files and folders as OpenSSF Model Signing v1.0 makes them: an in-toto statement of every file's
//! SHA-256, in a DSSE envelope, in a sigstore bundle v0.3, by a key. Its own tool, `model_signing`, verifies them and is
//! verified, with ECDSA over P-256; Ed25519 is ours, which it does not know.
//!
//! A signature may also say under which name of a store an adapter goes, in the predicate's `tlkit`: what other verifiers
//! do not know there they pass over.

mod bundle;
mod files;
mod keys;
mod sign;
mod statement;

pub use keys::{PrivateKey, PublicKey};
pub use sign::{Signed, Verified, sign, verify};
