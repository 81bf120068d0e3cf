//! Whole tensors of an adapter that are the base's own: replacing them changes nothing.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::adapter::{Adapter, ExtraRole};
use crate::base::architecture::Architecture;
use crate::base::heads;
use crate::base::names::Names;
use crate::base::ties::Ties;
use crate::error::Result;
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Tensor;

/// Elements that are compared at once where dtypes differ.
const CHUNK: usize = 1 << 16;

/// A tensor that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// What the adapter called it.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// Takes the whole tensors out of an adapter that have the base's very values, in any float type.
///
/// One that the model shares with a name which the adapter changes stays, since it says that the two differ.
///
/// # Errors
/// Those of [`Names::resolve`]; [`crate::Code::Io`].
pub(super) fn leave_out_equal(adapter: &mut Adapter, base: &Checkpoint) -> Result<Vec<LeftOut>> {
    if adapter.extras.is_empty() {
        return Ok(Vec::new());
    }
    let places = places(adapter, base)?;
    let names = adapter.base_tensors();
    let first = names.len() - adapter.extras.len();
    let mut equal = Vec::with_capacity(adapter.extras.len());
    for (extra, place) in adapter.extras.iter().zip(&places[first..]) {
        let whole = [ExtraRole::Replace, ExtraRole::Bias, ExtraRole::BaseLayer];
        equal.push(match place {
            Some(place) if whole.contains(&extra.role) => {
                let (file, info) = base.at(*place);
                are_equal(&extra.tensor, &file.mapped(info)?)?
            }
            _ => false,
        });
    }
    // What keeps a place: another name of it that is changed.
    let changed: BTreeSet<(Location, &str)> = names
        .iter()
        .zip(&places)
        .enumerate()
        .filter(|(i, _)| i.checked_sub(first).is_none_or(|e| !equal[e]))
        .filter_map(|(_, (name, place))| Some(((*place)?, name.as_str())))
        .collect();
    let mut left = Vec::new();
    let mut at = 0;
    adapter.extras.retain(|extra| {
        let place = places[first + at];
        let shared = changed
            .iter()
            .any(|(p, name)| Some(*p) == place && *name != extra.name);
        let goes = equal[at] && !shared;
        at += 1;
        if goes {
            left.push(LeftOut {
                name: extra.name.clone(),
                bytes: extra.tensor.byte_len(),
            });
        }
        !goes
    });
    Ok(left)
}

/// Where each name of [`Adapter::base_tensors`] is stored, as one tensor: of an output that the base leaves out, its
/// embedding.
fn places(adapter: &Adapter, base: &Checkpoint) -> Result<Vec<Option<Location>>> {
    let wanted = adapter.base_tensors();
    let architecture = Architecture::of(base)?;
    let names = Names::new(base, &architecture);
    let ties = Ties::of(base, &architecture, &names)?;
    let replaced = adapter.extras.iter().map(|e| e.name.as_str());
    let absent = heads::absent(base, adapter.task.as_deref(), replaced);
    let may_miss = |name: &str| absent.contains(name) || ties.may_miss(name);
    let found = names.resolve(&wanted, &[], may_miss)?;
    let place = |(found, name): (Option<crate::base::cut::Found<Location>>, &String)| match found {
        Some(found) => found.as_whole(),
        None => ties.stands_for(name),
    };
    Ok(found.into_iter().zip(&wanted).map(place).collect())
}

fn are_equal(one: &Tensor, other: &Tensor) -> Result<bool> {
    if one.shape() != other.shape() {
        return Ok(false);
    }
    if one.dtype() == other.dtype() {
        return Ok(one.same_bytes(other));
    }
    if !one.dtype().is_float() || !other.dtype().is_float() {
        return Ok(false);
    }
    let bytes = |t: &Tensor| CHUNK * t.dtype().bits() / 8;
    let parts = one
        .data()
        .chunks(bytes(one))
        .zip(other.data().chunks(bytes(other)));
    for (a, b) in parts {
        let part = |t: &Tensor, bytes: &[u8]| {
            let count = bytes.len() * 8 / t.dtype().bits();
            Tensor::new(t.dtype(), vec![count], bytes.to_vec())?.to_f32()
        };
        let (a, b) = (part(one, a)?, part(other, b)?);
        if a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a person is told of them.
pub(super) fn told(left: &[LeftOut]) -> Option<String> {
    const LISTED: usize = 3;
    if left.is_empty() {
        return None;
    }
    let bytes: u64 = left.iter().map(|l| l.bytes).sum();
    let listed: Vec<String> = left
        .iter()
        .take(LISTED)
        .map(|l| format!("`{}`", l.name))
        .collect();
    let more = match left.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let whole = match left.len() {
        1 => "1 whole tensor is the base's own and was".to_owned(),
        n => format!("{n} whole tensors are the base's own and were"),
    };
    Some(format!(
        "{whole} left out, {bytes} bytes: {}{more}",
        listed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Extra;
    use crate::tensor::Dtype;
    use std::path::Path;

    fn base() -> Checkpoint {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Checkpoint::open(root.join("fixtures/llama-tiny")).unwrap()
    }

    fn stored(base: &Checkpoint, name: &str) -> Tensor {
        let (file, info) = base.at(base.locate(name).unwrap());
        file.mapped(info).unwrap()
    }

    fn of(extras: Vec<(&str, Tensor)>) -> Adapter {
        let extra = |(name, t): (&str, Tensor)| Extra::new(name, ExtraRole::Replace, t);
        Adapter {
            extras: extras.into_iter().map(extra).collect(),
            ..Adapter::default()
        }
    }

    /// Breaks where a tensor that differs is lost, or one that is the base's is kept, in whatever type.
    #[test]
    fn what_is_the_bases_own_goes() {
        let base = base();
        let (norm, head) = ("model.norm.weight", "lm_head.weight");
        let wide = stored(&base, head);
        let wide = Tensor::from_f32(wide.shape().to_vec(), &wide.to_f32().unwrap()).unwrap();
        let mut values = wide.to_f32().unwrap();
        values[7] += 1.0;
        let changed = Tensor::from_f32(wide.shape().to_vec(), &values).unwrap();
        let mut adapter = of(vec![(norm, stored(&base, norm)), (head, wide)]);
        let left = leave_out_equal(&mut adapter, &base).unwrap();
        let names: Vec<&str> = left.iter().map(|l| l.name.as_str()).collect();
        assert_eq!((names, adapter.extras.len()), (vec![norm, head], 0));
        assert!(told(&left).unwrap().starts_with("2 whole tensors"));
        let mut adapter = of(vec![(norm, stored(&base, norm)), (head, changed)]);
        let left = leave_out_equal(&mut adapter, &base).unwrap();
        assert_eq!((left.len(), adapter.extras[0].name.as_str()), (1, head));
    }

    /// Breaks where an output that stays as it was becomes the changed embedding that it was tied to.
    #[test]
    fn one_of_two_tied_names_stays() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let base = Checkpoint::open(root.join("fixtures/models/llama-gqa-tied")).unwrap();
        let (input, output) = ("model.embed_tokens.weight", "lm_head.weight");
        let own = stored(&base, input);
        let other =
            Tensor::narrowed(Dtype::F32, own.shape().to_vec(), &vec![1.0; own.len()]).unwrap();
        let mut adapter = of(vec![(input, other), (output, own.clone())]);
        assert_eq!(leave_out_equal(&mut adapter, &base).unwrap(), []);
        let mut adapter = of(vec![(input, own.clone()), (output, own)]);
        assert_eq!(leave_out_equal(&mut adapter, &base).unwrap().len(), 2);
    }
}
