//! What changes in a store, by listings (`spec/tl-store-v1.md` §12).

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Read as _};

use serde::{Deserialize, Serialize};

use super::failure::is_damage;
use super::handle::Store;
use super::layout::{self, Subject};
use super::listing::Sequences;
use super::name::Name;
use super::record::{Body, Read};
use super::tenants::Skipped;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;

/// Tenants that are listed at a time, and records that are read.
const AT_ONCE: usize = 64;
/// Longest line of a watch.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// `known`: what was there when the watch began; `put`, `removed`, `tagged`, `untagged`; `damaged`: a record
    /// that cannot be read.
    pub change: &'static str,
    /// The tenant.
    pub user: Name,
    /// The task; none of what is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Name>,
    /// The tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Name>,
    /// The number of the version or removal, or of the version that the tag names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The root of a version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Logical bytes of a version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds of Unix time, by the writer's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    /// The code of what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last number of each sequence of the tenant that this line says something of: `TASK`, or `TASK:TAG`.
    pub cursor: BTreeMap<String, u64>,
}

/// Which records were told of.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The last number of a sequence, by the digest of what it is of: so that a fleet takes few bytes an adapter.
    last: HashMap<[u8; 16], u64>,
}

impl Seen {
    /// What the lines of earlier watches say together. A last line without an end is left out: its writer was killed.
    ///
    /// # Errors
    /// [`Code::StoreRecord`] where another line is none of a watch; [`Code::Io`].
    pub fn read(lines: &mut dyn BufRead) -> Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            user: Name,
            cursor: BTreeMap<String, u64>,
        }
        let mut seen = Self::default();
        for number in 1.. {
            let mut line = Vec::new();
            let mut limited = (&mut *lines).take(MAX_LINE_BYTES);
            let read = limited.read_until(b'\n', &mut line);
            read.map_err(|e| Error::new(Code::Io, format!("cannot read: {e}")).cause(e))?;
            if line.last() != Some(&b'\n') {
                if line.len() as u64 == MAX_LINE_BYTES {
                    return Err(not_a_line(number, &"too long"));
                }
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(&line).map_err(|e| not_a_line(number, &e))?;
            for (of, last) in line.cursor {
                let known = seen.last.entry(key(&line.user, &of)).or_default();
                *known = last.max(*known);
            }
        }
        Ok(seen)
    }

    fn of(&self, user: &Name, subject: &Subject) -> u64 {
        let known = label(subject).and_then(|of| self.last.get(&key(user, &of)));
        known.copied().unwrap_or(0)
    }
}

fn not_a_line(number: usize, why: &dyn std::fmt::Display) -> Error {
    let message = format!("line {number} is none of a watch: {why}");
    Error::new(Code::StoreRecord, message)
}

fn key(user: &Name, of: &str) -> [u8; 16] {
    let digest = Digest::of(format!("{user}/{of}").as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_bytes()[..16]);
    key
}

/// What a cursor calls a sequence; none that says nothing to users.
fn label(subject: &Subject) -> Option<String> {
    match subject {
        Subject::Adapter(task) => Some(task.to_string()),
        Subject::Tag(task, tag) => Some(format!("{task}:{tag}")),
        Subject::Collection | Subject::Settings => None,
    }
}

/// Who is told of a change.
type Tell<'a> = &'a mut dyn FnMut(&Change) -> Result<()>;

/// A look at a store again and again.
#[derive(Debug)]
pub struct Watcher {
    user: Option<Name>,
    seen: Seen,
    /// The last state of collection of a tenant, all of whose packs were told of: it is not read again.
    states: HashMap<[u8; 16], u64>,
}

impl Watcher {
    /// Of one tenant or all of them, after what was told of already.
    pub fn after(user: Option<Name>, seen: Seen) -> Self {
        Self {
            user,
            seen,
            states: HashMap::new(),
        }
    }

    /// Takes what is there as told of: one line for each tenant. Gives the tenants that cannot be listed.
    ///
    /// # Errors
    /// Those of [`poll`](Self::poll).
    pub fn begin(
        &mut self,
        store: &Store,
        progress: Progress<'_>,
        tell: Tell<'_>,
    ) -> Result<Vec<Skipped>> {
        self.each(store, progress, &mut |watcher, user, listed| {
            let mut known = line("known", user);
            for (subject, numbers) in &listed.numbers {
                let (Some(of), Some(last)) = (label(subject), numbers.last()) else {
                    continue;
                };
                watcher.seen.last.insert(key(user, &of), *last);
                known.cursor.insert(of, *last);
            }
            tell(&known)
        })
    }

    /// Tells of every record that came since, those of an adapter in their order. Gives the tenants that cannot be listed;
    /// what they have is told of when they can. A line that `tell` fails at counts as not told.
    ///
    /// # Errors
    /// [`Code::StoreBackend`]; [`Code::Interrupted`] by `progress`; those of `tell`. What was told of by then is known.
    pub fn poll(
        &mut self,
        store: &Store,
        progress: Progress<'_>,
        tell: Tell<'_>,
    ) -> Result<Vec<Skipped>> {
        self.each(store, progress, &mut |watcher, user, listed| {
            watcher.tenant(store, user, listed, tell)
        })
    }

    fn each(
        &mut self,
        store: &Store,
        progress: Progress<'_>,
        work: &mut dyn FnMut(&mut Self, &Name, Sequences) -> Result<()>,
    ) -> Result<Vec<Skipped>> {
        let users = match &self.user {
            Some(user) => vec![user.clone()],
            None => store.tenants()?,
        };
        let mut skipped = Vec::new();
        for users in users.chunks(AT_ONCE) {
            progress.check()?;
            let folders: Vec<String> = users.iter().map(layout::records).collect();
            let state_of = |user| self.states.get(&key(user, "")).copied();
            let known: Vec<Option<u64>> = users.iter().map(state_of).collect();
            for (user, listed) in users.iter().zip(store.sequences_of(&folders, &known)) {
                let told = listed.and_then(|listed| {
                    let state = listed.last(&Subject::Collection);
                    work(self, user, listed)?;
                    self.states
                        .extend(state.map(|state| (key(user, ""), state)));
                    Ok(())
                });
                match told {
                    Err(e) if is_damage(&e) => skipped.push(Skipped {
                        user: user.clone(),
                        code: e.code().as_str(),
                        message: e.to_string(),
                        damaged: true,
                    }),
                    done => done?,
                }
            }
        }
        Ok(skipped)
    }

    fn tenant(
        &mut self,
        store: &Store,
        user: &Name,
        mut listed: Sequences,
        tell: Tell<'_>,
    ) -> Result<()> {
        let mut new = self.new_ones(user, &listed);
        if new.iter().any(|(_, _, follows)| !follows) {
            // What is missing was collected, or came while the listing was under way.
            listed = store.settled_after(listed)?;
            new = self.new_ones(user, &listed);
        }
        for part in new.chunks(AT_ONCE) {
            let keys: Vec<String> = part.iter().map(|(s, n, _)| listed.key(s, *n)).collect();
            for ((subject, number, _), read) in part.iter().zip(store.records(&keys)) {
                let told = match read {
                    Ok(read) => read.map(|read| of_record(user, subject, *number, &read)),
                    Err(e) if is_damage(&e) => Some(damaged(user, subject, *number, &e)),
                    Err(e) => return Err(e),
                };
                let Some(of) = label(subject) else { continue };
                // One that is gone was followed by another one before it was looked at.
                if let Some(mut told) = told {
                    told.cursor.insert(of.clone(), *number);
                    tell(&told)?;
                }
                self.seen.last.insert(key(user, &of), *number);
            }
        }
        Ok(())
    }

    /// The records that were not told of, and whether each follows the one before.
    fn new_ones(&self, user: &Name, listed: &Sequences) -> Vec<(Subject, u64, bool)> {
        let mut new = Vec::new();
        for (subject, numbers) in &listed.numbers {
            if label(subject).is_none() {
                continue;
            }
            let mut last = self.seen.of(user, subject);
            let from = numbers.partition_point(|n| *n <= last);
            for number in numbers.iter().skip(from) {
                new.push((
                    subject.clone(),
                    *number,
                    last.checked_add(1) == Some(*number),
                ));
                last = *number;
            }
        }
        new
    }
}

fn line(change: &'static str, user: &Name) -> Change {
    Change {
        change,
        user: user.clone(),
        task: None,
        tag: None,
        version: None,
        root: None,
        bytes: None,
        time: None,
        code: None,
        message: None,
        cursor: BTreeMap::new(),
    }
}

fn named(change: &'static str, user: &Name, subject: &Subject) -> Change {
    let mut line = line(change, user);
    if let Subject::Adapter(task) | Subject::Tag(task, _) = subject {
        line.task = Some(task.clone());
    }
    if let Subject::Tag(_, tag) = subject {
        line.tag = Some(tag.clone());
    }
    line
}

fn of_record(user: &Name, subject: &Subject, number: u64, read: &Read) -> Change {
    let change = match (subject, &read.record.body) {
        (Subject::Adapter(_), Body::Adapter(_)) => "put",
        (Subject::Adapter(_), Body::Removed) => "removed",
        (Subject::Tag(..), Body::Tag(Some(_))) => "tagged",
        (Subject::Tag(..), Body::Tag(None)) => "untagged",
        _ => {
            let message = "a record of another kind than its name says";
            let foreign = Error::new(Code::StoreRecord, message);
            return damaged(user, subject, number, &foreign);
        }
    };
    let mut line = named(change, user, subject);
    line.time = Some(read.record.time);
    line.version = match &read.record.body {
        Body::Tag(version) => *version,
        _ => Some(number),
    };
    line.root = read.version().map(|v| v.root.to_string());
    line.bytes = read.version().map(|v| v.bytes);
    line
}

fn damaged(user: &Name, subject: &Subject, number: u64, e: &Error) -> Change {
    let mut line = named("damaged", user, subject);
    line.version = matches!(subject, Subject::Adapter(_)).then_some(number);
    line.code = Some(e.code().as_str());
    line.message = Some(e.to_string());
    line
}

#[cfg(test)]
mod tests;
