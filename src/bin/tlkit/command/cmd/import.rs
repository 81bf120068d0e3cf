//! `store import`: adapters in folders into a store.

use tlkit::audit::find;
use tlkit::fit::CodeTarget;
use tlkit::fleet::{self, Candidate, ImportOptions, Imported, ImportedRow};
use tlkit::{Code, Error, Result};

use super::audit::owners;
use super::opened::Opened;
use crate::command::args;
use crate::command::output::{
    Outcome, Output, bytes, count, fields, plural, relative_error, table,
};
use crate::command::progress::{Work, with_progress};

/// Lines of the text's table of what failed; `--json` has all.
const TOP: usize = 20;

pub(crate) fn import(args: &args::Import, output: &Output) -> Result<Outcome> {
    let owners = owners(args.template.as_deref(), args.owners.as_deref())?;
    let mut store = Opened::open(&args.url, output)?;
    let (found, problems) = find(&args.paths, &owners)?;
    for problem in &problems {
        output.warn(&problem.message);
    }
    let candidates: Vec<Candidate> = found
        .into_iter()
        .map(|(path, owner)| Candidate {
            path,
            user: owner.user,
            task: owner.task,
        })
        .collect();
    let mut options = ImportOptions::default();
    options.code = args.code.map(CodeTarget::Error);
    options.dry_run = args.dry_run;
    let amount = Work::Items(candidates.len() as u64);
    let done = with_progress("importing adapters", amount, |progress| {
        fleet::import(&store, &candidates, &options, progress)
    })?;
    store.report(&done, || text(&done))?;
    let failed = done.rows.iter().filter_map(|r| r.code);
    let Some(first) = failed.chain(problems.iter().map(|p| p.code)).min() else {
        return Ok(Outcome::Success);
    };
    let failed = done.failed + problems.len();
    let message = format!("{} not imported", plural(failed, "item"));
    let code = Code::ALL.iter().find(|c| c.as_str() == first);
    let code = code.copied().unwrap_or(Code::BrokenAdapters);
    Ok(Outcome::Reported(Error::new(code, message).file(&args.url)))
}

fn text(done: &Imported) -> String {
    let put = if done.dry_run { "would be put" } else { "put" };
    let mut rows = vec![
        ("users", count(done.tenants as u64)),
        (put, count(done.put as u64)),
        ("there already", count(done.unchanged as u64)),
        ("failed", count(done.failed as u64)),
        (
            "bytes",
            format!("{}, {} written", bytes(done.bytes), bytes(done.written)),
        ),
    ];
    if let Some(error) = done.largest_error {
        rows.push((
            "coded",
            format!("each off by at most {}", relative_error(error)),
        ));
    }
    let failed = done.rows.iter().filter(|r| r.code.is_some());
    let line = |r: &ImportedRow| {
        let code = r.code.unwrap_or_default().to_owned();
        vec![code, r.message.clone().unwrap_or_default()]
    };
    let mut text = fields(&rows);
    if done.failed > 0 {
        text.push('\n');
        text.push_str(&table(&["failed", ""], &[], failed.take(TOP).map(line)));
        text.push('\n');
    }
    if done.failed > TOP {
        text.push_str(&format!(
            "… and {} more\n",
            count((done.failed - TOP) as u64)
        ));
    }
    text
}
