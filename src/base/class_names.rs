//! The names of a base's tensors as the model's class has them.

use std::collections::{BTreeMap, BTreeSet};

use super::architecture::Architecture;
use super::cut::{Cut, Flip, Found, Link, Piece};
use super::known::Known;

/// What is stored of one tensor of the class.
#[derive(Debug)]
struct Stored<P> {
    piece: Piece<P>,
    unknown: Option<String>,
}

/// Every tensor of a base under its class's names.
#[derive(Debug)]
pub(super) struct ClassNames<P> {
    by_class: BTreeMap<String, Vec<Stored<P>>>,
}

/// Where a name of the class leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<P> {
    /// To these pieces.
    Found(Found<P>),
    /// To tensors that loading changes in a way that pieces cannot say: the operation.
    Unknown(String),
    /// To nothing, or to parts that are not all of it.
    Missing,
}

impl<P: Copy> ClassNames<P> {
    pub(super) fn of<K: Known<Place = P>>(base: &K, architecture: &Architecture) -> Self {
        let mut by_class: BTreeMap<String, Vec<Stored<P>>> = BTreeMap::new();
        for name in base.names() {
            let Some(place) = base.locate(name) else {
                continue;
            };
            let mut links = architecture.links(name);
            // Where no load rule says what single experts become.
            let kept = matches!(links.as_slice(), [link] if link.class == name);
            let part = architecture.stored_expert(name).filter(|_| kept);
            links.extend(part.filter(|part| base.locate(&part.class).is_none()));
            for link in links {
                let piece = Piece {
                    place,
                    at: link.at,
                    of: link.of,
                };
                let unknown = link.unknown;
                let stored = Stored { piece, unknown };
                by_class.entry(link.class).or_default().push(stored);
            }
        }
        Self { by_class }
    }

    /// All names, also of what is in parts.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_class.keys().map(String::as_str)
    }

    /// Where the tensor of this name leads.
    pub(super) fn find(&self, class: &str) -> Answer<P> {
        self.find_parts(&[Link {
            class: class.to_owned(),
            of: Cut::WHOLE,
            at: Cut::WHOLE,
            unknown: None,
        }])
    }

    /// Where a tensor leads that is these parts of the class's.
    pub(super) fn find_parts(&self, parts: &[Link]) -> Answer<P> {
        let mut pieces = Vec::new();
        for part in parts {
            if let Some(operation) = &part.unknown {
                return Answer::Unknown(operation.clone());
            }
            let mut covered = Vec::new();
            for stored in self.by_class.get(&part.class).into_iter().flatten() {
                if part.of.is_apart(stored.piece.of) {
                    continue;
                }
                if let Some(operation) = &stored.unknown {
                    return Answer::Unknown(operation.clone());
                }
                let Some((piece, cut)) = overlap(part, stored.piece) else {
                    return Answer::Unknown("parts of parts".to_owned());
                };
                pieces.push(piece);
                covered.push(cut);
            }
            if !are_all(&covered) {
                return Answer::Missing;
            }
        }
        if pieces.is_empty() {
            return Answer::Missing;
        }
        Answer::Found(Found { pieces })
    }
}

impl<P: Copy> Known for ClassNames<P> {
    type Place = ();

    fn locate(&self, name: &str) -> Option<()> {
        self.by_class.contains_key(name).then_some(())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        ClassNames::names(self)
    }
}

/// What of a stored piece a part is about, and which part of the part that is.
fn overlap<P: Copy>(part: &Link, stored: Piece<P>) -> Option<(Piece<P>, Cut)> {
    let place = stored.place;
    if let Some(inner) = part.of.within(stored.of) {
        // What loading exchanges it exchanges in every part.
        let at = match (inner, stored.at) {
            (inner, at) if inner == Cut::WHOLE => at,
            (inner, at) if at.index.is_none() && at.chunk.is_none() => Cut {
                flip: match (inner.flip, at.flip) {
                    (Flip::No, flip) | (flip, Flip::No) => flip,
                    _ => return None,
                },
                ..inner
            },
            _ => return None,
        };
        let of = part.at;
        return Some((Piece { place, at, of }, Cut::WHOLE));
    }
    let inner = stored.of.within(part.of)?;
    let of = match part.at {
        at if at == Cut::WHOLE => inner,
        at if at.index.is_none() && at.chunk.is_none() && at.flip == Flip::No => inner,
        _ => return None,
    };
    let at = stored.at;
    Some((Piece { place, at, of }, inner))
}

/// Whether parts are all of a tensor, each once.
fn are_all(parts: &[Cut]) -> bool {
    let mut by_index: BTreeMap<Option<usize>, Vec<Cut>> = BTreeMap::new();
    for part in parts {
        by_index.entry(part.index).or_default().push(*part);
    }
    let count = by_index.len();
    let indices = match by_index.first_key_value() {
        None => return false,
        Some((None, _)) => count == 1,
        Some(_) => by_index.keys().enumerate().all(|(i, k)| *k == Some(i)),
    };
    let whole = |parts: &Vec<Cut>| {
        let chunks: BTreeSet<_> = parts.iter().map(|p| p.chunk).collect();
        let of = chunks.first().and_then(|c| c.map(|c| c.of)).unwrap_or(1);
        let alike = |a: &Cut, b: &Cut| match (a.chunk, b.chunk) {
            (Some(a), Some(b)) => (a.axis, a.of) == (b.axis, b.of),
            (a, b) => a == b,
        };
        chunks.len() == parts.len()
            && parts.len() == of
            && parts.windows(2).all(|w| alike(&w[0], &w[1]))
    };
    indices && by_index.values().all(whole)
}
