//! The decoder: frozen weights, low-rank branches; logits, loss, gradients.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::branches::{BranchGradients, Branches, ModulePlace};
use super::cache::Cache;
use super::config::ModelConfig;
use super::family::Slot;
use super::layer::{LayerBranches, Rows, Tape};
use super::loss_sum::LossSum;
use super::weights::{self, Weights};
use crate::adapter::LAYER_PLACE;
use crate::base::architecture::Architecture;
use crate::error::{Code, Error, Result};
use crate::model::ops::{
    Head, HeadScratch, Masks, Products, Rotation, add_in_place, fuses, head_divergence, head_loss,
    head_loss_backward,
};
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;
use crate::text::{Batch, IGNORE};

/// A frozen model in Hugging Face layout.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    checkpoint: Checkpoint,
    architecture: Architecture,
    /// Path of a layer as the model's class has it, with `{}` for its number.
    layer_name: String,
    weights: Weights,
    device: Device,
    dtype: DType,
    products: Products,
    scratch: Mutex<HeadScratch>,
}

/// What a forward pass keeps for the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there is no backward.
    Nothing,
    /// Each layer's input; the rest is computed again.
    Inputs,
    /// All that the backward reads.
    All,
}

impl Model {
    /// Opens the model in `dir`: `config.json` and safetensors weights, one file or sharded.
    /// Computes in f32 or bf16 as `dtype` says; without it in bf16 where the embedding is bf16 and the device
    /// multiplies such numbers (a GPU; a processor with AMX or AVX-512-BF16), and else in f32. In bf16 a GPU has weights and activations in that type. A processor rounds to bf16 what it multiplies with frozen
    /// weights, with f32 sums, and has all else in f32.
    ///
    /// # Errors
    /// Those of [`ModelConfig::read`] and [`Checkpoint::open`]; [`Code::ModelConfig`] where the
    /// weights are not those of the config; [`Code::Usage`] for another `dtype`.
    pub fn open(dir: &Path, device: &Device, dtype: Option<Dtype>) -> Result<Self> {
        let config = ModelConfig::read(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let narrow = match dtype {
            None => {
                let stored = weights::embedding_dtype(&checkpoint, &config);
                stored == Some(Dtype::BF16) && (!device.is_cpu() || Products::bf16().is_some())
            }
            Some(Dtype::F32) => false,
            Some(Dtype::BF16) => true,
            Some(other) => {
                let message = format!("a model is not computed in {other}");
                return Err(Error::new(Code::Usage, message).hint("in f32 or bf16"));
            }
        };
        let (dtype, products) = match (narrow, Products::bf16()) {
            (false, _) => (DType::F32, Products::F32),
            (true, Some(products)) if device.is_cpu() => (DType::F32, products),
            (true, _) => (DType::BF16, Products::F32),
        };
        Self::with(config, checkpoint, device, dtype, products)
    }

    /// As [`Model::open`], computing in `dtype`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_as(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::with(
            ModelConfig::read(dir)?,
            Checkpoint::open(dir)?,
            device,
            dtype,
            Products::F32,
        )
    }

    fn with(
        config: ModelConfig,
        checkpoint: Checkpoint,
        device: &Device,
        dtype: DType,
        products: Products,
    ) -> Result<Self> {
        let weights = weights::load(&checkpoint, &config, device, dtype, products)?;
        let architecture = Architecture::of(&checkpoint)?;
        Ok(Self {
            layer_name: layer_name(&architecture, &config, &weights.layer_prefix),
            architecture,
            config,
            checkpoint,
            weights,
            device: device.clone(),
            dtype,
            products,
            scratch: Mutex::default(),
        })
    }

    /// The same, for adapters that call its modules otherwise: see [`Checkpoint::with_renames`].
    #[must_use]
    pub fn with_renames(self, renames: Vec<(String, String)>) -> Self {
        Self {
            checkpoint: self.checkpoint.with_renames(renames),
            ..self
        }
    }

    /// What `config.json` says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The files that the weights are in.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dtype of what is multiplied with frozen weights.
    pub fn compute_dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 if self.products == Products::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            _ => Dtype::BF16,
        }
    }

    /// Path of a layer in the checkpoint, with `{}` for its number.
    pub fn layer_prefix(&self) -> &str {
        &self.weights.layer_prefix
    }

    /// The same in the model's class, which is what adapters name.
    pub fn layer_name(&self) -> &str {
        &self.layer_name
    }

    pub(super) fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Every linear module, layer by layer.
    pub fn modules(&self) -> Vec<ModulePlace> {
        let layers = self.weights.layers.iter().enumerate();
        layers
            .flat_map(|(number, layer)| {
                Slot::ALL.into_iter().flat_map(move |slot| {
                    layer.slot(slot).modules.iter().map(move |m| ModulePlace {
                        layer: number,
                        slot,
                        path: m.path.clone(),
                        out: m.matrix.out(),
                        in_features: m.matrix.in_features(),
                        kind: m.kind,
                        spans: m.spans.clone(),
                    })
                })
            })
            .collect()
    }

    /// Full paths, in layer 0, of the modules that `names` mean: `q`, `q_proj`,
    /// `self_attn.q_proj`, or `all`.
    ///
    /// # Errors
    /// [`Code::Usage`] for a name that this family does not have.
    pub fn choose_targets(&self, names: &[String]) -> Result<Vec<String>> {
        let family = self.config.family;
        let prefix = self.layer_prefix().replacen(LAYER_PLACE, "0", 1);
        let mut chosen = Vec::new();
        for name in names {
            let paths = family.modules_called(name);
            if paths.is_empty() {
                let all = family.modules_called("all").join(", ");
                let message = format!("target `{name}` is not a linear module of this model");
                return Err(Error::new(Code::Usage, message)
                    .hint(format!("it has {all}; `all` names them together")));
            }
            chosen.extend(paths.into_iter().map(|p| format!("{prefix}.{p}")));
        }
        Ok(chosen)
    }

    /// The summed loss of a batch.
    ///
    /// # Errors
    /// [`Code::ModelConfig`] for a token beyond the vocabulary, [`Code::Backend`].
    pub fn loss(&self, branches: &Branches, batch: &Batch) -> Result<LossSum> {
        self.check_targets(batch)?;
        self.in_pool(|| {
            let hidden = self.normed(branches, batch)?;
            head_loss(&hidden, self.head(), &batch.targets, &mut self.scratch())
        })
    }

    /// Work on a thread of the pool: of one outside, every part that is shared out would wake another thread up, and wait
    /// for it.
    fn in_pool<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match fuses(&self.device, self.dtype) {
            true => rayon::join(work, || ()).0,
            false => work(),
        }
    }

    /// The summed loss of a batch, and its gradient with respect to the branches' factors.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn backward(
        &self,
        branches: &Branches,
        batch: &Batch,
        keep: Keep,
    ) -> Result<(LossSum, BranchGradients)> {
        self.check_targets(batch)?;
        self.in_pool(|| {
            self.backward_from(branches, batch, keep, |normed| {
                head_loss_backward(normed, self.head(), &batch.targets, &mut self.scratch())
            })
        })
    }

    /// Σ KL(teacher ‖ student) over the positions of a batch that have a target, in nats: this model
    /// with the branches of both.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn divergence(
        &self,
        student: &Branches,
        teacher: &Branches,
        batch: &Batch,
    ) -> Result<LossSum> {
        let [ours, theirs] = [student, teacher].map(|b| self.normed(b, batch));
        Ok(head_divergence(&ours?, &theirs?, self.head(), &batch.targets, false)?.0)
    }

    /// As [`Model::divergence`], and its gradient with respect to the student's factors.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn divergence_backward(
        &self,
        student: &Branches,
        teacher: &Branches,
        batch: &Batch,
        keep: Keep,
    ) -> Result<(LossSum, BranchGradients)> {
        let theirs = self.normed(teacher, batch)?;
        self.backward_from(student, batch, keep, |ours| {
            let (loss, dx) = head_divergence(ours, &theirs, self.head(), &batch.targets, true)?;
            Ok((loss, dx.ok_or_else(no_tape)?))
        })
    }

    /// Shows `visit` what each product of each layer reads (tokens × in), from the first layer on.
    ///
    /// # Errors
    /// As [`Model::loss`]; those of `visit`.
    pub fn inputs(
        &self,
        branches: &Branches,
        batch: &Batch,
        visit: &mut dyn FnMut(usize, Slot, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let rows = Rows {
            sequences: &batch.sequences,
            dropout: None,
            rotations: &self.rotations(batch)?,
            masks: &Masks::default(),
        };
        let mut x = self.embed(&batch.tokens, &from_zero(batch))?;
        let nothing = LayerBranches::default();
        for (number, layer) in self.weights.layers.iter().enumerate() {
            let own = branches.layers.get(number).unwrap_or(&nothing);
            let (y, tape) = layer.forward(&x, &rows, own, None)?;
            let has = |slot: &Slot| !layer.slot(*slot).modules.is_empty();
            for slot in Slot::ALL.into_iter().filter(has) {
                visit(number, slot, &layer.input(slot, &x, &tape)?)?;
            }
            x = y;
        }
        Ok(())
    }

    /// A backward from what `head` says of the last layer's normed output (tokens × hidden): a loss,
    /// and its gradient with respect to that.
    fn backward_from(
        &self,
        branches: &Branches,
        batch: &Batch,
        keep: Keep,
        head: impl FnOnce(&Tensor) -> Result<(LossSum, Tensor)>,
    ) -> Result<(LossSum, BranchGradients)> {
        let rotations = self.rotations(batch)?;
        let rows = Rows {
            sequences: &batch.sequences,
            dropout: branches.dropout,
            rotations: &rotations,
            masks: &Masks::default(),
        };
        let (last, mut inputs, mut tapes) = self.hidden(branches, batch, &rows, keep)?;
        let normed = self.weights.norm.forward(&last)?;
        let (loss, dnormed) = head(&normed)?;
        drop(normed);
        let mut dx = self.weights.norm.backward(&dnormed, &last)?;
        drop((dnormed, last));
        let mut gradients = BranchGradients { layers: Vec::new() };
        gradients
            .layers
            .resize_with(self.weights.layers.len(), Default::default);
        let Some((lowest, lowest_slot)) = branches.lowest() else {
            return Ok((loss, gradients));
        };
        let nothing = LayerBranches::default();
        for number in (lowest..self.weights.layers.len()).rev() {
            let layer = &self.weights.layers[number];
            let own = branches.layers.get(number).unwrap_or(&nothing);
            let x = inputs.pop().ok_or_else(no_tape)?;
            let tape = match tapes.pop() {
                Some(tape) => tape,
                None => layer.forward(&x, &rows, own, None)?.1,
            };
            let stop = (number == lowest).then_some(lowest_slot);
            let (below, grads) = layer.backward(dx, &x, &tape, &rows, own, stop)?;
            gradients.layers[number] = grads;
            match below {
                Some(below) => dx = below,
                None => break,
            }
        }
        Ok((loss, gradients))
    }

    /// Logits of every token, tokens × vocabulary in f32; for short texts, as the whole is held.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn logits(&self, branches: &Branches, batch: &Batch) -> Result<Tensor> {
        let hidden = self.last_hidden(branches, batch)?;
        self.head_of(&hidden)
    }

    /// Logits of the last token of each sequence, sequences × vocabulary, when `tokens` follow
    /// what the cache holds; the cache takes them in.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn extend(
        &self,
        branches: &Branches,
        tokens: &[Vec<u32>],
        cache: &mut Cache,
    ) -> Result<Tensor> {
        cache.lengths.resize(tokens.len(), 0);
        cache
            .layers
            .resize_with(self.weights.layers.len(), Vec::new);
        let flat: Vec<u32> = tokens.concat();
        let mut sequences = Vec::new();
        let mut at = 0;
        for new in tokens {
            sequences.push(at..at + new.len());
            at += new.len();
        }
        let positions: Vec<Range<usize>> = cache
            .lengths
            .iter()
            .zip(tokens)
            .map(|(n, new)| *n..n + new.len())
            .collect();
        let rotations = self.rotations_at(&positions)?;
        let rows = Rows {
            sequences: &sequences,
            dropout: None,
            rotations: &rotations,
            masks: &Masks::default(),
        };
        let mut x = self.embed(&flat, &positions)?;
        let nothing = LayerBranches::default();
        for (number, layer) in self.weights.layers.iter().enumerate() {
            let own = branches.layers.get(number).unwrap_or(&nothing);
            x = layer
                .forward(&x, &rows, own, Some(&mut cache.layers[number]))?
                .0;
        }
        for (length, new) in cache.lengths.iter_mut().zip(tokens) {
            *length += new.len();
        }
        let last: Vec<u32> = sequences
            .iter()
            .map(|s| (s.end.max(1) - 1) as u32)
            .collect();
        let last = Tensor::new(last.as_slice(), &self.device)?;
        self.head_of(&x.index_select(&last, 0)?)
    }

    fn head_of(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.weights.norm.forward(hidden)?;
        self.head().logits(&normed)
    }

    fn scratch(&self) -> MutexGuard<'_, HeadScratch> {
        // What a panic left in the buffers is overwritten before it is read.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn head(&self) -> Head<'_> {
        let (own, embedding) = (self.weights.head.as_ref(), &self.weights.embedding);
        Head {
            matrix: own.unwrap_or(embedding),
            cap: self.config.logit_cap,
        }
    }

    /// The embeddings of tokens whose sequences have these positions.
    fn embed(&self, tokens: &[u32], positions: &[Range<usize>]) -> Result<Tensor> {
        if let Some(token) = tokens
            .iter()
            .find(|t| **t as usize >= self.config.vocabulary)
        {
            return Err(self.beyond(*token));
        }
        let (weights, device) = (&self.weights, &self.device);
        let x = weights.embedding.select(tokens, device, self.dtype)?;
        let x = match self.config.embedding_scale == 1.0 {
            true => x,
            false => (x * self.config.embedding_scale)?,
        };
        let Some(learned) = &weights.positions else {
            return Ok(x);
        };
        if let Some(end) = (positions.iter().map(|p| p.end)).find(|end| *end > learned.out()) {
            let message = format!(
                "{end} tokens, and the model has {} positions",
                learned.out()
            );
            return Err(Error::new(Code::ModelConfig, message));
        }
        let rows: Vec<u32> = (positions.iter().cloned())
            .flat_map(|p| p.start as u32..p.end as u32)
            .collect();
        add_in_place(x, &learned.select(&rows, device, self.dtype)?)
    }

    fn check_targets(&self, batch: &Batch) -> Result<()> {
        let beyond = |t: &&u32| **t != IGNORE && **t as usize >= self.config.vocabulary;
        match batch.targets.iter().find(beyond) {
            Some(token) => Err(self.beyond(*token)),
            None => Ok(()),
        }
    }

    fn beyond(&self, token: u32) -> Error {
        let vocabulary = self.config.vocabulary;
        let message = format!("token {token} is beyond the model's vocabulary of {vocabulary}");
        Error::new(Code::ModelConfig, message)
            .hint("the tokenizer is not this model's, or the model's embedding was not grown")
    }

    /// The angles of a batch whose sequences all begin at position 0, by each rotary embedding.
    fn rotations(&self, batch: &Batch) -> Result<Vec<Rotation>> {
        self.rotations_at(&from_zero(batch))
    }

    fn rotations_at(&self, positions: &[Range<usize>]) -> Result<Vec<Rotation>> {
        let rotaries = self.config.rotaries.iter();
        rotaries
            .map(|r| r.rotation(positions, &self.device, self.dtype))
            .collect()
    }

    /// What the head reads, where no backward follows.
    fn normed(&self, branches: &Branches, batch: &Batch) -> Result<Tensor> {
        (self.weights.norm).forward(&self.last_hidden(branches, batch)?)
    }

    /// The last layer's output, where no backward follows.
    fn last_hidden(&self, branches: &Branches, batch: &Batch) -> Result<Tensor> {
        let rows = Rows {
            sequences: &batch.sequences,
            dropout: None,
            rotations: &self.rotations(batch)?,
            masks: &Masks::default(),
        };
        Ok(self.hidden(branches, batch, &rows, Keep::Nothing)?.0)
    }

    /// The last layer's output, and what `keep` says of the layers below it.
    fn hidden(
        &self,
        branches: &Branches,
        batch: &Batch,
        rows: &Rows<'_>,
        keep: Keep,
    ) -> Result<(Tensor, Vec<Tensor>, Vec<Tape>)> {
        let lowest = branches.lowest().map_or(usize::MAX, |(layer, _)| layer);
        let (mut inputs, mut tapes) = (Vec::new(), Vec::new());
        let mut x = self.embed(&batch.tokens, &from_zero(batch))?;
        let nothing = LayerBranches::default();
        for (number, layer) in self.weights.layers.iter().enumerate() {
            let own = branches.layers.get(number).unwrap_or(&nothing);
            let (y, tape) = layer.forward(&x, rows, own, None)?;
            if number >= lowest && keep != Keep::Nothing {
                inputs.push(x);
                if keep == Keep::All {
                    tapes.push(tape);
                }
            }
            x = y;
        }
        Ok((x, inputs, tapes))
    }
}

/// What the model's class calls a layer that the checkpoint has at `stored`; the same where nothing is
/// known of the class.
fn layer_name(architecture: &Architecture, config: &ModelConfig, stored: &str) -> String {
    let known = || {
        let module = config.family.modules_called("all").into_iter().next()?;
        let path = stored.replacen(LAYER_PLACE, "0", 1);
        let links = architecture.links(&format!("{path}.{module}.weight"));
        let class = &links.first()?.class;
        let layer = class.strip_suffix(&format!("0.{module}.weight"))?;
        let prefix = match architecture.prefix() {
            "" => String::new(),
            prefix if layer.starts_with(&format!("{prefix}.")) => String::new(),
            prefix => format!("{prefix}."),
        };
        Some(format!("{prefix}{layer}{LAYER_PLACE}"))
    };
    known().unwrap_or_else(|| stored.to_owned())
}

/// The positions of a batch whose sequences all begin at 0.
fn from_zero(batch: &Batch) -> Vec<Range<usize>> {
    batch.sequences.iter().map(|s| 0..s.len()).collect()
}

fn no_tape() -> Error {
    Error::new(
        Code::Usage,
        "a backward needs a forward that keeps at least its inputs",
    )
}
