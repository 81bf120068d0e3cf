//! Ed25519 signatures of versions: which adapter, and where it belongs.

use std::path::Path;

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;

const MAX_KEY_BYTES: u64 = 64 << 10;
/// Put before what is signed, so that the signature of a version is one of nothing else.
const CONTEXT: &str = "tlkit adapter v2\n";
/// Of older signatures, which bind the root alone.
const ROOT_CONTEXT: &str = "tlkit adapter root v1\n";

/// What a signature binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The root alone, as older builds signed: the adapter may lie under any name and number.
    #[default]
    Root,
    /// Tenant, task, number of the version, and root.
    Version,
}

impl Scope {
    fn is_root(&self) -> bool {
        *self == Self::Root
    }
}

/// A signature of a version, and the key that it is by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key: 64 hex digits.
    pub key: String,
    /// The signature: 128 hex digits.
    pub value: String,
    /// What it binds.
    #[serde(default, skip_serializing_if = "Scope::is_root")]
    pub scope: Scope,
}

/// Where a version belongs: tenant, task, number.
pub(super) type Place<'a> = (&'a Name, &'a Name, u64);

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

    /// A key that is always the same.
    #[cfg(test)]
    pub(super) fn from_seed(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    /// Its public key.
    #[cfg(test)]
    pub(super) fn trusted(&self) -> TrustedKey {
        TrustedKey(self.0.verifying_key())
    }

    /// Signs an adapter as a version of a task.
    pub fn sign(&self, user: &Name, task: &Name, version: u64, root: &Digest) -> Signature {
        let text = version_text((user, task, version), root);
        Signature {
            key: hex(self.0.verifying_key().as_bytes()),
            value: hex(&self.0.sign(&text).to_bytes()),
            scope: Scope::Version,
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

/// Which signatures count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trust {
    /// Keys one of which must have signed; where there are none, no signature is asked for.
    pub keys: Vec<TrustedKey>,
    /// Whether a signature that binds the root alone is enough.
    pub root_only: bool,
}

/// Checks that a version was signed by one of the trusted keys, for the place where it lies.
///
/// # Errors
/// [`Code::SignatureInvalid`].
pub(super) fn check(
    root: &Digest,
    place: Place<'_>,
    signature: Option<&Signature>,
    trust: &Trust,
) -> Result<()> {
    let refuse = |message: String| Error::new(Code::SignatureInvalid, message);
    let (user, task, number) = place;
    let what = format!("{user}/{task}@{number}, {root},");
    let signature = signature.ok_or_else(|| refuse(format!("{what} is not signed")))?;
    let by = |k: &TrustedKey| hex(k.0.as_bytes()) == signature.key;
    if !trust.keys.iter().any(by) {
        let message = format!(
            "{what} is signed by {}, which is not trusted",
            signature.key
        );
        return Err(refuse(message));
    }
    if !is_valid(root, Some(place), signature) {
        return Err(refuse(format!(
            "{what} has a signature that is not valid here"
        )));
    }
    if signature.scope == Scope::Root && !trust.root_only {
        let message = format!("{what} has a signature of the root only");
        return Err(refuse(message).hint(
            "it does not say for which name and version; sign it anew, or let root signatures count",
        ));
    }
    Ok(())
}

/// Whether a signature is one by the key that it names, for a root in its place.
pub(super) fn is_valid(root: &Digest, place: Option<Place<'_>>, signature: &Signature) -> bool {
    let text = match (signature.scope, place) {
        (Scope::Root, _) => format!("{ROOT_CONTEXT}{root}\n").into_bytes(),
        (Scope::Version, Some(place)) => version_text(place, root),
        (Scope::Version, None) => return false,
    };
    let key = unhex(&signature.key).and_then(|bytes| {
        let bytes: [u8; 32] = bytes.try_into().ok()?;
        VerifyingKey::from_bytes(&bytes).ok()
    });
    let value = unhex(&signature.value);
    let value = value.and_then(|bytes| ed25519_dalek::Signature::from_slice(&bytes).ok());
    // Strict: no signature that another implementation could judge otherwise.
    key.zip(value)
        .is_some_and(|(key, s)| key.verify_strict(&text, &s).is_ok())
}

fn version_text((user, task, number): Place<'_>, root: &Digest) -> Vec<u8> {
    format!("{CONTEXT}{user}/{task}@{number}\n{root}\n").into_bytes()
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

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn trust(keys: &[&TrustedKey]) -> Trust {
        Trust {
            keys: keys.iter().map(|k| (*k).clone()).collect(),
            root_only: false,
        }
    }

    /// Breaks where a signature counts for another adapter, name, version or key.
    #[test]
    fn a_signature_counts_for_one_version_of_one_name() {
        let ((signer, own), (_, other)) = (key(1), key(2));
        let root = Digest::of(b"root");
        let (user, task, elsewhere) = (name("alice"), name("chat"), name("bob"));
        let good = signer.sign(&user, &task, 3, &root);
        let place = (&user, &task, 3);
        let trusted = trust(&[&other, &own]);
        check(&root, place, Some(&good), &trusted).unwrap();
        let refused = |root: &Digest, place: Place<'_>, s: Option<&Signature>, trust: &Trust| {
            let e = check(root, place, s, trust).unwrap_err();
            assert_eq!(e.code(), Code::SignatureInvalid);
        };
        refused(&root, place, None, &trusted);
        refused(&root, place, Some(&good), &trust(&[&other]));
        refused(&root, place, Some(&good), &trust(&[]));
        refused(&Digest::of(b"another"), place, Some(&good), &trusted);
        refused(&root, (&elsewhere, &task, 3), Some(&good), &trusted);
        refused(&root, (&user, &elsewhere, 3), Some(&good), &trusted);
        refused(&root, (&user, &task, 4), Some(&good), &trusted);
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
            refused(&root, place, Some(&forged), &trusted);
        }
        let claimed = Signature {
            scope: Scope::Root,
            ..good
        };
        let accepting = Trust {
            root_only: true,
            ..trusted
        };
        refused(&root, place, Some(&claimed), &accepting);
    }

    /// Breaks where what older builds signed is no longer read, or counts for a name.
    #[test]
    fn a_signature_of_the_root_alone_counts_where_asked() {
        let (signer, own) = key(1);
        let root = Digest::of(b"root");
        let text = format!("tlkit adapter root v1\n{root}\n");
        let old = Signature {
            key: hex(signer.0.verifying_key().as_bytes()),
            value: hex(&signer.0.sign(text.as_bytes()).to_bytes()),
            scope: Scope::Root,
        };
        let json = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", old.key, old.value);
        assert_eq!(serde_json::to_string(&old).unwrap(), json);
        assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), old);
        let (user, task) = (name("alice"), name("chat"));
        let mut trusted = trust(&[&own]);
        let refused = check(&root, (&user, &task, 1), Some(&old), &trusted);
        assert!(refused.unwrap_err().message().contains("root only"));
        trusted.root_only = true;
        check(&root, (&user, &task, 1), Some(&old), &trusted).unwrap();
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
        let (user, task) = (name("alice"), name("chat"));
        let signature = signer.sign(&user, &task, 1, &root);
        check(
            &root,
            (&user, &task, 1),
            Some(&signature),
            &trust(&[&trusted]),
        )
        .unwrap();
        assert_eq!(Signer::open(&public).unwrap_err().code(), Code::BadKey);
        std::fs::write(&path, "no key").unwrap();
        assert_eq!(TrustedKey::open(&path).unwrap_err().code(), Code::BadKey);
    }
}
