//! An open store whose warnings reach the user, whatever becomes of the command.

use std::ops::{Deref, DerefMut};

use serde::Serialize;
use tlkit::store::{Skipped, Store};
use tlkit::{Code, Error, Result};

use crate::command::output::{Outcome, Output, plural};

/// A store, and where its warnings go.
pub(super) struct Opened<'a> {
    store: Store,
    output: &'a Output,
    told: Vec<String>,
}

impl<'a> Opened<'a> {
    /// The store at an address.
    pub(super) fn open(url: &str, output: &'a Output) -> Result<Self> {
        let mut opened = Self {
            store: Store::open(url)?,
            output,
            told: Vec::new(),
        };
        opened.tell();
        Ok(opened)
    }

    /// Tells what was found damaged and worked around since the last time.
    pub(super) fn tell(&mut self) {
        let new = self.store.take_warnings();
        for warning in &new {
            self.output.warn(warning);
        }
        self.told.extend(new);
    }

    /// What was told.
    pub(super) fn told(&self) -> &[String] {
        &self.told
    }

    /// Prints a report that is no list; its JSON has the warnings inside.
    pub(super) fn report(
        &mut self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        #[derive(Serialize)]
        struct Warned<'r, T> {
            #[serde(flatten)]
            report: &'r T,
            warnings: &'r [String],
        }
        self.tell();
        if self.told.is_empty() {
            return self.output.report(value, text);
        }
        let warned = Warned {
            report: value,
            warnings: &self.told,
        };
        self.output.report(&warned, text)
    }

    /// How a command ends that left tenants out: each is told, and the exit code says so.
    pub(super) fn skipped(&self, url: &str, skipped: &[Skipped]) -> Outcome {
        for s in skipped {
            let warning = format!("{} was left out: {} {}", s.user, s.code, s.message);
            self.output.warn(&warning);
        }
        let worst = skipped.iter().find(|s| s.damaged).or(skipped.first());
        let Some(worst) = worst else {
            return Outcome::Success;
        };
        let code = Code::ALL.iter().find(|c| c.as_str() == worst.code);
        let message = format!("{} left out", plural(skipped.len(), "user"));
        let error = Error::new(code.copied().unwrap_or(Code::StoreDamaged), message);
        Outcome::Reported(error.file(url).hint(match worst.damaged {
            true => "`tlkit store fsck` says what is damaged, `--repair` sets it aside",
            false => "another command is at work on them; try again",
        }))
    }
}

impl Deref for Opened<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl DerefMut for Opened<'_> {
    fn deref_mut(&mut self) -> &mut Store {
        &mut self.store
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
