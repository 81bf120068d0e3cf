//! The manifest of an artefact out of a registry, or after `oci://` its address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tlkit::registry::{Address, Artifact, MAX_ARTIFACT_BYTES, MAX_LAYERS};

fuzz_target!(|input: &[u8]| {
    if let Some(address) = std::str::from_utf8(input).ok().and_then(|t| t.parse::<Address>().ok()) {
        assert_eq!(address.to_string().parse::<Address>().expect("what is shown is one"), address);
    }
    match Artifact::parse(input) {
        Ok(artifact) => {
            assert!(artifact.layers.len() <= MAX_LAYERS);
            assert!(artifact.layers.iter().map(|l| l.bytes).sum::<u64>() <= MAX_ARTIFACT_BYTES);
            for layer in &artifact.layers {
                assert!(!layer.path.starts_with('/') && !layer.path.split('/').any(|p| p == ".."));
            }
            let (_, manifest) = artifact.encode().expect("what is read can be written");
            assert_eq!(Artifact::parse(&manifest).expect("and read").layers, artifact.layers);
        }
        Err(e) => assert!(!e.to_string().chars().any(char::is_control)),
    }
});
