//! Keys, and what they sign.

use std::path::Path;

use ed25519_dalek::pkcs8::spki::EncodePublicKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use p256::ecdsa;
use p256::pkcs8::LineEnding;

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;

const MAX_KEY_BYTES: u64 = 64 << 10;

/// A private key.
pub enum PrivateKey {
    /// Ed25519.
    Ed25519(Box<SigningKey>),
    /// ECDSA over P-256, with SHA-256.
    P256(Box<ecdsa::SigningKey>),
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// Ed25519.
    Ed25519(Box<VerifyingKey>),
    /// ECDSA over P-256, with SHA-256.
    P256(Box<ecdsa::VerifyingKey>),
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({:?})", self.public())
    }
}

impl PrivateKey {
    /// Reads a private key in PEM: PKCS#8, or of P-256 also SEC1, as `openssl ecparam -genkey` writes it.
    ///
    /// # Errors
    /// [`Code::BadKey`]; [`Code::NotFound`], [`Code::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let pem = pem(path)?;
        if let Ok(key) = SigningKey::from_pkcs8_pem(&pem) {
            return Ok(Self::Ed25519(Box::new(key)));
        }
        let p256 = p256::SecretKey::from_pkcs8_pem(&pem).or_else(|_| {
            // `openssl ecparam` writes the curve before the key.
            let begin = pem.find("-----BEGIN EC PRIVATE KEY").unwrap_or(0);
            p256::SecretKey::from_sec1_pem(pem.get(begin..).unwrap_or_default())
        });
        let key = p256.map_err(|_| bad_key(path))?;
        Ok(Self::P256(Box::new(key.into())))
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Ed25519(key) => PublicKey::Ed25519(Box::new(key.verifying_key())),
            Self::P256(key) => PublicKey::P256(Box::new(*key.verifying_key())),
        }
    }

    /// Signs: 64 bytes of Ed25519, a DER sequence of ECDSA, which is deterministic (RFC 6979).
    pub(super) fn sign(&self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(text).to_bytes().to_vec(),
            Self::P256(key) => {
                let signature: ecdsa::DerSignature = key.sign(text);
                signature.as_bytes().to_vec()
            }
        }
    }
}

impl PublicKey {
    /// Reads a public key in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`Code::BadKey`]; [`Code::NotFound`], [`Code::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let pem = pem(path)?;
        if let Ok(key) = VerifyingKey::from_public_key_pem(&pem) {
            return Ok(Self::Ed25519(Box::new(key)));
        }
        let key = ecdsa::VerifyingKey::from_public_key_pem(&pem).map_err(|_| bad_key(path))?;
        Ok(Self::P256(Box::new(key)))
    }

    pub(super) fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|s| key.verify_strict(text, &s).is_ok()),
            Self::P256(key) => ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|s| ecdsa::signature::Verifier::verify(&**key, text, &s).is_ok()),
        }
    }

    /// What a bundle names the key by: the hex digits of the SHA-256 of its PEM, as `model_signing` has it.
    ///
    /// # Errors
    /// [`Code::BadKey`] where it has no PEM.
    pub fn hint(&self) -> Result<String> {
        let pem = match self {
            Self::Ed25519(key) => key.to_public_key_pem(LineEnding::LF),
            Self::P256(key) => key.to_public_key_pem(LineEnding::LF),
        };
        let pem = pem.map_err(|e| Error::new(Code::BadKey, format!("the key has no PEM: {e}")))?;
        Ok(Digest::of(pem.as_bytes()).hex())
    }
}

fn pem(path: &Path) -> Result<String> {
    String::from_utf8(read_limited(path, MAX_KEY_BYTES)?).map_err(|_| bad_key(path))
}

fn bad_key(path: &Path) -> Error {
    Error::new(Code::BadKey, "not an Ed25519 or P-256 key in PEM form")
        .file(path)
        .hint("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem")
}
