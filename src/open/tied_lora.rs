//! A folder of PEFT's Tied-LoRA: PEFT loads its weights, tlkit the `.tl` beside them. They have to be one adapter.

use std::collections::BTreeMap;
use std::path::Path;

use crate::adapter::{Adapter, FactorName, TieGroup};
use crate::error::{Code, Error, Result};
use crate::peft::{PICKLE_FILE, WEIGHTS_FILE, read_weights};

/// What PEFT puts before the path of a module.
const PREFIX: &str = "base_model.model.";
/// What follows the path, before the name of a factor.
const FACTOR: &str = ".tied_lora_";

/// Where a module's numbers are: its group, and instance and target in it.
struct Place<'a> {
    group: &'a TieGroup,
    instance: usize,
    target: usize,
}

/// Compares each tensor that PEFT would load from a folder with the `.tl` in it, byte by byte. A folder without
/// weights has nothing to differ.
///
/// # Errors
/// [`Code::TlBesideDiffers`], naming the first tensor that the `.tl` has not, or has otherwise; what reading the
/// weights fails with.
pub(super) fn check_beside(dir: &Path, adapter: &Adapter) -> Result<()> {
    if ![WEIGHTS_FILE, PICKLE_FILE]
        .iter()
        .any(|name| dir.join(name).exists())
    {
        return Ok(());
    }
    let (path, tensors) = read_weights(dir)?;
    let places: BTreeMap<String, Place<'_>> = adapter.groups.iter().flat_map(places).collect();
    for (key, tensor) in &tensors {
        let name = key.strip_prefix(PREFIX).unwrap_or(key);
        let same = match name.split_once(FACTOR) {
            Some((module, rest)) => places
                .get(module)
                .and_then(|place| factor(place, rest))
                .is_some_and(|bytes| bytes == &**tensor.data()),
            None => {
                let name = name.replace(".base_layer.", ".");
                let mut extras = adapter.extras.iter().filter(|extra| extra.name == name);
                extras.any(|extra| **extra.tensor.data() == **tensor.data())
            }
        };
        if !same {
            let message = "is not what the .tl beside it has: one of them was changed alone";
            return Err(Error::new(Code::TlBesideDiffers, message)
                .file(&path)
                .tensor(key)
                .hint("save the adapter again, or write the .tl from the weights with `tlkit.peft.folder_to_tl`"));
        }
    }
    Ok(())
}

fn places(group: &TieGroup) -> impl Iterator<Item = (String, Place<'_>)> {
    (0..group.instances()).flat_map(move |instance| {
        group.targets.iter().enumerate().map(move |(at, target)| {
            let place = Place {
                group,
                instance,
                target: at,
            };
            (group.module_path(target, instance), place)
        })
    })
}

/// The bytes that the module at a place has of the factor in `A.weight`.
fn factor<'a>(place: &Place<'a>, rest: &str) -> Option<&'a [u8]> {
    let name: FactorName = rest.strip_suffix(".weight")?.parse().ok()?;
    let group = place.group;
    let (_, factor) = group.factors().find(|(known, _)| *known == name)?;
    let tensor = &factor.tensor;
    let own_axes = match name {
        FactorName::U | FactorName::V => 1,
        FactorName::A | FactorName::B | FactorName::C => 2,
    };
    let bytes: &'a [u8] = tensor.data();
    let stacked = tensor.shape().len() > own_axes;
    let (bytes, rows) = match stacked {
        true => {
            let one = bytes.len().checked_div(*tensor.shape().first()?)?;
            let start = one.checked_mul(place.instance)?;
            (
                bytes.get(start..start.checked_add(one)?)?,
                *tensor.shape().get(1)?,
            )
        }
        false => (bytes, *tensor.shape().first()?),
    };
    let split = matches!(name, FactorName::B | FactorName::V) && rows == group.total_out();
    if !split {
        return Some(bytes);
    }
    let row = bytes.len().checked_div(rows)?;
    let start: usize = group.targets[..place.target].iter().map(|t| t.out).sum();
    let end = start + group.targets.get(place.target)?.out;
    bytes.get(start * row..end * row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{NoBlobs, TlFile};
    use crate::fs::Existing;
    use crate::safetensors::write_tensors;
    use crate::tensor::{Bytes, Tensor};

    /// Breaks where a folder is opened whose weights, which PEFT loads, are not those of its `.tl`.
    #[test]
    fn weights_that_differ_from_the_tl_are_refused() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/style-tl6.tl");
        let adapter = TlFile::open(&fixture).unwrap().load(&NoBlobs).unwrap();
        let dir = tempfile::tempdir().unwrap();
        check_beside(dir.path(), &adapter).unwrap();
        let group = &adapter.groups[0];
        let (layer, target) = (group.instances() - 1, group.targets.len() - 1);
        let module = group.module_path(&group.targets[target], layer);
        let low_rank = group.low_rank(layer, target).unwrap();
        let v = group.v.as_ref().unwrap().tensor.index_first(layer).unwrap();
        let first: usize = group.targets[..target].iter().map(|t| t.out).sum();
        let v = v.slice_first(first..first + low_rank.out).unwrap();
        let weights = |a: &Tensor, name: &str, v: &Tensor| {
            let key = |factor| format!("base_model.model.{name}.tied_lora_{factor}.weight");
            let tensors = [(key("A"), a.clone()), (key("v"), v.clone())];
            let path = dir.path().join(WEIGHTS_FILE);
            write_tensors(&path, Existing::Replace, &[], &tensors).unwrap();
            check_beside(dir.path(), &adapter)
        };
        let a = &group.a.tensor;
        weights(a, &module, &v).unwrap();
        let mut bytes = v.data().to_vec();
        bytes[5] ^= 1;
        let other = Tensor::new(v.dtype(), v.shape().to_vec(), Bytes::from(bytes)).unwrap();
        for (name, v) in [(&*module, &other), ("model.layers.0.nothing", &v)] {
            let error = weights(a, name, v).unwrap_err();
            assert_eq!(error.code(), Code::TlBesideDiffers, "{error}");
        }
    }
}
