//! Which of a base's tensors an adapter means by its names.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::architecture::Architecture;
use super::class_names::{Answer, ClassNames};
use super::cut::{Cut, Found, Link};
pub(crate) use super::known::Known;
use super::rewrite::{Rule, WHICH, candidate_rules, uniform};
pub(crate) use super::rewrite::{quantised, renamed};
use crate::error::{Code, Error, Result};

/// Names that fit no rewrite after which [`Finder`] looks for none: each costs a look at all of the base.
const MOST_SEARCHES: usize = 64;

/// The tensors of a base by its own names, and by those of the model's class.
#[derive(Debug)]
pub(crate) struct Names<'a, K: Known> {
    base: &'a K,
    architecture: &'a Architecture,
    by_class: OnceLock<ClassNames<K::Place>>,
}

/// Where each of several names leads; `None` for one that may miss.
pub(crate) type Places<P> = Vec<Option<Found<P>>>;

/// What came of reading all names in one way.
enum Reading<P> {
    Fits(Places<P>),
    /// Loading changes a tensor in a way that pieces cannot say: the name, and the operation.
    Unknown(String, String),
    Misses,
}

impl<'a, K: Known> Names<'a, K>
where
    K::Place: PartialEq,
{
    pub(crate) fn new(base: &'a K, architecture: &'a Architecture) -> Self {
        Self {
            base,
            architecture,
            by_class: OnceLock::new(),
        }
    }

    /// Finds what one adapter means by the names `wanted`, in their order.
    ///
    /// Explicit `renames` come first. Then names are those of the class, or older ones that its load rules
    /// make those of the class, all in one way; both are compared with what the rules make of the base's names.
    /// Last comes one rewrite of leading segments that is the same for the whole adapter
    /// (`transformer.h.0…` → `h.0…`); it may insert or remove segments, never exchange them. Of an
    /// architecture that the table lacks, names are the base's own, or so rewritten. `None` for a name that
    /// is not in the base and `may_miss`.
    ///
    /// # Errors
    /// [`Code::UnmatchedModule`], [`Code::AmbiguousModule`], [`Code::BaseDtype`] where the base holds
    /// a quantised form of the module, [`Code::BaseLayout`] where loading changes it by more than parts say.
    pub(crate) fn resolve(
        &self,
        wanted: &[String],
        renames: &[(String, String)],
        may_miss: impl Fn(&str) -> bool,
    ) -> Result<Places<K::Place>> {
        let renames: Vec<Rule> = renames
            .iter()
            .chain(self.base.renames())
            .map(|(from, to)| Rule::asked(from, to))
            .collect();
        let renamed = |name: &String| renames.iter().find_map(|r| r.apply(name));
        let wanted: Vec<String> = wanted
            .iter()
            .map(|name| renamed(name).unwrap_or_else(|| name.clone()))
            .collect();
        let whole = |places: Vec<Option<K::Place>>| -> Places<K::Place> {
            places.into_iter().map(|p| p.map(Found::whole)).collect()
        };
        if !self.architecture.is_known() {
            return uniform(self.base, &wanted, may_miss).map(whole);
        }
        let exact = |n: &String| self.base.locate(n).is_some() || may_miss(n);
        let unchanged = |n: &String| is_same(&self.architecture.links(n), n);
        if wanted.iter().all(|n| exact(n) && unchanged(n)) {
            return Ok(whole(wanted.iter().map(|n| self.base.locate(n)).collect()));
        }
        let new = self.read(&wanted, &may_miss, |name| self.by_class().find(name));
        let old = self.read(&wanted, &may_miss, |name| self.older(name));
        let unknown = match (new, old) {
            // The name may be that of another tensor on the disk, which an older adapter would mean.
            (Reading::Unknown(name, operation), _) => return Err(changed_by(&name, &operation)),
            (Reading::Fits(new), Reading::Fits(old)) if new != old => {
                return Err(self.either(&wanted, &new, &old));
            }
            (Reading::Fits(places), _) | (_, Reading::Fits(places)) => return Ok(places),
            (_, Reading::Unknown(name, operation)) => Some((name, operation)),
            (Reading::Misses, Reading::Misses) => None,
        };
        let found = self.rewritten(&wanted, &may_miss);
        match (found, unknown) {
            (Err(e), Some((name, operation))) if e.code() == Code::UnmatchedModule => {
                Err(changed_by(&name, &operation))
            }
            (found, _) => found,
        }
    }

    /// A name as the caller's renames of the base have it.
    pub(crate) fn asked(&self, name: &str) -> Option<String> {
        renamed(self.base.renames(), name)
    }

    /// What a caller's renames have for a name of the base: the inverse of [`asked`](Self::asked).
    pub(crate) fn called(&self, name: &str) -> String {
        let mut renames = self.base.renames().iter();
        let inverse = renames.find_map(|(from, to)| Rule::asked(to, from).apply(name));
        inverse.unwrap_or_else(|| name.to_owned())
    }

    /// The stored tensor that is all of the class's tensor of this name, with or without the base model's prefix.
    pub(crate) fn stored(&self, class: &str) -> Option<K::Place> {
        let prefix = self.architecture.prefix();
        let inner = class.strip_prefix(prefix).and_then(|n| n.strip_prefix('.'));
        let outer = format!("{prefix}.{class}");
        let names = [Some(class), inner, Some(outer.as_str())];
        let exact = |n: &str| {
            let unchanged = is_same(&self.architecture.links(n), n);
            self.base.locate(n).filter(|_| unchanged)
        };
        let exact = names.into_iter().flatten().find_map(exact);
        exact.or_else(|| {
            let converted = |n: &str| match self.by_class().find(n) {
                Answer::Found(found) => found.as_whole(),
                Answer::Unknown(_) | Answer::Missing => None,
            };
            let ruled = self.architecture.has_rules();
            ruled.then(|| names.into_iter().flatten().find_map(converted))?
        })
    }

    fn by_class(&self) -> &ClassNames<K::Place> {
        self.by_class
            .get_or_init(|| ClassNames::of(self.base, self.architecture))
    }

    /// The stored tensor of a name, but for one whose name loading keeps while it changes what is in it: then
    /// the class's tensor is meant.
    fn as_it_is(&self, name: &str) -> Option<K::Place> {
        let place = self.base.locate(name)?;
        let links = self.architecture.links(name);
        let changed =
            matches!(links.as_slice(), [link] if link.class == name && link.at != Cut::WHOLE);
        (!changed).then_some(place)
    }

    /// Where a name leads that the class once had: the base's own, or what the load rules make of it.
    fn older(&self, name: &str) -> Answer<K::Place> {
        match self.as_it_is(name) {
            Some(place) => Answer::Found(Found::whole(place)),
            None if self.base.locate(name).is_some() => self.by_class().find(name),
            None => match self.by_class().find_parts(&self.architecture.links(name)) {
                Answer::Missing => self.of_one_expert(name),
                answer => answer,
            },
        }
    }

    /// Where a single expert's weight leads in a parameter that the class has for all of them.
    fn of_one_expert(&self, name: &str) -> Answer<K::Place> {
        let part = self.architecture.single_expert(name);
        part.map_or(Answer::Missing, |part| self.by_class().find_parts(&[part]))
    }

    fn read(
        &self,
        wanted: &[String],
        may_miss: &impl Fn(&str) -> bool,
        find: impl Fn(&str) -> Answer<K::Place>,
    ) -> Reading<K::Place> {
        let mut places = Vec::with_capacity(wanted.len());
        let mut unknown = None;
        for name in wanted {
            places.push(match find(name) {
                Answer::Found(found) => Some(found),
                Answer::Missing if may_miss(name) => None,
                Answer::Missing => return Reading::Misses,
                Answer::Unknown(operation) => {
                    unknown.get_or_insert((name.clone(), operation));
                    None
                }
            });
        }
        match unknown {
            Some((name, operation)) => Reading::Unknown(name, operation),
            None => Reading::Fits(places),
        }
    }

    /// The names by one rewrite: among the class's, as they are or as the rules make them, and the base's own.
    fn rewritten(
        &self,
        wanted: &[String],
        may_miss: &impl Fn(&str) -> bool,
    ) -> Result<Places<K::Place>> {
        let names: Vec<&str> = self.by_class().names().collect();
        let numbered: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let among = |wanted: &[String]| -> Result<Places<K::Place>> {
            let places = uniform(&numbered, wanted, may_miss)?;
            let each = places.into_iter().map(|place| {
                let Some(name) = place.and_then(|i| names.get(i)) else {
                    return Ok(None);
                };
                match self.by_class().find(name) {
                    Answer::Found(found) => Ok(Some(found)),
                    Answer::Unknown(operation) => Err(changed_by(name, &operation)),
                    Answer::Missing => Err(Error::new(
                        Code::UnmatchedModule,
                        "the base lacks parts of it",
                    )
                    .tensor(*name)),
                }
            });
            each.collect()
        };
        let own = uniform(self.base, wanted, may_miss);
        let own = own.map(|p| p.into_iter().map(|p| p.map(Found::whole)).collect());
        let mut ways = vec![own, among(wanted)];
        if let Some(renamed) = self.renamed(wanted)
            && renamed != wanted
        {
            ways.push(among(&renamed));
        }
        let mut fitting: Vec<&Places<K::Place>> = ways.iter().flatten().collect();
        fitting.dedup();
        if let [one, other, ..] = fitting[..] {
            return Err(self.either(wanted, one, other));
        }
        let ambiguous =
            |way: &Result<_>| matches!(way, Err(e) if e.code() != Code::UnmatchedModule);
        let chosen = ways.iter().position(Result::is_ok);
        let chosen = chosen.or_else(|| ways.iter().position(ambiguous));
        ways.swap_remove(chosen.unwrap_or(0))
    }

    /// What the load rules make of names, where each is all of a tensor.
    fn renamed(&self, wanted: &[String]) -> Option<Vec<String>> {
        let each = wanted
            .iter()
            .map(|name| match self.architecture.links(name).as_slice() {
                [link] if link.of == Cut::WHOLE => Some(link.class.clone()),
                _ => None,
            });
        each.collect()
    }

    fn either(&self, wanted: &[String], one: &Places<K::Place>, other: &Places<K::Place>) -> Error {
        let differs = wanted
            .iter()
            .zip(one.iter().zip(other))
            .find(|(_, (a, b))| a != b);
        let name = differs.map_or("", |(name, _)| name);
        let message = "read as the model's class has it today, and as files have it, it is another tensor of the base";
        Error::new(Code::AmbiguousModule, message)
            .tensor(name)
            .hint(WHICH)
    }
}

/// Whether a name is that of the class, and all of one tensor.
fn is_same(links: &[Link], name: &str) -> bool {
    matches!(links, [link] if link.class == name
        && link.of == Cut::WHOLE && link.at == Cut::WHOLE && link.unknown.is_none())
}

fn changed_by(name: &str, operation: &str) -> Error {
    let message = format!(
        "the model's class makes it of the base's tensors by {operation}, which is not known here"
    );
    Error::new(Code::BaseLayout, message).tensor(name)
}

/// The stored tensors, where each is one and whole.
///
/// # Errors
/// [`Code::BaseLayout`] for a name that leads to parts.
pub(crate) fn whole_places<P: Copy>(
    wanted: &[String],
    places: Places<P>,
) -> Result<Vec<Option<P>>> {
    let each = wanted.iter().zip(places).map(|(name, place)| {
        let Some(found) = place else { return Ok(None) };
        let whole = found.as_whole();
        let parts = || {
            let message = match found.pieces.len() {
                1 => "the base holds it as a part of a larger tensor".to_owned(),
                n => format!("the base holds it in {n} parts"),
            };
            Error::new(Code::BaseLayout, message).tensor(name)
        };
        whole.map(Some).ok_or_else(parts)
    });
    each.collect()
}

/// Finds the names of one adapter one by one, before all of them are known: by the name as it is or as
/// the class has it, or by the rewrite that another name of it needed, where that was the only one possible.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    rule: OnceLock<Rule>,
    failed_searches: AtomicUsize,
}

impl Finder {
    /// Where a name leads in `names`, which are the same at each call.
    pub(crate) fn find<K: Known>(&self, names: &Names<'_, K>, name: &str) -> Option<Found<K::Place>>
    where
        K::Place: PartialEq,
    {
        let asked = names.asked(name);
        let name = asked.as_deref().unwrap_or(name);
        if let Some(place) = names.as_it_is(name) {
            return Some(Found::whole(place));
        }
        if !names.architecture.is_known() {
            let own = |n: &str| names.base.locate(n).map(Found::whole);
            return self.rewritten(names.base, name, own);
        }
        let found = |answer| match answer {
            Answer::Found(found) => Some(found),
            Answer::Unknown(_) | Answer::Missing => None,
        };
        let by_class = names.by_class();
        let exact = found(by_class.find(name)).or_else(|| found(names.older(name)));
        exact.or_else(|| self.rewritten(by_class, name, |n| found(by_class.find(n))))
    }

    fn rewritten<P>(
        &self,
        known: &impl Known,
        name: &str,
        find: impl Fn(&str) -> Option<Found<P>>,
    ) -> Option<Found<P>> {
        let rewritten = |rule: &Rule| find(&rule.apply(name)?);
        if let Some(rule) = self.rule.get() {
            return rewritten(rule);
        }
        if self.failed_searches.load(Ordering::Relaxed) >= MOST_SEARCHES {
            return None;
        }
        let mut rules = candidate_rules(known, name).into_iter();
        match (rules.next(), rules.next()) {
            (Some(rule), None) => rewritten(self.rule.get_or_init(|| rule)),
            _ => {
                self.failed_searches.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
