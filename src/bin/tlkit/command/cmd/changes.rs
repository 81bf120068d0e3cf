//! `store watch`: what changes in a store, as JSON lines.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tlkit::store::{Change, Seen, Skipped, Watcher};
use tlkit::{Code, Error, ErrorKind, Result};

use super::opened::Opened;
use super::store::user;
use crate::command::args;
use crate::command::output::{Outcome, Output};
use crate::command::watch::Stop;

/// How long a wait goes on before somebody looks whether it should.
const STEP: Duration = Duration::from_millis(100);

pub(crate) fn watch(args: &args::WatchStore, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let seen = args.since.as_deref().map(read).transpose()?;
    let mut store = Opened::open(&args.url, output)?;
    let stop = Stop::here();
    let mut lines = Vec::new();
    let mut tell = |change: &Change| match args.once && output.is_json() {
        true => {
            lines.push(change.clone());
            Ok(())
        }
        false => output.print_json_line(change),
    };
    let (mut watcher, skipped) = match seen {
        Some(seen) => {
            let mut watcher = Watcher::after(only, seen);
            let skipped = watcher.poll(&store, stop.progress(), &mut tell);
            (watcher, skipped)
        }
        None => {
            let mut watcher = Watcher::after(only, Seen::default());
            let skipped = watcher.begin(&store, stop.progress(), &mut tell);
            (watcher, skipped)
        }
    };
    if args.once {
        let skipped = skipped?;
        if output.is_json() {
            output.report(&lines, String::new)?;
        }
        return Ok(store.skipped(&args.url, &skipped));
    }
    let mut told = warn(&skipped?, &[], output);
    loop {
        let steps = Duration::from_secs(args.interval.max(1)).as_millis() / STEP.as_millis();
        for _ in 0..steps {
            if stop.progress().is_stopped() {
                return Ok(Outcome::Success);
            }
            thread::sleep(STEP);
        }
        match watcher.poll(&store, stop.progress(), &mut tell) {
            Ok(skipped) => told = warn(&skipped, &told, output),
            Err(e) if e.code() == Code::Interrupted => return Ok(Outcome::Success),
            // The store may be back the next time.
            Err(e) if e.code() == Code::StoreBackend && e.kind() == ErrorKind::Io => {
                output.warn(&e.to_string());
            }
            Err(e) => return Err(e),
        }
        store.tell();
    }
}

/// Tells of the tenants that cannot be looked at, each once for as long as that is so.
fn warn(skipped: &[Skipped], told: &[String], output: &Output) -> Vec<String> {
    let lines = skipped.iter();
    let lines = lines.map(|s| format!("{} cannot be watched: {} {}", s.user, s.code, s.message));
    let lines: Vec<String> = lines.collect();
    for line in lines.iter().filter(|line| !told.contains(line)) {
        output.warn(line);
    }
    lines
}

fn read(path: &Path) -> Result<Seen> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    Seen::read(&mut BufReader::new(file)).map_err(|e| match e.path() {
        Some(_) => e,
        None => e.file(path),
    })
}
