//! The store as its operator sees it.

use std::path::Path;

use serde::Serialize;
use tlkit::convert::ToTiedOptions;
use tlkit::fit::CodeTarget;
use tlkit::fleet::{self, ExportOptions, Exported};
use tlkit::fs::check_outside;
use tlkit::store::{
    Checked, CollectOptions, Collected, Name, Published, Repair, Repaired, Settings, Stat,
    TenantStat,
};
use tlkit::{Code, Error, Result};

use super::opened::Opened;
use super::store::{gguf, tenant, user};
use super::{blob_source, existing, show};
use crate::command::args;
use crate::command::output::{Outcome, Output, bytes, count, fields, plural, table};
use crate::command::progress::{Work, with_progress};

pub(crate) fn stat(args: &args::Stat, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let mut store = Opened::open(&args.url, output)?;
    match tenant(&store, only)? {
        Some(user) => {
            let stat = store.tenant_stat(&user)?;
            store.report(&stat, || tenants_text([&stat]))?;
            Ok(Outcome::Success)
        }
        None => {
            let stat = store.stat()?;
            store.report(&stat, || stat_text(&stat))?;
            Ok(store.skipped(&args.url, &stat.skipped))
        }
    }
}

fn stat_text(s: &Stat) -> String {
    let published = format!(
        "{} in {}",
        bytes(s.public_bytes),
        plural(s.public_blobs as usize, "blob")
    );
    let head = fields(&[
        ("users", count(s.tenants)),
        ("adapters", count(s.adapters)),
        ("versions", count(s.versions)),
        ("bytes of last versions", bytes(s.logical_bytes)),
        ("bytes of all versions", bytes(s.kept_bytes)),
        ("bytes stored", bytes(s.stored_bytes)),
        ("of them published", published),
        ("damaged records", count(s.damaged)),
    ]);
    format!("{head}\n{}", tenants_text(&s.by_tenant))
}

fn tenants_text<'a>(tenants: impl IntoIterator<Item = &'a TenantStat>) -> String {
    let rows = tenants.into_iter().map(|t| {
        vec![
            t.user.to_string(),
            count(t.adapters),
            count(t.versions),
            bytes(t.logical_bytes),
            bytes(t.kept_bytes),
            t.quota.map_or_else(|| "-".into(), bytes),
            bytes(t.stored_bytes),
            count(t.damaged),
        ]
    });
    let header = [
        "user", "adapters", "versions", "bytes", "kept", "quota", "stored", "damaged",
    ];
    table(&header, &[1, 2, 3, 4, 5, 6, 7], rows)
}

pub(crate) fn fsck(args: &args::Fsck, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let mut store = Opened::open(&args.url, output)?;
    let only = tenant(&store, only)?;
    let repaired = match args.repair {
        true => Some(store.repair(only.as_ref(), args.dry_run)?),
        false => None,
    };
    let checked = with_progress("checking", Work::SomeBytes, |progress| {
        store.fsck(only.as_ref(), progress)
    })?;
    #[derive(Serialize)]
    struct Report<'a> {
        #[serde(flatten)]
        checked: &'a Checked,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        repaired: Option<&'a Repaired>,
    }
    let report = Report {
        checked: &checked,
        repaired: repaired.as_ref(),
    };
    store.report(&report, || {
        let repairs = repaired.as_ref().map(|r| repairs_text(r, args.dry_run));
        repairs.unwrap_or_default() + &fsck_text(&checked)
    })?;
    if checked.problems.is_empty() {
        return Ok(Outcome::Success);
    }
    let error = Error::new(
        Code::StoreDamaged,
        plural(checked.problems.len(), "problem"),
    );
    Ok(Outcome::Reported(error.file(&args.url).hint(
        match args.repair {
            true => "put a good copy of each adapter again",
            false => {
                "put a good copy of each adapter again; `--repair` restores or sets aside the rest"
            }
        },
    )))
}

/// What a repair did, one thing after another.
fn repairs_text(r: &Repaired, dry_run: bool) -> String {
    let label = if dry_run { "would repair" } else { "repaired" };
    let mut text = String::new();
    for (label, repairs) in [(label, &r.repairs), ("left", &r.left)] {
        for repair in repairs {
            let Repair {
                key, why, action, ..
            } = repair;
            let line = tlkit::error::sanitize(&format!("{label} {key}: {why}: {action}"));
            text.push_str(&line);
            text.push('\n');
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn fsck_text(c: &Checked) -> String {
    let mut text = fields(&[
        ("users", count(c.tenants)),
        ("versions", count(c.versions)),
        (
            "blobs",
            format!("{}, {} unnamed", count(c.blobs), c.unnamed),
        ),
        ("bytes read", bytes(c.bytes)),
        ("set aside", count(c.set_aside)),
        ("problems", c.problems.len().to_string()),
    ]);
    // By tenant and adapter, as the library has sorted them.
    let mut last = None;
    for p in &c.problems {
        let place = (&p.user, &p.adapter);
        if last != Some(place) {
            text.push_str(&match place {
                (Some(user), Some(adapter)) => format!("\n{user}/{adapter}\n"),
                (Some(user), None) => format!("\n{user}, no adapter\n"),
                (None, _) => "\nno user\n".to_owned(),
            });
            last = Some(place);
        }
        text.push_str(&format!("  {} {}: {}\n", p.code, p.key, p.message));
    }
    text.lines()
        .map(|line| format!("{}\n", tlkit::error::sanitize(line)))
        .collect()
}

pub(crate) fn gc(args: &args::Gc, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let mut options = CollectOptions::default();
    options.keep = args.keep;
    options.dry_run = args.dry_run;
    let mut store = Opened::open(&args.url, output)?;
    let done = match tenant(&store, only)? {
        Some(user) => store.collect_tenant(&user, &options)?,
        None => store.collect(&options)?,
    };
    store.report(&done, || gc_text(&done, args.dry_run))?;
    Ok(store.skipped(&args.url, &done.skipped))
}

fn gc_text(c: &Collected, dry_run: bool) -> String {
    let deleted = format!(
        "{}, {} ({})",
        plural(c.versions as usize, "version"),
        plural(c.blobs as usize, "blob"),
        bytes(c.bytes)
    );
    let condemned = format!(
        "{} ({})",
        plural(c.condemned as usize, "blob"),
        bytes(c.condemned_bytes)
    );
    let label = if dry_run { "would delete" } else { "deleted" };
    let mut rows = vec![(label, deleted), ("condemned", condemned)];
    let skipped = c.skipped.iter();
    rows.extend(skipped.map(|s| ("left out", format!("{}: {}", s.user, s.message))));
    fields(&rows)
}

pub(crate) fn publish(args: &args::Publish, output: &Output) -> Result<Outcome> {
    let store = Opened::open(&args.url, output)?;
    let blobs = blob_source(&args.blobs);
    // All of them are read before the first blob is written, which stays for good.
    let mut packages = Vec::new();
    for adapter in &args.adapters {
        let (package, notes) = fleet::package_any(adapter, &ToTiedOptions::default(), &*blobs)?;
        for note in &notes {
            output.note(note);
        }
        packages.push(package);
    }
    let mut published: Vec<Published> = Vec::new();
    for package in &packages {
        let new = store.publish(package)?;
        published.extend(new);
    }
    // What two of the adapters have in common was known the second time.
    let mut seen = std::collections::BTreeSet::new();
    published.retain(|p| seen.insert(p.digest.clone()));
    output.report(&published, || {
        let rows = published.iter().map(|p| {
            let new = if p.known { "no" } else { "yes" };
            vec![p.digest.clone(), bytes(p.bytes), new.to_owned()]
        });
        table(&["blob", "bytes", "new"], &[1], rows)
    })?;
    Ok(Outcome::Success)
}

pub(crate) fn quota(args: &args::Quota, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let mut store = Opened::open(&args.url, output)?;
    if let Some(args::Limit(limit)) = args.default {
        store.configure(|settings| settings.quota = limit)?;
    }
    if let (Some(user), Some(args::Limit(limit))) = (&only, args.limit) {
        store.configure(|settings| {
            settings.quotas.remove(user);
            settings.quotas.extend(limit.map(|n| (user.clone(), n)));
        })?;
    }
    let settings = store.settings();
    #[derive(Serialize)]
    struct Report<'a> {
        user: &'a Name,
        quota: Option<u64>,
        own: bool,
    }
    match &only {
        None => output.report(settings, || quotas_text(settings))?,
        Some(user) => {
            let own = settings.quotas.get(user).copied();
            let report = Report {
                user,
                quota: own.or(settings.quota),
                own: own.is_some(),
            };
            output.report(&report, || {
                let default = if report.own { "" } else { " (the default)" };
                format!("{user}  {}{default}", shown(report.quota))
            })?;
        }
    }
    Ok(Outcome::Success)
}

fn quotas_text(settings: &Settings) -> String {
    let default = ("(default)".to_owned(), settings.quota);
    let own = settings.quotas.iter();
    let own = own.map(|(user, quota)| (user.to_string(), Some(*quota)));
    let rows = std::iter::once(default).chain(own);
    let rows = rows.map(|(user, quota)| vec![user, shown(quota)]);
    table(&["user", "quota"], &[1], rows)
}

fn shown(quota: Option<u64>) -> String {
    quota.map_or_else(|| "none".into(), bytes)
}

pub(crate) fn export(args: &args::Export, output: &Output) -> Result<Outcome> {
    let gguf = gguf(args.gguf, args.dtype, &args.serving);
    if gguf.is_none() && (args.peft || args.serving.is_asked()) {
        return super::serving::export(args, output);
    }
    if args.watch || args.versions || !args.require_signature.is_empty() {
        return Err(Error::new(
            Code::Usage,
            "this is asked for with --peft alone",
        ));
    }
    let mut options = ExportOptions::default();
    options.user = user(args.user.as_ref())?;
    options.thin = args.thin;
    options.gguf = gguf;
    options.code = args.code.map(CodeTarget::Error);
    options.existing = existing(args.force);
    check_outside(&args.output, Path::new(&args.url), "the store")?;
    let mut store = Opened::open(&args.url, output)?;
    let users = match options.user {
        Some(_) => 1,
        None => store.tenants()?.len() as u64,
    };
    let done = with_progress("exporting users", Work::Items(users), |progress| {
        fleet::export(&store, &args.output, &options, progress)
    })?;
    store.report(&done, || export_text(&done, args.thin))?;
    let Some(first) = done.failed.first() else {
        return Ok(Outcome::Success);
    };
    let message = format!("{} not exported", plural(done.failed.len(), "adapter"));
    Ok(Outcome::Reported(
        Error::new(first.code, message).file(&args.url),
    ))
}

fn export_text(done: &Exported, thin: bool) -> String {
    let mut rows = vec![
        ("users", done.tenants.to_string()),
        ("adapters", done.adapters.to_string()),
        ("bytes", bytes(done.bytes)),
    ];
    if thin {
        rows.push(("blobs", format!("{} written", done.blobs)));
    }
    rows.push(("failed", done.failed.len().to_string()));
    rows.push(("output", show(&done.output)));
    let failed = done.failed.iter();
    let failed = failed.map(|f| vec![f.adapter.clone(), f.code.as_str().into(), f.message.clone()]);
    let mut text = fields(&rows);
    if !done.failed.is_empty() {
        text.push_str(&format!(
            "\n{}",
            table(&["adapter", "code", "why"], &[], failed)
        ));
    }
    text
}
