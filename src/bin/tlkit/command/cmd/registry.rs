//! Adapters of a store in registries.

use serde::Serialize;
use tlkit::Result;
use tlkit::convert::ToTiedOptions;
use tlkit::fleet::{self, PushReport};
use tlkit::registry::{Address, Registry};
use tlkit::store::{AdapterName, PutReport, Signer};

use super::open_base;
use super::opened::Opened;
use super::store::{put_rows, trust};
use crate::command::args;
use crate::command::output::{Outcome, Output, bytes, fields};

pub(crate) fn push(args: &args::Push, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let address: Address = args.artifact.parse()?;
    let mut trust = trust(&args.require_signature)?;
    trust.root_only = args.allow_root_signature;
    let mut store = Opened::open(&args.url, output)?;
    let registry = Registry::open(&address)?;
    let report = fleet::push(&store, &name, &registry, &trust)?;
    store.report(&report, || push_text(&report))?;
    Ok(Outcome::Success)
}

fn push_text(r: &PushReport) -> String {
    let sent = format!("{} sent, {} known", r.sent, r.known);
    fields(&[
        ("version", format!("{}@{}", r.adapter, r.version)),
        ("root", r.root.clone()),
        ("artifact", r.artifact.clone()),
        ("digest", r.digest.clone()),
        ("layers", r.layers.to_string()),
        ("blobs", format!("{sent}, {}", bytes(r.bytes_sent))),
    ])
}

pub(crate) fn pull(args: &args::Pull, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    name.latest_only()?;
    let address: Address = args.artifact.parse()?;
    let signer = args.sign.as_deref().map(Signer::open).transpose()?;
    let mut store = Opened::open(&args.url, output)?;
    let base = open_base(args.base.as_ref(), &args.names)?;
    let mut options = ToTiedOptions::default();
    options.base = base.as_ref();
    options.strict = args.strict;
    let pulled = fleet::pull(&Registry::open(&address)?, &options)?;
    for note in &pulled.notes {
        output.note(note);
    }
    #[derive(Serialize)]
    struct Report {
        #[serde(flatten)]
        put: PutReport,
        /// The artefact's address, by the digest of its manifest.
        artifact: String,
    }
    let report = Report {
        put: store.put(&name, &pulled.package, signer.as_ref())?,
        artifact: address.at(pulled.digest).to_string(),
    };
    store.report(&report, || {
        let mut rows = put_rows(&report.put);
        rows.push(("artifact", report.artifact.clone()));
        fields(&rows)
    })?;
    Ok(Outcome::Success)
}
