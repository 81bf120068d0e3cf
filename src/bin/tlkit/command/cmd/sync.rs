//! `store sync`.

use std::fs;

use tlkit::store::{NotSynced, Store, SyncOptions, Synced, sync as bring};
use tlkit::{Code, Error, Result};

use super::opened::Opened;
use super::store::user;
use crate::command::args;
use crate::command::output::{Outcome, Output, bytes, count, fields, plural, table};
use crate::command::progress::{Work, with_progress};

/// Lines of the text's table of what failed; `--json` has all.
const TOP: usize = 20;

pub(crate) fn sync(args: &args::SyncStore, output: &Output) -> Result<Outcome> {
    let mut options = SyncOptions::default();
    options.user = user(args.user.as_ref())?;
    options.dry_run = args.dry_run;
    let same = |url: &str| fs::canonicalize(url).ok();
    if same(&args.url).is_some_and(|path| same(&args.target) == Some(path)) {
        return Err(Error::new(Code::Usage, "both stores are the same one"));
    }
    let mut store = Opened::open(&args.url, output)?;
    let target = Store::open(&args.target)?;
    let done = with_progress("copying versions", Work::SomeItems, |progress| {
        bring(&store, &target, &options, progress)
    });
    for warning in target.take_warnings() {
        output.warn(&warning);
    }
    let done = done?;
    for note in &done.notes {
        output.note(note);
    }
    store.report(&done, || text(&done))?;
    let Some(first) = done.failed.iter().map(|f| f.code).min() else {
        return Ok(Outcome::Success);
    };
    let message = format!("{} not copied", plural(done.failed.len(), "item"));
    let code = Code::ALL.iter().find(|c| c.as_str() == first);
    let code = code.copied().unwrap_or(Code::StoreDamaged);
    Ok(Outcome::Reported(Error::new(code, message).file(&args.url)))
}

fn text(done: &Synced) -> String {
    let copied = if done.dry_run { "to copy" } else { "copied" };
    let what = [
        plural(done.versions as usize, "version"),
        plural(done.removals as usize, "removal"),
        plural(done.tags as usize, "tag"),
        plural(done.published as usize, "published blob"),
    ];
    let mut text = fields(&[
        ("users", count(done.tenants)),
        ("adapters", count(done.adapters)),
        ("unchanged", count(done.unchanged)),
        (copied, what.join(", ")),
        (
            "bytes",
            format!("{}, {} written", bytes(done.bytes), bytes(done.sent)),
        ),
        ("failed", count(done.failed.len() as u64)),
    ]);
    if !done.failed.is_empty() {
        let line = |f: &NotSynced| vec![f.adapter.clone(), f.code.to_owned(), f.message.clone()];
        let failed = done.failed.iter().take(TOP).map(line);
        text.push_str(&format!(
            "\n{}",
            table(&["adapter", "code", "why"], &[], failed)
        ));
    }
    if done.failed.len() > TOP {
        text.push_str(&format!("\n… and {} more", done.failed.len() - TOP));
    }
    text
}
