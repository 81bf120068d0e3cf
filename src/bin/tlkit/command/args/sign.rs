//! Options of signatures.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// A signature of OpenSSF Model Signing, which its tool `model_signing` verifies too where the key is one of P-256.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// A file, or a folder: all files in it but what git has there
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) path: PathBuf,
    /// The private key: Ed25519 or P-256, in PEM
    #[arg(long, value_name = "KEY.pem", value_hint = ValueHint::FilePath)]
    pub(crate) key: PathBuf,
    /// The signature to write
    #[arg(short, long, value_name = "OUT.sig", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Bind the adapter to this name of a store too
    #[arg(long, value_name = "USER/TASK[@N]")]
    pub(crate) name: Option<String>,
    /// Replace an existing signature
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifySignature {
    /// The file or folder that was signed
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) path: PathBuf,
    /// The signature: a sigstore bundle
    #[arg(long, value_name = "FILE.sig", value_hint = ValueHint::FilePath)]
    pub(crate) signature: PathBuf,
    /// A public key, Ed25519 or P-256, in PEM; of several one has to have signed
    #[arg(long, required = true, value_name = "PUBLIC.pem", value_hint = ValueHint::FilePath)]
    pub(crate) key: Vec<PathBuf>,
    /// Ask for a signature that binds this name
    #[arg(long, value_name = "USER/TASK[@N]")]
    pub(crate) name: Option<String>,
}
