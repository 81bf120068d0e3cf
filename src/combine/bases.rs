//! Whether adapters are of one base.

use std::collections::{BTreeMap, BTreeSet};

use super::input::CombineInput;
use crate::adapter::{Adapter, BaseModel, unquantised_name};
use crate::convert::{check_fingerprint, fingerprinted};
use crate::error::{Code, Error, Result};
use crate::safetensors::Checkpoint;

/// What the result says of its base.
///
/// Given the base, the adapters that carry a fingerprint have to be of it, and names do not matter. Without it, names
/// have to be one, owner and quantisation aside; a fingerprint stays where it is about the weights that the result is
/// about.
///
/// # Errors
/// [`Code::AdaptersConflict`] for adapters of different bases; those of [`check_fingerprint`].
pub(super) fn base_of(
    inputs: &[CombineInput],
    result: &Adapter,
    base: Option<&Checkpoint>,
) -> Result<Option<BaseModel>> {
    let known = || {
        inputs
            .iter()
            .filter_map(|i| Some((i, i.adapter.base.as_ref()?)))
    };
    let first_name =
        known().find_map(|(_, b)| b.name.clone().map(|name| (name, b.revision.clone())));
    let (name, revision) = first_name.unzip();
    let all_say = |r: &Option<String>| known().all(|(_, b)| b.name.is_none() || b.revision == *r);
    let mut model = BaseModel {
        revision: revision.flatten().filter(|r| all_say(&Some(r.clone()))),
        name,
        weights: None,
    };
    if let Some(base) = base {
        for (input, _) in known().filter(|(_, b)| b.weights.is_some()) {
            check_fingerprint(&input.adapter, base, &[]).map_err(|e| e.file(&input.label))?;
        }
        let named = Adapter {
            base: Some(model),
            ..result.clone()
        };
        return fingerprinted(&named, base).map(Some);
    }
    check_names(inputs)?;
    let about = |a: &Adapter| a.base_tensors().into_iter().collect::<BTreeSet<String>>();
    let mut told: BTreeMap<BTreeSet<String>, (&CombineInput, &String)> = BTreeMap::new();
    for (input, b) in known() {
        let Some(own) = &b.weights else { continue };
        let (other, first) = *told.entry(about(&input.adapter)).or_insert((input, own));
        if first != own {
            let what = "the weights that they change have other fingerprints";
            return Err(different(other, input, what));
        }
    }
    let weights = told.get(&about(result)).map(|(_, own)| (*own).clone());
    model.weights = weights;
    Ok((model != BaseModel::default()).then_some(model))
}

/// The longest that the result may say of its base: what a number of bytes has to hold.
pub(super) fn longest_base(inputs: &[CombineInput], given: bool) -> Option<BaseModel> {
    let known = || inputs.iter().filter_map(|i| i.adapter.base.as_ref());
    let longest = |of: fn(&BaseModel) -> &Option<String>| {
        let texts = known().filter_map(|b| of(b).as_ref());
        texts.max_by_key(|text| text.len()).cloned()
    };
    let weights = given || known().any(|b| b.weights.is_some());
    Some(BaseModel {
        name: longest(|b| &b.name),
        revision: longest(|b| &b.revision),
        weights: weights.then(|| "0".repeat(64)),
    })
}

fn check_names(inputs: &[CombineInput]) -> Result<()> {
    let name = |i: &CombineInput| i.adapter.base.as_ref().and_then(|b| b.name.clone());
    let mut named = inputs.iter().filter_map(|i| Some((i, name(i)?)));
    let Some((first, of)) = named.next() else {
        return Ok(());
    };
    match named.find(|(_, other)| plain(other) != plain(&of)) {
        None => Ok(()),
        Some((other, name)) => Err(different(first, other, &format!("`{of}` and `{name}`"))),
    }
}

fn different(one: &CombineInput, other: &CombineInput, what: &str) -> Error {
    let message = format!(
        "`{}` and `{}` are of different bases: {what}",
        one.label, other.label
    );
    Error::new(Code::AdaptersConflict, message)
        .hint("if they are one, give the base model; names are not compared then")
}

/// A name without owner and quantisation, in letters and digits.
fn plain(name: &str) -> String {
    let name = unquantised_name(name);
    name.chars().filter(|c| c.is_alphanumeric()).collect()
}
