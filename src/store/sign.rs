//! Ed25519 signatures of roots.

use std::path::Path;

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::format::Digest;
use crate::safetensors::read_limited;

const MAX_KEY_BYTES: u64 = 64 << 10;
/// Put before the root, so that the signature of a root is one of nothing else.
const CONTEXT: &str = "tlkit adapter root v1\n";

/// A signature of an adapter's root, and the key that it is by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key: 64 hex digits.
    pub key: String,
    /// The signature: 128 hex digits.
    pub value: String,
}

/// A private key.
#[derive(Clone)]
pub struct Signer(SigningKey);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", hex(self.0.verifying_key().as_bytes()))
    }
}

impl Signer {
    /// Reads a private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`Code::BadKey`]; [`Code::NotFound`], [`Code::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let key = SigningKey::from_pkcs8_pem(&pem(path)?).map_err(|e| bad_key(path, &e))?;
        Ok(Self(key))
    }

    /// Signs a root.
    pub fn sign(&self, root: &Digest) -> Signature {
        Signature {
            key: hex(self.0.verifying_key().as_bytes()),
            value: hex(&self.0.sign(&message(root)).to_bytes()),
        }
    }
}

/// A public key that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey(VerifyingKey);

impl TrustedKey {
    /// Reads a public key in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`Code::BadKey`]; [`Code::NotFound`], [`Code::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let key = VerifyingKey::from_public_key_pem(&pem(path)?).map_err(|e| bad_key(path, &e))?;
        Ok(Self(key))
    }
}

/// Checks that a root was signed by one of the trusted keys.
///
/// # Errors
/// [`Code::SignatureInvalid`].
pub fn check(root: &Digest, signature: Option<&Signature>, trusted: &[TrustedKey]) -> Result<()> {
    let refuse = |message: String| Err(Error::new(Code::SignatureInvalid, message));
    let Some(signature) = signature else {
        return refuse(format!("{root} is not signed"));
    };
    let by = trusted
        .iter()
        .find(|k| hex(k.0.as_bytes()) == signature.key);
    let Some(TrustedKey(key)) = by else {
        return refuse(format!(
            "{root} is signed by {}, which is not trusted",
            signature.key
        ));
    };
    let valid = unhex(&signature.value)
        .and_then(|bytes| ed25519_dalek::Signature::from_slice(&bytes).ok())
        // Strict: no signature that another implementation could judge otherwise.
        .is_some_and(|s| key.verify_strict(&message(root), &s).is_ok());
    match valid {
        true => Ok(()),
        false => refuse(format!("{root} has a signature that is not valid")),
    }
}

fn message(root: &Digest) -> Vec<u8> {
    format!("{CONTEXT}{root}\n").into_bytes()
}

fn pem(path: &Path) -> Result<String> {
    let bytes = read_limited(path, MAX_KEY_BYTES)?;
    String::from_utf8(bytes).map_err(|_| bad_key(path, &"not text"))
}

fn bad_key(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(Code::BadKey, format!("not an Ed25519 key in PEM form: {why}"))
        .file(path)
        .hint("openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> (Signer, TrustedKey) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        (Signer(key.clone()), TrustedKey(key.verifying_key()))
    }

    #[test]
    fn only_a_trusted_keys_signature_of_this_root_passes() {
        let ((signer, own), (_, other)) = (key(1), key(2));
        let root = Digest::of(b"root");
        let good = signer.sign(&root);
        assert!(check(&root, Some(&good), &[other.clone(), own.clone()]).is_ok());
        fn code(root: &Digest, s: Option<&Signature>, keys: &[TrustedKey]) -> Code {
            check(root, s, keys).unwrap_err().code()
        }
        let bad = Code::SignatureInvalid;
        assert_eq!(code(&root, None, std::slice::from_ref(&own)), bad);
        assert_eq!(code(&root, Some(&good), &[other]), bad);
        assert_eq!(code(&root, Some(&good), &[]), bad);
        assert_eq!(
            code(
                &Digest::of(b"another"),
                Some(&good),
                std::slice::from_ref(&own)
            ),
            bad
        );
        for value in [
            String::new(),
            "é".into(),
            good.value.replace(&good.value[..2], "zz"),
            "00".repeat(64),
        ] {
            let forged = Signature {
                value,
                ..good.clone()
            };
            assert_eq!(code(&root, Some(&forged), std::slice::from_ref(&own)), bad);
        }
    }

    #[test]
    fn keys_as_openssl_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        // RFC 8410, section 10.3.
        std::fs::write(
            &path,
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let signer = Signer::open(&path).unwrap();
        let public = dir.path().join("public.pem");
        std::fs::write(
            &public,
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
        )
        .unwrap();
        let trusted = TrustedKey::open(&public).unwrap();
        let root = Digest::of(b"root");
        check(&root, Some(&signer.sign(&root)), &[trusted]).unwrap();
        assert_eq!(Signer::open(&public).unwrap_err().code(), Code::BadKey);
        std::fs::write(&path, "no key").unwrap();
        assert_eq!(TrustedKey::open(&path).unwrap_err().code(), Code::BadKey);
    }
}
