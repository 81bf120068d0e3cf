//! A merged model, recomputed bit by bit; also one that another tool merged.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::folder::{FilesReport, compare_files};
use crate::error::Result;
use crate::merge::{
    Control, MergeInput, MergePlan, Merged, Merger, PlanOptions, Rounding, TensorMerge, plan,
};
use crate::quant::Quantised;
use crate::safetensors::{Checkpoint, SafetensorsFile, TensorInfo};
use crate::tensor::Dtype;

/// Bytes compared at a time.
const CHUNK: usize = 4 << 20;
/// Upper ends of the histogram's classes, in units in the last place.
const CLASSES: [u32; 6] = [0, 1, 2, 4, 16, 256];

/// The rounding that a merged model obeys in every bit. Serialises as it displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obeyed {
    /// `both`: the two agree on this model.
    Both,
    /// `peft` or `peft-safe`: this one, and not the other.
    Only(Rounding),
}

impl fmt::Display for Obeyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Both => f.pad("both"),
            Self::Only(rounding) => rounding.fmt(f),
        }
    }
}

impl Serialize for Obeyed {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a merged model turned out to be.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MergedReport {
    /// The rounding that the file obeys in every bit; none where neither is.
    pub obeys: Option<Obeyed>,
    /// What computed: `cpu`, or a GPU with its name.
    pub device: String,
    /// The rounding that it comes closest to, to which the counts below refer.
    pub closest: Rounding,
    /// Adapted tensors compared.
    pub tensors_merged: usize,
    /// Elements of them.
    pub elements: u64,
    /// Elements with other bits than recomputed.
    pub differing: u64,
    /// Largest distance in units in the last place; the largest number there is for an element that
    /// is not finite.
    pub max_ulp: u32,
    /// Elements that are NaN or infinite, where the recomputed one is a number.
    pub not_finite: u64,
    /// Elements by distance.
    pub histogram: Vec<UlpClass>,
    /// Adapted tensors that differ.
    pub tensors: Vec<TensorDifference>,
    /// Other tensors compared byte by byte.
    pub tensors_untouched: usize,
    /// Those of them that are not byte-equal to the base.
    pub untouched_differing: Vec<String>,
    /// Tensors that only the recomputed model has, or with another dtype or shape.
    pub missing: Vec<String>,
    /// Tensors that only the merged model has.
    pub unexpected: Vec<String>,
    /// The other files, the metadata of the weights, and what was not looked at.
    pub files: FilesReport,
}

/// A class of the histogram.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UlpClass {
    /// Smallest distance.
    pub from: u32,
    /// Largest distance; none for the last class.
    pub to: Option<u32>,
    /// Elements.
    pub elements: u64,
}

/// An adapted tensor that differs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorDifference {
    /// Name.
    pub name: String,
    /// Elements with other bits.
    pub differing: u64,
    /// Largest distance in units in the last place.
    pub max_ulp: u32,
}

impl TensorDifference {
    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            differing: 0,
            max_ulp: 0,
        }
    }
}

impl MergedReport {
    /// Whether all that was compared is base plus adapters, with no element further off than
    /// `max_ulp`. What was not compared, [`FilesReport::not_compared`] says.
    pub fn is_equal(&self, max_ulp: u32) -> bool {
        self.max_ulp <= max_ulp
            && self.not_finite == 0
            && self.files.differing.is_empty()
            && self.untouched_differing.is_empty()
            && self.missing.is_empty()
            && self.unexpected.is_empty()
    }
}

/// Recomputes the merge under both roundings and compares; every other tensor must be byte-equal,
/// and so must every other file of a model directory be to what a merge writes there. How the
/// tensors are spread over shards is free, and so is the form of a JSON file.
///
/// # Errors
/// Those of [`plan`]; [`crate::Code::NonFiniteResult`]; [`crate::Code::Io`]; [`crate::Code::Interrupted`].
pub fn verify_merged(
    base: &Checkpoint,
    inputs: &[MergeInput],
    merged: &Checkpoint,
    options: &PlanOptions,
    control: &Control<'_>,
) -> Result<MergedReport> {
    let plans = plans(base, inputs, &with_dtype(base, merged, options)?)?;
    let mut report = compare_weights(&plans, merged, control)?;
    // Files do not depend on the rounding.
    report.files = compare_files(&plans[0], merged, control)?;
    Ok(report)
}

/// As [`verify_merged`], of the tensors alone.
///
/// # Errors
/// As [`verify_merged`].
pub fn verify_merged_weights(
    base: &Checkpoint,
    inputs: &[MergeInput],
    merged: &Checkpoint,
    options: &PlanOptions,
    control: &Control<'_>,
) -> Result<MergedReport> {
    let plans = plans(base, inputs, &with_dtype(base, merged, options)?)?;
    compare_weights(&plans, merged, control)
}

/// Compares the tensors of a model with those of the plans under each rounding.
fn compare_weights(
    plans: &[MergePlan<'_>; 2],
    merged: &Checkpoint,
    control: &Control<'_>,
) -> Result<MergedReport> {
    let base = plans[0].base();
    let planned: BTreeMap<&str, usize> = plans[0]
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, t)| (t.name.as_str(), i))
        .collect();
    let mut counts = [Counts::default(), Counts::default()];
    let mut tally = Tally::default();
    let mut merger = Merger::new(control, false, 0);
    for (name, place) in merged.tensors() {
        let (file, info) = merged.at(*place);
        let Some(at) = planned.get(name.as_str()) else {
            tally.compare_untouched(&plans[0], (file, info), control)?;
            continue;
        };
        let tensor = &plans[0].tensors()[*at];
        if (tensor.dtype, &tensor.shape) != (info.dtype, &info.shape) {
            tally.missing.push(name.clone());
            continue;
        }
        match tensor.is_touched() {
            true => tally.merged += 1,
            false => tally.untouched += 1,
        }
        compare_merged(&mut merger, plans, *at, (file, info), &mut counts, control)?;
    }
    let kept = base.tensors().iter().filter(|(_, l)| !plans[0].drops(**l));
    let kept = kept.map(|(name, _)| name.as_str());
    let expected = kept.chain(planned.into_keys());
    let absent = expected.filter(|n| merged.locate(n).is_none());
    tally.missing.extend(absent.map(str::to_owned));
    tally.missing.sort();
    tally.missing.dedup();
    Ok(tally.finish(counts, control.device()))
}

/// The options, with the dtype that the merged model has of what the base stores quantised, where none is
/// asked for.
fn with_dtype(
    base: &Checkpoint,
    merged: &Checkpoint,
    options: &PlanOptions,
) -> Result<PlanOptions> {
    let mut options = options.clone();
    if options.dtype.is_none()
        && let Some(quantised) = Quantised::of(base)?
    {
        let mut names = quantised.weights().iter().map(|w| w.name.as_str());
        let dtype = names.find_map(|n| Some(merged.info(n)?.dtype));
        options.dtype = dtype.filter(|d| d.is_float());
    }
    Ok(options)
}

/// The plan under each rounding.
fn plans<'a>(
    base: &'a Checkpoint,
    inputs: &'a [MergeInput],
    options: &PlanOptions,
) -> Result<[MergePlan<'a>; 2]> {
    let with = |rounding| {
        let options = PlanOptions {
            rounding,
            ..options.clone()
        };
        plan(base, inputs, &options)
    };
    Ok([with(Rounding::Peft)?, with(Rounding::PeftSafe)?])
}

/// What was compared, besides the merged tensors' elements.
#[derive(Default)]
struct Tally {
    merged: usize,
    untouched: usize,
    untouched_differing: Vec<String>,
    missing: Vec<String>,
    unexpected: Vec<String>,
}

impl Tally {
    /// Compares a tensor that no adapter touches with the base's.
    fn compare_untouched(
        &mut self,
        plan: &MergePlan<'_>,
        (file, info): (&SafetensorsFile, &TensorInfo),
        control: &Control<'_>,
    ) -> Result<()> {
        let name = || info.name.clone();
        let base = plan.base();
        match base
            .locate(&info.name)
            .filter(|l| !plan.drops(*l))
            .map(|l| base.at(l))
        {
            None => self.unexpected.push(name()),
            Some((_, b)) if (b.dtype, &b.shape) != (info.dtype, &info.shape) => {
                self.missing.push(name());
            }
            Some(source) => {
                self.untouched += 1;
                if !same_bytes(source, (file, info), control)? {
                    self.untouched_differing.push(name());
                }
            }
        }
        Ok(())
    }

    fn finish(self, [peft, safe]: [Counts; 2], device: String) -> MergedReport {
        let obeys = match (peft.differing == 0, safe.differing == 0) {
            (true, true) => Some(Obeyed::Both),
            (true, false) => Some(Obeyed::Only(Rounding::Peft)),
            (false, true) => Some(Obeyed::Only(Rounding::PeftSafe)),
            (false, false) => None,
        };
        let safe_is_closer = (safe.differing, safe.max_ulp) < (peft.differing, peft.max_ulp);
        let (closest, counts) = if safe_is_closer {
            (Rounding::PeftSafe, safe)
        } else {
            (Rounding::Peft, peft)
        };
        let class = |(i, elements): (usize, &u64)| UlpClass {
            from: if i == 0 { 0 } else { CLASSES[i - 1] + 1 },
            to: CLASSES.get(i).copied(),
            elements: *elements,
        };
        MergedReport {
            obeys,
            device,
            closest,
            tensors_merged: self.merged,
            elements: counts.elements,
            differing: counts.differing,
            max_ulp: counts.max_ulp,
            not_finite: counts.not_finite,
            histogram: counts.classes.iter().enumerate().map(class).collect(),
            tensors: counts.tensors,
            tensors_untouched: self.untouched,
            untouched_differing: self.untouched_differing,
            missing: self.missing,
            unexpected: self.unexpected,
            files: FilesReport::weights_only(),
        }
    }
}

/// Differences from the model recomputed under one rounding.
#[derive(Default)]
struct Counts {
    elements: u64,
    differing: u64,
    max_ulp: u32,
    not_finite: u64,
    classes: [u64; CLASSES.len() + 1],
    tensors: Vec<TensorDifference>,
}

fn compare_merged<'a>(
    merger: &mut Merger<'a>,
    plans: &[MergePlan<'a>; 2],
    at: usize,
    (file, info): (&SafetensorsFile, &TensorInfo),
    counts: &mut [Counts; 2],
    control: &Control<'_>,
) -> Result<()> {
    let mut merges = Vec::with_capacity(plans.len());
    for plan in plans {
        merges.push(TensorMerge::new(plan, &plan.tensors()[at])?);
    }
    let start = file.file_range(info).start;
    let mut differences = plans
        .each_ref()
        .map(|_| TensorDifference::empty(&info.name));
    let mut have = Vec::new();
    let mut sink = |merged: Merged<'_>| {
        let len = merged.new.len();
        // The rows come once for each rounding.
        if merged.part == 0 {
            let row_bytes = len / merged.rows.len().max(1);
            have.resize(len, 0);
            file.read_at(&mut have, start + (merged.rows.start * row_bytes) as u64)?;
            control.advance(len as u64);
        }
        let (counts, difference) = (&mut counts[merged.part], &mut differences[merged.part]);
        compare_block(info.dtype, &merged.new, &have, counts, difference);
        Ok(())
    };
    merger.group(0, merges, &mut sink)?;
    merger.finish(&mut sink)?;
    for (counts, difference) in counts.iter_mut().zip(differences) {
        counts.max_ulp = counts.max_ulp.max(difference.max_ulp);
        counts.differing += difference.differing;
        if difference.differing > 0 {
            counts.tensors.push(difference);
        }
    }
    Ok(())
}

fn compare_block(
    dtype: Dtype,
    want: &[u8],
    have: &[u8],
    counts: &mut Counts,
    difference: &mut TensorDifference,
) {
    let width = dtype.bits() / 8;
    counts.elements += (want.len() / width) as u64;
    if want == have {
        counts.classes[0] += (want.len() / width) as u64;
        return;
    }
    for (a, b) in want.chunks_exact(width).zip(have.chunks_exact(width)) {
        let ulp = match a == b {
            true => 0,
            // The largest number and infinity are neighbours, and so are infinity and a NaN.
            false if !is_finite(dtype, b) => {
                counts.not_finite += 1;
                u32::MAX
            }
            false => ordinal(a).abs_diff(ordinal(b)).min(u32::MAX.into()) as u32,
        };
        let class = CLASSES
            .iter()
            .position(|end| ulp <= *end)
            .unwrap_or(CLASSES.len());
        counts.classes[class] += 1;
        if a != b {
            difference.differing += 1;
            // +0 and −0 are one place, and still other bits.
            difference.max_ulp = difference.max_ulp.max(ulp.max(1));
        }
    }
}

/// Whether a float of a merged dtype is a number.
fn is_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let exponent = match dtype {
        Dtype::F16 => 0x7c00,
        Dtype::BF16 => 0x7f80,
        _ => 0x7f80_0000,
    };
    u64::from_le_bytes(wide) & exponent != exponent
}

/// A float's place among all floats of its dtype, so that neighbours are one apart.
fn ordinal(bytes: &[u8]) -> i64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = i64::from_le_bytes(wide);
    let sign = 1i64 << (8 * bytes.len() - 1);
    if bits & sign == 0 {
        bits
    } else {
        -(bits ^ sign)
    }
}

fn same_bytes(
    one: (&SafetensorsFile, &TensorInfo),
    two: (&SafetensorsFile, &TensorInfo),
    control: &Control<'_>,
) -> Result<bool> {
    let (range, mut other) = (one.0.file_range(one.1), two.0.file_range(two.1).start);
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let mut at = range.start;
    while at < range.end {
        control.check()?;
        let len = (range.end - at).min(CHUNK as u64) as usize;
        let [a, b] = &mut buffers;
        one.0.read_at(&mut a[..len], at)?;
        two.0.read_at(&mut b[..len], other)?;
        if a[..len] != b[..len] {
            return Ok(false);
        }
        at += len as u64;
        other += len as u64;
        control.advance(len as u64);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where the neighbour of the largest number passes for one unit off.
    #[test]
    fn what_is_not_finite_is_within_no_distance() {
        let numbers = [
            (Dtype::F32, f32::MAX.to_le_bytes().to_vec()),
            (Dtype::BF16, 0x7f7fu16.to_le_bytes().to_vec()),
            (Dtype::F16, 0x7bffu16.to_le_bytes().to_vec()),
        ];
        for (dtype, want) in numbers {
            let mut have = want.clone();
            // The next bit pattern is infinity, the one after it a NaN.
            for _ in 0..2 {
                let at = (0..have.len()).find(|i| have[*i] != 0xff).unwrap();
                have[..at].fill(0);
                have[at] += 1;
                let (mut counts, mut difference) =
                    (Counts::default(), TensorDifference::empty("w"));
                compare_block(dtype, &want, &have, &mut counts, &mut difference);
                assert_eq!(
                    (counts.not_finite, difference.max_ulp),
                    (1, u32::MAX),
                    "{dtype}"
                );
            }
        }
    }

    #[test]
    fn places_of_neighbours_are_one_apart() {
        let of = |x: f32| ordinal(&x.to_le_bytes());
        assert_eq!(of(1.0f32.next_up()) - of(1.0), 1);
        assert_eq!(of(f32::from_bits(1)) - of(-f32::from_bits(1)), 2);
        assert_eq!(of(0.0), of(-0.0));
        assert_eq!(
            ordinal(&0x3f81u16.to_le_bytes()) - ordinal(&0x3f80u16.to_le_bytes()),
            1
        );
    }
}
