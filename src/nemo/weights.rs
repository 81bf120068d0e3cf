//! The state dicts of all ranks as the factors of each site and layer.

use std::collections::BTreeMap;

use super::modules::Site;
use crate::adapter::MAX_LAYERS;
use crate::error::{Code, Error, Result};
use crate::peft::json::cut;
use crate::peft::pickle::{Limits, read_torch_bytes};
use crate::tensor::{Tensor, shape_text};

/// The factors of one layer.
#[derive(Debug, Default)]
pub(super) struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    pub(super) u: Option<Tensor>,
    pub(super) v: Option<Tensor>,
}

impl Parts {
    /// A and B.
    pub(super) fn pair(&self) -> Result<(&Tensor, &Tensor)> {
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => Ok((a, b)),
            (None, _) => Err(Error::new(Code::MissingFactor, "has no linear_in")),
            (_, None) => Err(Error::new(
                Code::MissingFactor,
                "has linear_in and no linear_out",
            )),
        }
    }
}

/// Sites, and the layers of each.
pub(super) type Sites = BTreeMap<Site, BTreeMap<u32, Parts>>;

/// What a key of the state dict is.
#[derive(Debug, PartialEq)]
struct Key {
    site: Site,
    layer: u32,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    In,
    Out,
    U,
    V,
}

/// How the ranks of a run share a tensor.
enum Join {
    Rows,
    Columns,
    /// Each has all of it.
    Same,
}

/// Reads the state dicts of all ranks, joined.
///
/// # Errors
/// Those of [`read_torch_archive`](crate::peft::pickle::read_torch_archive); [`Code::UnknownAdapterTensor`],
/// [`Code::UnsupportedPeftType`], [`Code::UnsupportedPositionEmbedding`], [`Code::EmptyTensor`] for tensors that
/// are no factors; [`Code::FactorShape`] where ranks do not fit one another.
pub(super) fn read(ranks: &[Vec<u8>]) -> Result<Sites> {
    let mut dicts = Vec::with_capacity(ranks.len());
    for bytes in ranks {
        dicts.push(read_torch_bytes(bytes, Limits::default())?);
    }
    let Some((first, others)) = dicts.split_first() else {
        return Ok(Sites::new());
    };
    if others.iter().any(|d| !d.keys().eq(first.keys())) {
        let message = "the ranks of the run have other tensors than one another";
        return Err(Error::new(Code::UnsupportedMegatron, message));
    }
    let mut sites = Sites::new();
    for (name, tensor) in first {
        let key = Key::of(name).map_err(|e| e.tensor(name))?;
        let mut all = vec![tensor];
        all.extend(others.iter().filter_map(|d| d.get(name)));
        let tensor = joined(&all, key.join()).map_err(|e| e.tensor(name))?;
        if tensor.is_empty() {
            let message = format!("has shape {}", shape_text(tensor.shape()));
            return Err(Error::new(Code::EmptyTensor, message).tensor(name));
        }
        let parts = sites.entry(key.site).or_default();
        let parts = parts.entry(key.layer).or_default();
        let place = match key.part {
            Part::In => &mut parts.a,
            Part::Out => &mut parts.b,
            Part::U => &mut parts.u,
            Part::V => &mut parts.v,
        };
        // `model.` and `model.module.` are one name.
        if place.replace(tensor).is_some() {
            return Err(Error::new(Code::DuplicateKey, "stands twice").tensor(name));
        }
    }
    Ok(sites)
}

impl Key {
    fn of(name: &str) -> Result<Self> {
        let unknown = || {
            let message = "is no tensor of an adapter in a decoder's layer";
            Error::new(Code::UnknownAdapterTensor, message)
        };
        if name.contains(".position_embeddings.") || name.contains("_adapter.mlp.") {
            super::config::check_positions(Some("told by its tensors"))?;
        }
        let inner = name.strip_prefix("model.").ok_or_else(unknown)?;
        let inner = inner.strip_prefix("module.").unwrap_or(inner);
        let layers = ["decoder.layers.", "language_model.encoder.layers."];
        let inner = layers.iter().find_map(|p| inner.strip_prefix(p));
        let (layer, rest) = inner.and_then(|i| i.split_once('.')).ok_or_else(unknown)?;
        let (block, rest) = match rest.split_once(".adapter_layer.") {
            Some((block, rest)) => (block, rest),
            None => ("", rest.strip_prefix("adapter_layer.").ok_or_else(unknown)?),
        };
        let (adapter, rest) = rest.split_once('.').ok_or_else(unknown)?;
        let (site, end) = Site::of(block, adapter, rest)?;
        let part = match end {
            "linear_in.weight" => Part::In,
            "linear_out.weight" => Part::Out,
            "dim_scalar.weight" => Part::U,
            "out_scalar.weight" => Part::V,
            "dim_scalar.bias" => {
                let message = "u is a full matrix with a bias (`dim_transform: affine`), which no low-rank update is";
                return Err(Error::new(Code::UnsupportedVariant, message));
            }
            other => {
                let message = format!("`{}` is no factor of a low-rank update", cut(other));
                return Err(Error::new(Code::UnknownAdapterTensor, message));
            }
        };
        let number: Option<u32> = layer.parse().ok();
        let layer = number.filter(|l| (*l as usize) < MAX_LAYERS);
        Ok(Self {
            site,
            layer: layer.ok_or_else(unknown)?,
            part,
        })
    }

    fn join(&self) -> Join {
        match self.part {
            Part::In if self.site.is_input_parallel() => Join::Columns,
            Part::U => Join::Same,
            _ => Join::Rows,
        }
    }
}

fn joined(parts: &[&Tensor], how: Join) -> Result<Tensor> {
    let [first, others @ ..] = parts else {
        return Err(Error::new(Code::Internal, "no rank to join"));
    };
    let unfit = || {
        Error::new(
            Code::FactorShape,
            "the ranks have parts that do not fit one another",
        )
    };
    if others.is_empty() {
        return Ok((*first).clone());
    }
    let [rows, columns] = *first.shape() else {
        return Err(unfit());
    };
    if others
        .iter()
        .any(|t| t.shape() != first.shape() || t.dtype() != first.dtype())
    {
        return Err(unfit());
    }
    let many = |n: usize| n.checked_mul(parts.len()).ok_or_else(unfit);
    match how {
        Join::Same if others.iter().all(|t| t.same_bytes(first)) => Ok((*first).clone()),
        Join::Same => Err(unfit()),
        Join::Rows => {
            let data: Vec<u8> = parts
                .iter()
                .flat_map(|t| t.data().iter().copied())
                .collect();
            Tensor::new(first.dtype(), vec![many(rows)?, columns], data)
        }
        Join::Columns => {
            let width = first.data().len().checked_div(rows).unwrap_or(0);
            let mut data = Vec::with_capacity(first.data().len() * parts.len());
            for row in 0..rows {
                let own = parts
                    .iter()
                    .filter_map(|t| t.data().get(row * width..(row + 1) * width));
                own.for_each(|bytes| data.extend_from_slice(bytes));
            }
            Tensor::new(first.dtype(), vec![rows, many(columns)?], data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(name: &str) -> Code {
        Key::of(name).unwrap_err().code()
    }

    #[test]
    fn keys_of_both_generations_are_read() {
        let key = |layer| Key {
            site: Site::Qkv,
            layer,
            part: Part::In,
        };
        let end = "self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight";
        for (start, layer) in [
            ("model.decoder.layers.3", 3),
            ("model.module.decoder.layers.0", 0),
            ("model.language_model.encoder.layers.11", 11),
        ] {
            assert_eq!(Key::of(&format!("{start}.{end}")).unwrap(), key(layer));
        }
        for start in [
            "enc_dec_model.decoder.layers.3",
            "model.decoder.layers.x",
            "model.decoder.layers.9999",
        ] {
            assert_eq!(code(&format!("{start}.{end}")), Code::UnknownAdapterTensor);
        }
        let vera = "model.decoder.layers.0.self_attention.adapter_layer.vera_kqv_adapter";
        assert_eq!(
            Key::of(&format!("{vera}.out_scalar.weight")).unwrap().part,
            Part::V
        );
        assert_eq!(
            code(&format!("{vera}.dim_scalar.bias")),
            Code::UnsupportedVariant
        );
        let tied = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter";
        let positions = Code::UnsupportedPositionEmbedding;
        assert_eq!(
            code(&format!("{tied}.position_embeddings.weight")),
            positions
        );
        assert_eq!(code(&format!("{tied}.mlp.0.weight")), positions);
        let bottleneck = "model.decoder.layers.0.adapter_layer.adapter_1.linear_in.weight";
        assert_eq!(code(bottleneck), Code::UnsupportedPeftType);
    }

    /// Breaks where the parts of ranks are joined in another order than Megatron divides them.
    #[test]
    fn ranks_are_joined() {
        let t = |values: &[f32]| Tensor::from_f32(vec![2, 1], values).unwrap();
        let (one, two) = (t(&[0.0, 1.0]), t(&[2.0, 3.0]));
        let values = |how| joined(&[&one, &two], how).unwrap().to_f32().unwrap();
        assert_eq!(values(Join::Rows), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(values(Join::Columns), [0.0, 2.0, 1.0, 3.0]);
        let same = joined(&[&one, &two], Join::Same).unwrap_err();
        assert_eq!(same.code(), Code::FactorShape);
        assert!(joined(&[&one, &one], Join::Same).unwrap().same_bytes(&one));
    }
}
