//! Registries that keep OCI artefacts: addresses, manifests, and blobs by their digest.
//!
//! What is pushed is a CNCF ModelPack artefact (`modelpack/model-spec` v1, over OCI's image-spec 1.1 and
//! distribution-spec 1.1): each file is a layer as it is, named by the annotation `org.cncf.model.filepath`.
//! Nothing here knows what the files are.

mod address;
mod artifact;
mod auth;
mod client;
mod http;

pub use address::{Address, Which};
pub use artifact::{
    Artifact, Layer, LayerKind, MAX_ARTIFACT_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES,
};
pub use client::{Pushed, Registry};
