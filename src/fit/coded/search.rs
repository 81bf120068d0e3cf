//! The price of a bit at which an adapter has the error or the bytes that were asked for.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::bound::{Term, bound};
use super::module::{CodedTerms, Module, Steps};
use super::report::{CodedModule, CodedReport};
use super::tied::{CodedTied, Tied};
use crate::adapter::{Adapter, Factor, LowRank, Scaling, TieGroup};
use crate::coding::{Axis, Coded};
use crate::error::{Code, Error, Result};
use crate::format::{WriteOptions, encoded_len};
use crate::tensor::Tensor;

/// What a coded adapter has to keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum CodeTarget {
    /// At most this relative error of all updates together, 1e-4 to 0.9.
    Error(f64),
    /// A file of at most so many bytes.
    Bytes(u64),
    /// A file of at most so many bits for each number of the factors.
    Bits(f64),
}

impl CodeTarget {
    /// # Errors
    /// [`Code::Usage`] for one out of range.
    pub fn check(self) -> Result<()> {
        let message = match self {
            Self::Error(e) if !(1e-4..=0.9).contains(&e) => {
                format!("error {e}, the limits are 0.0001 and 0.9")
            }
            Self::Bits(b) if !(0.01..=32.0).contains(&b) => {
                format!("{b} bits a number, the limits are 0.01 and 32")
            }
            _ => return Ok(()),
        };
        Err(Error::new(Code::Usage, message))
    }
}

/// The adapter with its updates coded (spec §6), another one with another root.
///
/// Coded are the plain, untied LoRAs in it, module by module or, where targets share an A, these together; and the
/// factors of tied groups, but those that a seed makes. What is neither stays, such as projections that groups of
/// several shapes share, and so do extras.
/// The numbers are the same bytes for any number of threads.
///
/// # Errors
/// [`Code::Usage`] for a target out of range, one that cannot be reached, or an adapter without anything to
/// code; [`Code::NonFinite`].
pub fn code(adapter: &Adapter, target: CodeTarget) -> Result<(Adapter, CodedReport)> {
    target.check()?;
    let plan = Plan::of(adapter)?;
    let found = match target {
        CodeTarget::Error(error) => plan.for_error(error)?,
        CodeTarget::Bytes(bytes) => plan.for_bytes(bytes)?,
        CodeTarget::Bits(bits) => plan.for_bytes((bits * plan.numbers as f64 / 8.0) as u64)?,
    };
    let (adapter, bytes) = plan.assemble(&found)?;
    let report = plan.report(&found, &adapter, bytes);
    Ok((adapter, report))
}

/// An update of the adapter: an instance of one of its groups, all targets together.
struct Place {
    group: usize,
    module: Module,
}

struct Plan<'a> {
    adapter: &'a Adapter,
    /// Which groups are coded.
    chosen: Vec<bool>,
    places: Vec<Place>,
    /// Tied groups, by their numbers.
    tied: Vec<(usize, Tied)>,
    terms: Vec<Term>,
    square: f64,
    numbers: u64,
}

/// All modules at one price.
struct Found {
    coded: Vec<CodedTerms>,
    tied: Vec<CodedTied>,
    steps: Steps,
    price: f64,
    error: f64,
}

impl<'a> Plan<'a> {
    fn of(adapter: &'a Adapter) -> Result<Self> {
        let chosen: Vec<bool> = adapter.groups.iter().map(is_plain).collect();
        let groups = adapter
            .groups
            .iter()
            .enumerate()
            .filter(|(g, _)| chosen[*g]);
        let instances: Vec<(usize, usize)> = groups
            .clone()
            .flat_map(|(g, group)| (0..group.instances()).map(move |i| (g, i)))
            .collect();
        let place = |(group, instance): &(usize, usize)| {
            let module = Module::of(&whole(&adapter.groups[*group], *instance)?)?;
            Ok(Place {
                group: *group,
                module,
            })
        };
        let places = instances
            .par_iter()
            .map(place)
            .collect::<Result<Vec<_>>>()?;
        let tied = tied_groups(adapter, &chosen)?;
        let terms = places.iter().flat_map(|p| p.module.terms());
        let terms: Vec<Term> = terms.chain(tied.iter().flat_map(|t| t.1.terms())).collect();
        let square = places.iter().map(|p| p.module.square()).sum::<f64>()
            + tied.iter().map(|t| t.1.square).sum::<f64>();
        if square == 0.0 {
            let message = "nothing to code: no LoRA with an update is in the adapter";
            return Err(Error::new(Code::Usage, message));
        }
        let size = |g: &TieGroup| g.instances() * g.rank * (g.in_features + g.total_out());
        Ok(Self {
            numbers: groups.map(|(_, g)| size(g) as u64).sum::<u64>()
                + tied.iter().map(|t| t.1.numbers()).sum::<u64>(),
            adapter,
            chosen,
            places,
            tied,
            terms,
            square,
        })
    }

    /// Every module at a price; `near` is what was found at another one.
    fn at(&self, price: f64, fine: u8, near: Option<&Found>) -> Found {
        let steps = Steps { fine };
        let one = |(i, place): (usize, &Place)| {
            place.module.coded(price, steps, near.map(|n| &n.coded[i]))
        };
        let coded: Vec<CodedTerms> = self.places.par_iter().enumerate().map(one).collect();
        let tied: Vec<CodedTied> = self.tied.par_iter().map(|t| t.1.coded(price)).collect();
        let off = coded.iter().map(|c| c.square).sum::<f64>()
            + tied.iter().map(|c| c.square).sum::<f64>();
        Found {
            tied,
            error: (off / self.square).sqrt(),
            coded,
            steps,
            price,
        }
    }

    /// The highest price at which the error is no more than asked for.
    fn for_error(&self, error: f64) -> Result<Found> {
        const MOST_TRIES: usize = 8;
        /// How far below the error is near enough.
        const NEAR: f64 = 0.996;
        let fine = fine_for(error);
        let mut price = self.first_price(error * (1.0 + NEAR) / 2.0, fine);
        let (mut best, mut last): (Option<Found>, Option<Found>) = (None, None);
        // ln error as a line over ln price, by the last two tries.
        let mut slope = 0.5;
        let mut before: Option<(f64, f64)> = None;
        for _ in 0..MOST_TRIES {
            let found = self.at(price, fine, last.as_ref().or(best.as_ref()));
            let now = (found.price.ln(), found.error.max(1e-12).ln());
            if let Some(before) = before
                && (now.0 - before.0).abs() > 1e-6
            {
                slope = ((now.1 - before.1) / (now.0 - before.0)).clamp(0.1, 1.0);
            }
            before = Some(now);
            price = ((error * (1.0 + NEAR) / 2.0).ln() - now.1) / slope;
            price = (now.0 + price.clamp(-3.0, 3.0)).exp();
            let fits = found.error <= error;
            let done = fits && found.error >= error * NEAR;
            let better = best.as_ref().is_none_or(|b| found.error > b.error);
            if fits && better {
                last = best.replace(found);
            } else {
                last = Some(found);
            }
            if done {
                break;
            }
        }
        best.ok_or_else(|| {
            let message = format!("no code reaches an error of {error}");
            Error::new(Code::Usage, message).hint("store it as int8, or in floats")
        })
    }

    /// The price by the bound, and by how far a few of the modules are from it.
    fn first_price(&self, error: f64, fine: u8) -> f64 {
        /// How many modules are enough to tell.
        const SAMPLE: usize = 12;
        let square = error * error * self.square;
        let price = bound(&self.terms, square).1;
        if self.places.len() < 2 * SAMPLE {
            return price;
        }
        let sample: Vec<&Place> = self
            .places
            .iter()
            .step_by(self.places.len() / SAMPLE)
            .collect();
        let found = |place: &&Place| place.module.coded(price, Steps { fine }, None).square;
        let found: f64 = sample
            .par_iter()
            .map(found)
            .collect::<Vec<_>>()
            .iter()
            .sum();
        let expected = sample.iter().flat_map(|p| p.module.terms());
        let expected: f64 = expected.map(|t| t.at(price).1).sum();
        let ratio = (found / expected.max(f64::MIN_POSITIVE)).clamp(0.5, 2.0);
        bound(&self.terms, square / ratio).1
    }

    /// The lowest price at which the file has no more bytes than asked for.
    fn for_bytes(&self, bytes: u64) -> Result<Found> {
        const MOST_TRIES: usize = 14;
        const NEAR: f64 = 0.998;
        let (mut low, mut high) = (self.square * 1e-14, self.square);
        let mut best: Option<Found> = None;
        let mut price = bound(&self.terms, 0.0025 * self.square).1;
        for _ in 0..MOST_TRIES {
            let found = self.at(price, 8, best.as_ref());
            let len = self.assemble(&found)?.1;
            if len <= bytes {
                high = price;
                let near = len as f64 >= NEAR * bytes as f64;
                if best.as_ref().is_none_or(|b| found.error < b.error) {
                    best = Some(found);
                }
                if near {
                    break;
                }
            } else {
                low = price;
            }
            // Twice the numbers of bits a number that are too many are octaves of the error's square.
            let octaves = 2.0 * 8.0 * (len as f64 - 0.999 * bytes as f64) / self.numbers as f64;
            let guess = price * octaves.clamp(-12.0, 12.0).exp2();
            price = match low < guess && guess < high {
                true => guess,
                false => (low * high).sqrt(),
            };
        }
        best.filter(|b| b.error < 1.0).ok_or_else(|| {
            let message = format!("{bytes} bytes do not hold anything of the adapter");
            Error::new(Code::Usage, message).hint("give it more")
        })
    }

    /// The adapter, and the bytes of its file.
    fn assemble(&self, found: &Found) -> Result<(Adapter, u64)> {
        let mut adapter = self.adapter.clone();
        for ((g, _), coded) in self.tied.iter().zip(&found.tied) {
            adapter.groups[*g] = coded.group(&adapter.groups[*g])?;
        }
        let mut places = self.places.iter().zip(&found.coded).peekable();
        for (g, group) in adapter.groups.iter_mut().enumerate() {
            if !self.chosen[g] {
                continue;
            }
            let mut own = Vec::new();
            while let Some(place) = places.next_if(|p| p.0.group == g) {
                own.push(place);
            }
            *group = coded_group(group, &own, found.steps)?;
        }
        adapter.sort();
        adapter.validate()?;
        let bytes = encoded_len(&adapter, &WriteOptions::default())?;
        Ok((adapter, bytes))
    }

    fn report(&self, found: &Found, adapter: &Adapter, file_bytes: u64) -> CodedReport {
        let per_number = |bits: f64| bits / self.numbers.max(1) as f64;
        let off = found.error * found.error * self.square;
        let bits = per_number(8.0 * file_bytes as f64);
        let bound = per_number(bound(&self.terms, off).0);
        let mut report = CodedReport {
            error: found.error,
            numbers: self.numbers,
            file_bytes,
            coded_bytes: coded_bytes(adapter),
            bits,
            bound,
            gap: bits - bound,
            summary: String::new(),
            modules: self.modules(found),
            kept: self.kept(),
        };
        report.summarise();
        report
    }

    fn modules(&self, found: &Found) -> Vec<CodedModule> {
        let mut seen = vec![0; self.adapter.groups.len()];
        let mut module = |(place, coded): (&Place, &CodedTerms)| {
            let group = &self.adapter.groups[place.group];
            let instance = seen[place.group];
            seen[place.group] += 1;
            let paths = group.targets.iter();
            let paths: Vec<String> = paths.map(|t| group.module_path(t, instance)).collect();
            let square = place.module.square();
            CodedModule {
                module: paths.join("+"),
                rank_before: group.rank,
                rank: coded.terms.iter().flatten().count(),
                error: if square > 0.0 {
                    (coded.square / square).sqrt()
                } else {
                    0.0
                },
                norm: square.sqrt(),
            }
        };
        let plain = self.places.iter().zip(&found.coded).map(&mut module);
        let mut modules: Vec<CodedModule> = plain.collect();
        for ((g, tied), coded) in self.tied.iter().zip(&found.tied) {
            let group = &self.adapter.groups[*g];
            let targets = group.targets.iter().map(|t| t.module.as_str());
            modules.push(CodedModule {
                module: targets.collect::<Vec<_>>().join("+"),
                rank_before: group.rank,
                rank: group.rank,
                error: (coded.square / tied.square).sqrt(),
                norm: tied.square.sqrt(),
            });
        }
        modules
    }

    fn kept(&self) -> Vec<String> {
        let modules = self.adapter.modules().into_iter();
        let coded = |g: usize| self.chosen[g] || self.tied.iter().any(|t| t.0 == g);
        let kept = modules.filter(|m| !coded(m.group));
        kept.map(|m| m.path).collect()
    }
}

/// Whether A and B are each instance's own, with nothing beside them.
fn is_plain(group: &TieGroup) -> bool {
    let own = |f: &Factor| match f.tensor.shape() {
        [extent, _, _] => *extent == group.instances(),
        _ => group.instances() == 1,
    };
    group.factors().count() == 2 && own(&group.a) && own(&group.b)
}

/// The tied groups that have tensors of their own, with one at least that is to be coded.
fn tied_groups(adapter: &Adapter, chosen: &[bool]) -> Result<Vec<(usize, Tied)>> {
    let tensors = adapter.groups.iter().flat_map(TieGroup::factors);
    let mut uses: BTreeMap<_, usize> = BTreeMap::new();
    for (_, factor) in tensors.filter(|(_, f)| f.seed.is_none()) {
        *uses.entry(factor.tensor.data().id()).or_default() += 1;
    }
    let own = |g: &TieGroup| {
        let mut factors = g.factors();
        factors.all(|(_, f)| f.seed.is_some() || uses.get(&f.tensor.data().id()) == Some(&1))
    };
    let groups = adapter.groups.iter().enumerate();
    let groups: Vec<_> = groups
        .filter(|(g, group)| !chosen[*g] && own(group))
        .collect();
    let tied = groups
        .par_iter()
        .map(|(g, group)| Ok(Tied::of(group)?.map(|t| (*g, t))));
    Ok(tied
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// The update of all targets of an instance together.
fn whole(group: &TieGroup, instance: usize) -> Result<LowRank> {
    let mut all = group.low_rank(instance, 0)?;
    for target in 1..group.targets.len() {
        let more = group.low_rank(instance, target)?;
        all.left.extend(more.left);
        all.out += more.out;
    }
    Ok(all)
}

/// Bits of mantissa with which rounding a gain adds nothing that counts.
fn fine_for(error: f64) -> u8 {
    const LEAST: f64 = 4.0;
    const MOST: f64 = 13.0;
    ((1.0 / error).log2().ceil() + 3.0).clamp(LEAST, MOST) as u8
}

fn coded_group(group: &TieGroup, own: &[(&Place, &CodedTerms)], steps: Steps) -> Result<TieGroup> {
    let last = |c: &CodedTerms| {
        c.terms
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |k| k + 1)
    };
    let rank = own.iter().map(|(_, c)| last(c)).max().unwrap_or(0).max(1);
    let mantissas = own.first().map_or([super::module::COARSE; 2], |(p, _)| {
        p.module.mantissas(steps)
    });
    let factor = |side: usize, axis: Axis, extents: [usize; 2]| {
        let line = |coded: &CodedTerms, k: usize| {
            let sides = coded.terms.get(k)?.as_ref()?;
            Some((sides[side].line, sides[side].integers.clone()))
        };
        let lines = own
            .iter()
            .flat_map(|(_, c)| (0..rank).map(move |k| line(c, k)));
        let coded = Coded {
            axis,
            mantissa: mantissas[side],
            lines: lines.collect(),
        };
        let stacked = (group.layers.is_some() || group.experts.is_some()).then_some(own.len());
        let shape = stacked.into_iter().chain(extents).collect();
        Tensor::encoded(shape, &coded).map(Factor::trained)
    };
    Ok(TieGroup {
        rank,
        scaling: Scaling::one(rank),
        a: factor(1, Axis::Rows, [rank, group.in_features])?,
        b: factor(0, Axis::Columns, [group.total_out(), rank])?,
        ..group.clone()
    })
}

fn coded_bytes(adapter: &Adapter) -> u64 {
    let factors = adapter.groups.iter().flat_map(TieGroup::factors);
    let coded = factors.filter_map(|(_, f)| f.tensor.coded_bytes());
    coded.map(|b| b.len() as u64).sum()
}
