//! Adapters of a manifest's JSON and tensors, wherever both come from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::described::ManifestSeed;
use super::invalid::invalid;
use super::limits::MAX_MANIFEST_BYTES;
use super::manifest::{Manifest, VERSION};
use super::parts::Alpha;
use super::seeded::seeded_tensor;
use crate::adapter::{Adapter, FactorName};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor};

/// The adapter of a manifest (spec §5) whose names, order, method and digests may be any: `json` has `groups`, and
/// `base`, `extras`, `provenance`, `task` where they apply; `tl`, `method` and `requires` are not looked at. `tensors`
/// are what groups and extras name. Under `tensors` of `json` need only be what has a `seed` or `scales`; what has
/// a seed, `dtype` and `shape` need not be among `tensors`. alpha may be any number.
///
/// [`encode`](super::encode()) brings it into canonical form.
///
/// # Errors
/// [`Code::ManifestInvalid`] for JSON of another form; [`Code::TensorUndeclared`], [`Code::TensorUnused`] where names
/// and tensors do not go with each other; [`Code::SeedInvalid`], [`Code::DigestMismatch`] for a tensor that is not its
/// seed's. What the format says of shapes and numbers, `encode` checks.
pub fn from_parts(json: &[u8], mut tensors: BTreeMap<String, Tensor>) -> Result<Adapter> {
    if json.len() > MAX_MANIFEST_BYTES {
        let message = format!(
            "the manifest has {} bytes, the limit is {MAX_MANIFEST_BYTES}",
            json.len()
        );
        return Err(Error::new(Code::ManifestLimit, message));
    }
    let bad = |e: serde_json::Error| invalid(format!("manifest: {e}"));
    let mut manifest: Map<String, Value> = serde_json::from_slice(json).map_err(bad)?;
    spell_alphas(&mut manifest);
    let described = match manifest.remove("tensors") {
        Some(Value::Object(described)) => described,
        None => Map::new(),
        Some(_) => return Err(invalid("`tensors` is not an object")),
    };
    for (name, entry) in &described {
        if !tensors.contains_key(name) {
            let made = made_of_seed(entry).map_err(|e| e.tensor(name))?;
            tensors.insert(name.clone(), made);
        }
    }
    let described = tensors.iter().map(|(name, tensor)| {
        let given = described.get(name).and_then(Value::as_object);
        let entry = describe(tensor, given).map_err(|e| e.tensor(name))?;
        Ok((name.clone(), entry))
    });
    let described = described.collect::<Result<Map<_, _>>>()?;
    manifest.insert("tensors".into(), Value::Object(described));
    manifest.insert("tl".into(), VERSION.into());
    manifest.insert("method".into(), "".into());
    manifest.insert("requires".into(), Value::Array(Vec::new()));
    let manifest: Manifest = serde_json::from_value(Value::Object(manifest)).map_err(bad)?;
    manifest.check_limits()?;
    check_names(&manifest)?;
    for (name, entry) in manifest.tensors() {
        entry.check_seed().map_err(|e| e.tensor(name))?;
    }
    let tensors = tensors.iter().map(|(name, t)| (name.as_str(), t.clone()));
    manifest.assemble(&tensors.collect())
}

/// Spells every alpha as the format does.
fn spell_alphas(manifest: &mut Map<String, Value>) {
    for list in ["groups", "extras"] {
        let items = manifest.get_mut(list).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            let alpha = item.get_mut("alpha");
            if let Some((alpha, value)) = alpha.and_then(|a| a.as_f64().map(|v| (a, v)))
                && let Ok(spelled) = serde_json::to_value(Alpha::of(value))
            {
                *alpha = spelled;
            }
        }
    }
}

/// A tensor that is known by its seed alone.
fn made_of_seed(entry: &Value) -> Result<Tensor> {
    let missing =
        || invalid("described, and neither given nor made of `seed`, `dtype` and `shape`");
    let seed = entry.get("seed").ok_or_else(missing)?;
    let dtype = entry
        .get("dtype")
        .and_then(Value::as_str)
        .ok_or_else(missing)?;
    let shape = entry.get("shape").cloned().ok_or_else(missing)?;
    let shape: Vec<usize> = serde_json::from_value(shape).map_err(|_| missing())?;
    let seed: ManifestSeed = serde_json::from_value(seed.clone()).map_err(|_| missing())?;
    seeded_tensor(&seed.parse()?, dtype.parse::<Dtype>()?, &shape)
}

/// The entry of a tensor: what its bytes say, and what only the manifest knows.
fn describe(tensor: &Tensor, given: Option<&Map<String, Value>>) -> Result<Value> {
    let mut entry = Map::new();
    for key in ["scales", "seed"] {
        if let Some(value) = given.and_then(|g| g.get(key)) {
            entry.insert(key.into(), value.clone());
        }
    }
    entry.insert("dtype".into(), tensor.dtype().as_str().into());
    entry.insert("shape".into(), tensor.shape().to_vec().into());
    entry.insert("sha256".into(), Digest::of(tensor.data()).hex().into());
    Ok(Value::Object(entry))
}

/// Refuses tensors that nothing uses, and factors that do not exist.
fn check_names(manifest: &Manifest) -> Result<()> {
    let mut used = BTreeSet::new();
    for group in &manifest.groups {
        used.extend(group.names().map(|(_, name)| name.as_str()));
        for trained in &group.trained {
            let part: FactorName = trained.parse().map_err(|e: Error| invalid(e.message()))?;
            if !group.names().any(|(p, _)| p == part) {
                return Err(invalid(format!(
                    "`{trained}` is trained, and there is none"
                )));
            }
        }
    }
    used.extend(manifest.extras.iter().map(|x| x.tensor.as_str()));
    let entries = manifest.tensors();
    used.extend(entries.values().filter_map(|t| t.scales.as_deref()));
    match entries.keys().find(|name| !used.contains(name.as_str())) {
        Some(name) => {
            Err(Error::new(Code::TensorUnused, "given, and used by nothing").tensor(name))
        }
        None => Ok(()),
    }
}
