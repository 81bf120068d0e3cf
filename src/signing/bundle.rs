//! The envelope (DSSE v1) and the bundle (sigstore v0.3) around a statement.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::keys::{PrivateKey, PublicKey};
use super::statement::invalid;
use crate::error::{Code, Error, Result};

/// Longest signature file.
pub(super) const MAX_BUNDLE_BYTES: u64 = 64 << 20;
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD: &str = "application/vnd.in-toto+json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(default)]
    public_key: Option<Identifier>,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Identifier {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

/// What is signed: DSSE's pre-authentication encoding.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD} {} ", PAYLOAD.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// A statement, signed.
pub(super) fn seal(payload: &[u8], key: &PrivateKey) -> Result<Vec<u8>> {
    let bundle = Bundle {
        media_type: BUNDLE.to_owned(),
        verification_material: Material {
            public_key: Some(Identifier {
                hint: Some(key.public().hint()?),
            }),
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD.to_owned(),
            signatures: vec![Signature {
                sig: STANDARD.encode(key.sign(&pre_authentication(payload))),
                keyid: String::new(),
            }],
        },
    };
    serde_json::to_vec(&bundle).map_err(|e| invalid(format!("no JSON: {e}")).cause(e))
}

/// The statement of a bundle that one of the keys signed.
///
/// # Errors
/// [`Code::BundleInvalid`]; [`Code::SignatureInvalid`].
pub(super) fn open(bundle: &[u8], keys: &[PublicKey]) -> Result<Vec<u8>> {
    let bundle: Bundle = serde_json::from_slice(bundle)
        .map_err(|e| invalid(format!("not a sigstore bundle: {e}")).cause(e))?;
    let envelope = &bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD {
        return Err(invalid(format!(
            "an envelope of `{}`",
            envelope.payload_type
        )));
    }
    let material = &bundle.verification_material;
    let Some(identifier) = &material.public_key else {
        return Err(invalid("it is signed by a certificate".to_owned())
            .hint("`model_signing verify` and cosign know certificates; keys are known here"));
    };
    let decode = |text: &str| {
        let bytes = STANDARD.decode(text);
        bytes.map_err(|e| invalid(format!("not base64: {e}")))
    };
    let payload = decode(&envelope.payload)?;
    let [signature] = envelope.signatures.as_slice() else {
        let count = envelope.signatures.len();
        return Err(invalid(format!("{count} signatures, one is read")));
    };
    let (signature, signed) = (decode(&signature.sig)?, pre_authentication(&payload));
    if keys.iter().any(|k| k.verifies(&signed, &signature)) {
        return Ok(payload);
    }
    let hints = keys
        .iter()
        .map(PublicKey::hint)
        .collect::<Result<Vec<_>>>()?;
    let known = identifier
        .hint
        .as_ref()
        .is_none_or(|hint| hints.contains(hint));
    Err(Error::new(
        Code::SignatureInvalid,
        match known {
            true => "the signature is not valid",
            false => "another key signed than the ones that are trusted",
        },
    ))
}
