//! The tensors of a PEFT adapter, sorted by what their names say.

use std::collections::{BTreeMap, BTreeSet};

use super::beside::Beside;
use super::config::PeftConfig;
use super::files::AdapterFiles;
use super::json::cut;
use super::names::strip_prefix;
use super::parameters;
use super::saved::Wrapped;
use super::slot::{Named, Slot};
use super::tokens;
use crate::adapter::MAX_NAME_BYTES;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The LoRA tensors of one module.
#[derive(Debug, Default)]
pub(super) struct LoraModule {
    pub(super) a: Option<Tensor>,
    pub(super) b: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
    pub(super) magnitude: Option<Tensor>,
    pub(super) embedding: bool,
}

impl LoraModule {
    /// A and B.
    pub(super) fn pair(&self) -> Result<(&Tensor, &Tensor)> {
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => Ok((a, b)),
            (None, _) => Err(Error::new(Code::MissingFactor, "has lora_B and no lora_A")),
            (_, None) => Err(Error::new(Code::MissingFactor, "has lora_A and no lora_B")),
        }
    }

    /// The rank, where A is (r, in), B is (out, r), and bias and magnitude are (out).
    pub(super) fn check_shapes(&self) -> Result<usize> {
        let (a, b) = self.pair()?;
        if a.shape().len() > 2 || b.shape().len() > 2 {
            let message = format!(
                "lora_A {:?} and lora_B {:?} are of a convolution",
                a.shape(),
                b.shape()
            );
            return Err(Error::new(Code::UnsupportedConv, message)
                .hint("merge it with PEFT's merge_and_unload"));
        }
        let shapes = || {
            format!(
                "lora_A {:?} and lora_B {:?} do not fit one another",
                a.shape(),
                b.shape()
            )
        };
        let ([rank, _], [out, other]) = (a.shape(), b.shape()) else {
            return Err(Error::new(Code::FactorShape, shapes()));
        };
        if rank != other {
            return Err(Error::new(Code::FactorShape, shapes()));
        }
        for (name, vector) in [
            ("lora_B.bias", &self.bias),
            ("lora_magnitude_vector", &self.magnitude),
        ] {
            if vector.as_ref().is_some_and(|t| t.shape() != [*out]) {
                return Err(Error::new(
                    Code::FactorShape,
                    format!("{name} does not have the {out} entries of the output"),
                ));
            }
        }
        Ok(*rank)
    }
}

/// The VeRA vectors of one module.
#[derive(Debug, Default)]
pub(super) struct VeraModule {
    pub(super) lambda_d: Option<Tensor>,
    pub(super) lambda_b: Option<Tensor>,
}

impl VeraModule {
    /// `lambda_d` and `lambda_b`, of one axis each.
    pub(super) fn vectors(&self) -> Result<(&Tensor, &Tensor)> {
        let (Some(d), Some(b)) = (&self.lambda_d, &self.lambda_b) else {
            let message = "lacks vera_lambda_d or vera_lambda_b";
            return Err(Error::new(Code::MissingFactor, message));
        };
        if d.shape().len() != 1 || b.shape().len() != 1 {
            let message = "vera_lambda_d and vera_lambda_b have one axis";
            return Err(Error::new(Code::FactorShape, message));
        }
        Ok((d, b))
    }
}

/// All tensors of an adapter file, by kind; keys are module paths or base tensor names.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) lora: BTreeMap<String, LoraModule>,
    pub(super) vera: BTreeMap<String, VeraModule>,
    pub(super) projection: Option<(Tensor, Tensor)>,
    /// Trained rows of embeddings, by the embedding's path.
    pub(super) tokens: BTreeMap<String, Tensor>,
    /// `<module>.base_layer.weight` and `.bias`, under the base's own names.
    pub(super) base_layers: BTreeMap<String, Tensor>,
    /// Full tensors without a LoRA suffix, under the base's own names.
    pub(super) others: BTreeMap<String, Tensor>,
    /// Those of them whose names say themselves that they were saved whole.
    pub(super) copies: BTreeSet<String>,
    /// Modules that PEFT wrapped, as the base has them.
    originals: BTreeSet<String>,
    /// Whether wrappers may be nested: the config has `target_parameters`.
    nested: bool,
    /// Whether the adapter is nothing but trained rows.
    rows_alone: bool,
    /// What a careful user should know.
    pub(super) notes: Vec<String>,
}

/// Sorts by name; every tensor must be explained.
///
/// # Errors
/// [`Code::UnknownAdapterTensor`], [`Code::EmptyTensor`], [`Code::DtypeNotAllowed`] and the
/// `TL04xx` codes of variants that show in tensor names alone.
pub(super) fn sort_tensors(files: &AdapterFiles) -> Result<Sorted> {
    let mut sorted = Sorted {
        nested: matches!(&files.config, PeftConfig::Lora(c) if !c.target_parameters.is_empty()),
        rows_alone: matches!(&files.config, PeftConfig::Lora(c) if c.trainable_tokens.are_alone()),
        ..Sorted::default()
    };
    let (mut vera_a, mut vera_b) = (None, None);
    let tensors = files.tensors()?;
    let adapter = adapter_name(tensors.keys())?;
    if adapter != DEFAULT_ADAPTER {
        sorted.notes.push(format!(
            "the names of the tensors have the adapter's own, `{0}`; PEFT loads them under that name alone (adapter_name=\"{0}\")",
            cut(adapter)
        ));
    }
    let (mut copies, adapter) = (BTreeMap::new(), adapter.to_owned());
    for (key, tensor) in tensors {
        if !is_of_rank_zero(&key, &tensor) {
            check_tensor(&tensor).map_err(|e| e.tensor(&key))?;
        }
        let own = key.strip_suffix(&format!(".{adapter}")).unwrap_or(&key);
        let place = match own {
            "base_model.vera_A" => &mut vera_a,
            "base_model.vera_B" => &mut vera_b,
            _ => {
                sorted.place(&key, tensor, &adapter, &mut copies)?;
                continue;
            }
        };
        if place.replace(tensor).is_some() {
            return Err(twice().tensor(&key));
        }
    }
    sorted.settle(copies)?;
    sorted.projection = match (vera_a, vera_b) {
        (Some(a), Some(b)) => Some((a, b)),
        (None, None) => None,
        _ => {
            return Err(Error::new(
                Code::MissingFactor,
                "has one of base_model.vera_A and vera_B, not both",
            ));
        }
    };
    Ok(sorted)
}

/// What PEFT calls an adapter that nobody gave a name.
const DEFAULT_ADAPTER: &str = "default";

/// The adapter's own name, as far as it was left in the tensors' names: one for all of them.
fn adapter_name<'k>(keys: impl Iterator<Item = &'k String>) -> Result<&'k str> {
    let (mut found, mut without) = (BTreeSet::new(), false);
    for key in keys {
        match Slot::split(strip_prefix(key)) {
            Some(Named {
                adapter: Some(name),
                ..
            }) => {
                found.insert(name);
            }
            other => without |= other.is_some(),
        }
    }
    let mut names = found.iter();
    match (names.next(), names.next()) {
        (None, _) => Ok(DEFAULT_ADAPTER),
        // Without a name is what PEFT reads as `default`.
        (Some(name), None) if !without || *name == DEFAULT_ADAPTER => Ok(name),
        (Some(one), other) => {
            let message = format!(
                "the file holds the tensors of several adapters: `{}` and {}",
                cut(one),
                other.map_or("one without a name".to_owned(), |o| format!("`{}`", cut(o)))
            );
            Err(Error::new(Code::UnknownAdapterTensor, message)
                .hint("save each with save_pretrained, which gives it a folder of its own"))
        }
    }
}

/// Whether a tensor is a factor of rank 0, which mergekit writes where no singular value is left.
fn is_of_rank_zero(key: &str, tensor: &Tensor) -> bool {
    let slot = Slot::split(strip_prefix(key)).map(|named| named.slot);
    match (slot, tensor.shape()) {
        (Some(Slot::A | Slot::EmbeddingA), [0, n]) => *n > 0,
        (Some(Slot::B | Slot::EmbeddingB), [n, 0]) => *n > 0,
        _ => false,
    }
}

fn check_tensor(tensor: &Tensor) -> Result<()> {
    if tensor.is_empty() {
        return Err(Error::new(Code::EmptyTensor, format!("has no elements: {:?}", tensor.shape())).hint(
            "ZeRO-3 and FSDP leave such shards behind when parameters are not gathered; save the adapter again, gathered",
        ));
    }
    if !tensor.dtype().is_float() {
        return Err(crate::tensor::not_float(tensor.dtype()));
    }
    Ok(())
}

impl Sorted {
    /// Rows of an adapter that has nothing else. A target that is tied to another is wrapped twice, and saved
    /// as often.
    fn rows(&mut self, embedding: &str, rows: Tensor) -> Result<()> {
        let module = embedding.strip_suffix(".base_layer").unwrap_or(embedding);
        let known = self.tokens.get(module);
        if known.is_some_and(|known| known.same_bytes(&rows)) {
            return Ok(());
        }
        insert(&mut self.tokens, module.to_owned(), rows)
    }

    fn place(
        &mut self,
        key: &str,
        tensor: Tensor,
        adapter: &str,
        copies: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let name = strip_prefix(key);
        let unnamed = name.strip_suffix(adapter).and_then(|n| n.strip_suffix('.'));
        if let Some(embedding) = unnamed.unwrap_or(name).strip_suffix(tokens::SUFFIX) {
            return insert(&mut self.tokens, embedding.to_owned(), tensor)
                .map_err(|e| e.tensor(key));
        }
        if self.rows_alone
            && let Some(embedding) = unnamed.unwrap_or(name).strip_suffix(tokens::ALONE_SUFFIX)
        {
            return self.rows(embedding, tensor).map_err(|e| e.tensor(key));
        }
        refuse_variants(key, name)?;
        if let Some(Named { module, slot, .. }) = Slot::split(name) {
            let outer = match self.nested {
                true => parameters::unwrapped(module).0,
                false => module,
            };
            if outer.split('.').any(|s| s == "base_layer") {
                return Err(Error::new(
                    Code::UnsupportedMha,
                    "the adapter is inside another wrapped layer (nn.MultiheadAttention, or nested parameters)",
                )
                .tensor(key)
                .hint("PEFT itself merges such layers wrongly; keep the adapter unmerged"));
            }
            return self.fill(module, slot, tensor).map_err(|e| e.tensor(key));
        }
        if name.contains("lora_") || name.contains("vera_") {
            return Err(unknown_tensor(key));
        }
        for (suffix, own) in [
            (".base_layer.weight", ".weight"),
            (".base_layer.bias", ".bias"),
        ] {
            if let Some(module) = name.strip_suffix(suffix) {
                let module = module.strip_suffix(tokens::WRAPPER).unwrap_or(module);
                return insert(&mut self.base_layers, format!("{module}{own}"), tensor)
                    .map_err(|e| e.tensor(key));
            }
        }
        match Wrapped::of(name, adapter) {
            Some(Wrapped::Copy(own)) => insert(copies, own, tensor),
            Some(Wrapped::Original(own)) => {
                self.originals.insert(own);
                Ok(())
            }
            None => insert(&mut self.others, name.to_owned(), tensor),
        }
        .map_err(|e| e.tensor(key))
    }

    /// Brings wrapped modules under their own names. Where a file has both, PEFT loads the tensor
    /// under the module's own name, whatever the wrapper's says; the base's is never of interest.
    fn settle(&mut self, copies: BTreeMap<String, Tensor>) -> Result<()> {
        for (own, tensor) in copies {
            match self.others.get(&own) {
                Some(first) if first.same_bytes(&tensor) => {}
                Some(_) => self.notes.push(format!(
                    "`{}` is in the file twice with unlike values; the one without `modules_to_save` is taken, as PEFT does",
                    cut(&own)
                )),
                None => {
                    self.copies.insert(own.clone());
                    self.others.insert(own, tensor);
                }
            }
        }
        let alone = self
            .originals
            .iter()
            .find(|own| !self.others.contains_key(*own));
        alone.map_or(Ok(()), |own| Err(unknown_tensor(own)))
    }

    /// Takes in full tensors from files beside the adapter's own, which replace the base's.
    pub(super) fn add_beside(&mut self, beside: Beside) -> Result<()> {
        for (name, (file, tensor)) in beside.tensors {
            let module = name.rsplit_once('.').map_or("", |(m, _)| m);
            let place = |e: Error| e.tensor(&name).file(&file);
            check_tensor(&tensor).map_err(place)?;
            if self.lora.contains_key(module) || self.vera.contains_key(module) {
                let message = "is a weight of a module that the adapter changes too";
                return Err(place(Error::new(Code::TrainedBeside, message)));
            }
            self.copies.insert(name.clone());
            let key = name.clone();
            insert(&mut self.others, key, tensor).map_err(place)?;
        }
        Ok(())
    }

    fn fill(&mut self, module: &str, slot: Slot, tensor: Tensor) -> Result<()> {
        // Before any rule is tried on it: a name of thousands of segments has thousands of tails.
        if module.len() > MAX_NAME_BYTES {
            let message = format!(
                "a module's name has {} bytes, the limit is {MAX_NAME_BYTES}",
                module.len()
            );
            return Err(Error::new(Code::BadName, message));
        }
        let place = match slot {
            Slot::LambdaD => &mut self.vera.entry(module.to_owned()).or_default().lambda_d,
            Slot::LambdaB => &mut self.vera.entry(module.to_owned()).or_default().lambda_b,
            _ => {
                let entry = self.lora.entry(module.to_owned()).or_default();
                entry.embedding |= matches!(slot, Slot::EmbeddingA | Slot::EmbeddingB);
                match slot {
                    Slot::A | Slot::EmbeddingA => &mut entry.a,
                    Slot::B | Slot::EmbeddingB => &mut entry.b,
                    Slot::Bias => &mut entry.bias,
                    _ => &mut entry.magnitude,
                }
            }
        };
        match place.replace(tensor) {
            None => Ok(()),
            Some(_) => Err(twice()),
        }
    }
}

fn insert(map: &mut BTreeMap<String, Tensor>, name: String, tensor: Tensor) -> Result<()> {
    match map.insert(name, tensor) {
        None => Ok(()),
        Some(_) => Err(twice()),
    }
}

fn twice() -> Error {
    Error::new(
        Code::UnknownAdapterTensor,
        "another tensor of the file has the same place",
    )
}

/// Refuses a name that is none of PEFT's.
pub(super) fn unknown_tensor(name: &str) -> Error {
    Error::new(Code::UnknownAdapterTensor, "PEFT has no such tensor name").tensor(name).hint(
        "PEFT itself would ignore it without a word; rename it to PEFT's form, or remove it if it is not needed",
    )
}

/// Variants that some configs do not mention, and tensor names give away.
fn refuse_variants(key: &str, name: &str) -> Result<()> {
    let signs = [
        (
            ".lora_diag",
            Code::UnsupportedKasa,
            "KaSA's diagonal between A and B",
        ),
        (
            ".lora_velora_",
            Code::UnsupportedVariant,
            "VeLoRA's extra embedding",
        ),
        (
            ".lora_monteclora_",
            Code::UnsupportedVariant,
            "MonteCLoRA's sampler",
        ),
    ];
    for (sign, code, what) in signs {
        if name.contains(sign) {
            return Err(Error::new(
                code,
                format!("holds {what}, which a low-rank update cannot say"),
            )
            .tensor(key)
            .hint("merge it with PEFT's merge_and_unload"));
        }
    }
    if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        return Err(
            Error::new(Code::NotPeft, "is named as MLX names it, not PEFT")
                .tensor(key)
                .hint("an MLX adapter's config has `lora_parameters`, and no `peft_type`"),
        );
    }
    Ok(())
}
