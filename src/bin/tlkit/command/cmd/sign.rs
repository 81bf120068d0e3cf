//! Signatures of files and folders.

use tlkit::Result;
use tlkit::signing::{self, PrivateKey, PublicKey};
use tlkit::store::AdapterName;

use super::{existing, show};
use crate::command::args;
use crate::command::output::{Outcome, Output, fields};

pub(crate) fn sign(args: &args::Sign, output: &Output) -> Result<Outcome> {
    let name = name(args.name.as_ref())?;
    let key = PrivateKey::open(&args.key)?;
    let existing = existing(args.force);
    let signed = signing::sign(&args.path, &key, name.as_deref(), &args.output, existing)?;
    output.report(&signed, || {
        fields(&[
            ("files", signed.files.to_string()),
            ("key", signed.key.clone()),
            ("name", signed.name.clone().unwrap_or_else(|| "-".into())),
            ("output", show(&signed.signature)),
        ])
    })?;
    Ok(Outcome::Success)
}

pub(crate) fn verify(args: &args::VerifySignature, output: &Output) -> Result<Outcome> {
    let name = name(args.name.as_ref())?;
    let keys = args.key.iter().map(|path| PublicKey::open(path));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let verified = signing::verify(&args.path, &args.signature, &keys, name.as_deref())?;
    output.report(&verified, || {
        fields(&[
            ("valid", "every file is as it was signed".into()),
            ("files", verified.files.to_string()),
            ("name", verified.name.clone().unwrap_or_else(|| "-".into())),
        ])
    })?;
    Ok(Outcome::Success)
}

/// A name of a store, as it is signed.
fn name(text: Option<&String>) -> Result<Option<String>> {
    let parsed = text.map(|t| t.parse::<AdapterName>()).transpose()?;
    Ok(parsed.map(|name| name.to_string()))
}
