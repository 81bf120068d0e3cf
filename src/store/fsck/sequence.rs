//! Whether the records of a sequence follow one another as they were written.

use super::finding::Finding;
use crate::digest::Digest;
use crate::error::{Code, Result};
use crate::store::layout::{Moved, Subject};
use crate::store::listing::Sequences;
use crate::store::record::{Body, Collection, Read};
use crate::store::sign;

/// The check of one sequence, record by record in the order of their numbers.
pub(super) struct SequenceCheck<'a> {
    sequences: &'a Sequences,
    subject: &'a Subject,
    /// What collections noted; none where they noted nothing.
    collected: Option<&'a Collection>,
    moved: &'a Moved,
    /// The number of the record before, and its digest where it could be read.
    last: Option<(u64, Option<Digest>)>,
}

impl<'a> SequenceCheck<'a> {
    pub(super) fn new(
        sequences: &'a Sequences,
        subject: &'a Subject,
        collected: Option<&'a Collection>,
        moved: &'a Moved,
    ) -> Self {
        Self {
            sequences,
            subject,
            collected,
            moved,
            last: None,
        }
    }

    /// What is wrong with a record, and with what should be before it.
    pub(super) fn next(&mut self, number: u64, read: &Result<Option<Read>>) -> Vec<Finding> {
        let before = self.last;
        let digest = read
            .as_ref()
            .ok()
            .and_then(|r| r.as_ref().map(Read::digest));
        self.last = Some((number, digest));
        let read = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Vec::new(),
            Err(e) => return vec![Finding::from(e)],
        };
        let mut wrong = Vec::new();
        if !self.fits(&read.record.body) {
            wrong.push(Finding::new(
                Code::StoreRecord,
                "a record of another kind than its name says",
            ));
        }
        wrong.extend(self.signature(read));
        let claimed = read.record.at.as_ref().and_then(|at| at.before.as_ref());
        let Some(claimed) = claimed else { return wrong };
        match before {
            Some((n, Some(digest))) if n + 1 == number && digest != *claimed => {
                wrong.push(broken(format!(
                    "record {n} is another than the one that this one was written after"
                )));
            }
            Some((n, _)) if n + 1 == number => {}
            _ if self.is_explained(number - 1) => {}
            _ => wrong.push(broken(format!(
                "record {} was there when this one was written, and is lost",
                number - 1
            ))),
        }
        wrong
    }

    fn fits(&self, body: &Body) -> bool {
        matches!(
            (self.subject, body),
            (Subject::Adapter(_), Body::Adapter(_) | Body::Removed)
                | (Subject::Tag(..), Body::Tag(_))
                | (Subject::Collection, Body::Collection(_))
                | (Subject::Settings, Body::Settings(_))
        )
    }

    /// Whether a record that is not there was collected, or set aside by a repair.
    fn is_explained(&self, number: u64) -> bool {
        if self
            .moved
            .contains(&self.sequences.key(self.subject, number))
        {
            return true;
        }
        match self.subject {
            // Superseded ones are dropped, and say nothing any more.
            Subject::Tag(..) | Subject::Collection => true,
            Subject::Settings => false,
            Subject::Adapter(task) => self
                .collected
                .is_some_and(|c| c.dropped.contains(task, number)),
        }
    }

    fn signature(&self, read: &Read) -> Option<Finding> {
        let version = read.version()?;
        let signature = version.signature.as_ref()?;
        let place = read.record.at.as_ref().and_then(|at| {
            let task = match self.subject {
                Subject::Adapter(task) => task,
                _ => return None,
            };
            Some((at.tenant.as_ref()?, task, at.number))
        });
        let valid = sign::is_valid(&version.root, place, signature);
        let message = "its signature is not valid";
        (!valid).then(|| Finding::new(Code::SignatureInvalid, message))
    }
}

fn broken(message: String) -> Finding {
    Finding::new(Code::StoreSequence, message)
}
