//! `store export --peft`: adapters as servers read them, once or as the store changes.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tlkit::fit::CodeTarget;
use tlkit::fleet::{Pass, ServingOptions, serve_folder};
use tlkit::fs::check_outside;
use tlkit::{Error, ErrorKind, Result};

use super::opened::Opened;
use super::show;
use super::store::{base, trust, user};
use crate::command::args::Export;
use crate::command::output::{Outcome, Output, bytes, fields, plural, table};
use crate::command::progress::{Work, with_progress};
use crate::command::watch::Stop;

/// How long a wait goes on before somebody looks whether it should.
const STEP: Duration = Duration::from_millis(100);

pub(crate) fn export(args: &Export, output: &Output) -> Result<Outcome> {
    let mut options = ServingOptions::default();
    options.user = user(args.user.as_ref())?;
    options.portable = args.serving.portable;
    options.base_name = args.serving.base_name.clone();
    options.base = base(&args.serving)?;
    options.versions = args.versions;
    options.code = args.code.map(CodeTarget::Error);
    options.trust = trust(&args.require_signature)?;
    check_outside(&args.output, Path::new(&args.url), "the store")?;
    let mut store = Opened::open(&args.url, output)?;
    let pass = one(&store, &args.output, &options)?;
    for note in &pass.notes {
        output.note(note);
    }
    if args.watch {
        tell(&pass, output)?;
        return follow(args, &mut store, &options, output);
    }
    store.report(&pass, || text(&pass))?;
    let Some(first) = pass.failed.first() else {
        return Ok(Outcome::Success);
    };
    let message = format!("{} not exported", plural(pass.failed.len(), "adapter"));
    Ok(Outcome::Reported(
        Error::new(first.code, message).file(&args.url),
    ))
}

fn one(store: &Opened<'_>, dir: &Path, options: &ServingOptions) -> Result<Pass> {
    with_progress("exporting users", Work::SomeItems, |progress| {
        serve_folder(store, dir, options, progress)
    })
}

/// Passes until the user has enough. What fails in one may be mended in the next.
fn follow(
    args: &Export,
    store: &mut Opened<'_>,
    options: &ServingOptions,
    output: &Output,
) -> Result<Outcome> {
    let stop = Stop::here();
    let mut failed = Vec::new();
    loop {
        let pause = Duration::from_secs(args.every.max(1));
        let steps = pause.as_millis() / STEP.as_millis();
        for _ in 0..steps {
            stop.progress().advance(0)?;
            thread::sleep(STEP);
        }
        match one(store, &args.output, options) {
            Ok(pass) => {
                let now: Vec<String> = pass.failed.iter().map(|f| f.message.clone()).collect();
                let is_news = !pass.served.is_empty() || !pass.removed.is_empty() || now != failed;
                for note in &pass.notes {
                    output.note(note);
                }
                if is_news {
                    tell(&pass, output)?;
                }
                failed = now;
            }
            Err(e) if e.kind() == ErrorKind::Io => output.warn(&e.to_string()),
            Err(e) => return Err(e),
        }
        store.tell();
    }
}

/// One pass of many: a line of JSON, or one for each adapter.
fn tell(pass: &Pass, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.print_json_line(pass);
    }
    let served = pass.served.iter();
    let served = served.map(|s| format!("serves {}@{} {}", s.adapter, s.version, s.root));
    let removed = pass.removed.iter().map(|r| format!("removed {r}"));
    let failed = pass.failed.iter();
    let failed = failed.map(|f| format!("failed {} {}: {}", f.adapter, f.code.as_str(), f.message));
    let lines: Vec<String> = served.chain(removed).chain(failed).collect();
    match lines.is_empty() {
        true => Ok(()),
        false => output.print(&lines.join("\n")),
    }
}

fn text(pass: &Pass) -> String {
    let written: u64 = pass.served.iter().map(|s| s.bytes).sum();
    let mut text = fields(&[
        ("users", pass.tenants.to_string()),
        ("adapters", pass.adapters.to_string()),
        ("changed", pass.served.len().to_string()),
        ("removed", pass.removed.len().to_string()),
        ("bytes", format!("{} written", bytes(written))),
        ("failed", pass.failed.len().to_string()),
        ("output", show(&pass.output)),
    ]);
    if !pass.failed.is_empty() {
        let failed = pass.failed.iter();
        let failed =
            failed.map(|f| vec![f.adapter.clone(), f.code.as_str().into(), f.message.clone()]);
        let table = table(&["adapter", "code", "why"], &[], failed);
        text.push_str(&format!("\n{table}"));
    }
    text
}
