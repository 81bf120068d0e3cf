//! A model's frozen weights, found by name and checked against the config.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use super::ModelConfig;
use super::family::{Root, Slot};
use crate::adapter::{LAYER_PLACE, ModuleKind};
use crate::error::{Code, Error, Result};
use crate::model::ops::{
    Activation, Choice, Expert, Experts, Heads, Matrix, Norm, Piece, Products, Span, fuses,
};
use crate::safetensors::Checkpoint;
use crate::tensor::{self, Dtype, shape_text};

/// A linear module of a layer.
#[derive(Debug)]
pub(super) struct Module {
    /// Full path, as adapters name it.
    pub(super) path: String,
    pub(super) matrix: Matrix,
    pub(super) kind: ModuleKind,
    /// Its rows among the slot's columns.
    pub(super) spans: Vec<Span>,
}

/// The modules that read one input, and their product; no modules where experts take its place.
#[derive(Debug, Default)]
pub(super) struct Projection {
    pub(super) modules: Vec<Module>,
    /// The weights in the order of the columns, where the composed form reads them; those of the
    /// modules are then only where they were mapped.
    whole: Option<Matrix>,
    /// One for each column; none where no module has a bias.
    pub(super) bias: Option<Tensor>,
}

impl Projection {
    /// The weights in the order of the columns.
    pub(super) fn pieces(&self) -> Vec<Piece<'_>> {
        match &self.whole {
            Some(whole) => vec![Piece::whole(whole)],
            None => pieces(&self.modules),
        }
    }
}

fn pieces(modules: &[Module]) -> Vec<Piece<'_>> {
    let mut pieces: Vec<_> = (modules.iter())
        .flat_map(|m| m.spans.iter().map(move |s| (s, &m.matrix)))
        .collect();
    pieces.sort_by_key(|(span, _)| span.column);
    pieces
        .into_iter()
        .map(|(span, matrix)| Piece {
            matrix,
            row: span.row,
            rows: span.len,
        })
        .collect()
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) number: usize,
    /// Before attention and before the MLP.
    pub(super) norms: [Norm; 2],
    /// After attention and after the MLP, before either is added.
    pub(super) post_norms: Option<[Norm; 2]>,
    /// Of the query and the key heads.
    pub(super) head_norms: Option<[Norm; 2]>,
    pub(super) heads: Heads,
    /// Which of the model's rotary embeddings turns queries and keys.
    pub(super) rotary: Option<usize>,
    pub(super) activation: Activation,
    /// In the place of the MLP.
    pub(super) experts: Option<Experts>,
    /// What is added to the residual stream is multiplied by it.
    pub(super) residual_scale: f64,
    /// In the order of [`Slot::ALL`].
    pub(super) slots: [Projection; 4],
}

impl Layer {
    pub(super) fn slot(&self, slot: Slot) -> &Projection {
        &self.slots[slot as usize]
    }
}

/// Everything that [`super::Model`] holds.
#[derive(Debug)]
pub(super) struct Weights {
    /// Path of a layer, with `{}` for its number.
    pub(super) layer_prefix: String,
    pub(super) embedding: Matrix,
    /// Learned positions.
    pub(super) positions: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// None where the embedding serves.
    pub(super) head: Option<Matrix>,
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    device: &'a Device,
    dtype: DType,
    products: Products,
    root: &'static Root,
    used: BTreeSet<String>,
}

/// Finds every weight that `config` asks for.
///
/// # Errors
/// [`Code::ModelConfig`] where a weight is missing, has another shape, or is left over;
/// [`Code::DtypeNotAllowed`] where it is not F32, F16 or BF16.
pub(super) fn load(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    device: &Device,
    dtype: DType,
    products: Products,
) -> Result<Weights> {
    let mut loader = Loader {
        checkpoint,
        config,
        device,
        dtype,
        products,
        root: root(checkpoint, config),
        used: BTreeSet::new(),
    };
    loader.all().map_err(|e| e.file(checkpoint.path()))
}

/// The dtype of the embedding, where the checkpoint has it.
pub(super) fn embedding_dtype(checkpoint: &Checkpoint, config: &ModelConfig) -> Option<Dtype> {
    let name = format!(
        "{}{}.weight",
        root(checkpoint, config).body,
        config.family.embedding
    );
    let place = checkpoint.locate(&name)?;
    Some(checkpoint.at(place).1.dtype)
}

/// Where the checkpoint has its decoder; the family's usual place where it has none.
fn root(checkpoint: &Checkpoint, config: &ModelConfig) -> &'static Root {
    let has = |root: &&Root| {
        let embedding = format!("{}{}.weight", root.body, config.family.embedding);
        checkpoint.locate(&embedding).is_some()
    };
    let roots = config.roots;
    roots.iter().find(has).unwrap_or(&roots[0])
}

impl Loader<'_> {
    fn all(&mut self) -> Result<Weights> {
        let (family, config) = (self.config.family, self.config);
        let root = self.root;
        let body = |name: &str| format!("{}{name}", root.body);
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let embedding = self.matrix(&body(family.embedding), [vocabulary, hidden])?;
        let positions = match family.positions {
            Some(name) => Some(self.matrix(&body(name), [config.max_positions, hidden])?),
            None => None,
        };
        let layer_prefix = body(family.layer);
        let layers = (0..config.layers)
            .map(|l| self.layer(&layer_prefix, l))
            .collect::<Result<_>>()?;
        let norm = self.norm(&body(family.final_norm), hidden, config.logit_scale)?;
        let head = match config.tied_head {
            true => {
                // Some checkpoints store the tied head a second time.
                self.used.insert(format!("{}.weight", root.head));
                None
            }
            false => Some(self.matrix(root.head, [vocabulary, hidden])?),
        };
        self.check_unused()?;
        Ok(Weights {
            layer_prefix,
            embedding,
            positions,
            layers,
            norm,
            head,
        })
    }

    fn layer(&mut self, prefix: &str, number: usize) -> Result<Layer> {
        let (family, config) = (self.config.family, self.config);
        let prefix = prefix.replacen(LAYER_PLACE, &number.to_string(), 1);
        let plan = config.plan.get(number).ok_or_else(no_plan)?;
        let mut pair = |[first, second]: [&str; 2], width| -> Result<[Norm; 2]> {
            let mut norm = |name: &str| self.norm(&format!("{prefix}.{name}"), width, 1.0);
            Ok([norm(first)?, norm(second)?])
        };
        let norms = pair(family.norms, config.hidden)?;
        let post_norms = match family.post_norms {
            None => None,
            Some(names) => Some(pair(names, config.hidden)?),
        };
        let head_norms = match family.head_norms {
            None => None,
            Some(names) => Some(pair(names, config.head_dim)?),
        };
        let experts = match plan.sparse {
            false => None,
            true => self.experts(&prefix)?,
        };
        let products = self.products;
        let mut slot = |slot| match (slot, &experts) {
            (Slot::GateUp | Slot::Down, Some(_)) => Ok(Projection::default()),
            _ => self.projection(&prefix, slot),
        };
        Ok(Layer {
            number,
            norms,
            post_norms,
            head_norms,
            rotary: plan.rotary,
            activation: config.activation,
            residual_scale: config.residual_scale,
            heads: Heads {
                q: config.q_heads,
                kv: config.kv_heads,
                dim: config.head_dim,
                scale: plan.scale as f32,
                cap: config.score_cap,
                window: plan.window,
                products,
            },
            slots: [
                slot(Slot::Qkv)?,
                slot(Slot::Output)?,
                slot(Slot::GateUp)?,
                slot(Slot::Down)?,
            ],
            experts,
        })
    }

    fn experts(&mut self, prefix: &str) -> Result<Option<Experts>> {
        let config = self.config;
        let (Some(rule), Some(plan)) = (config.family.experts, config.experts) else {
            return Ok(None);
        };
        let [gate, up, down] = rule.parts;
        let (wide, narrow) = ([plan.width, config.hidden], [config.hidden, plan.width]);
        let mut experts = Vec::new();
        for number in 0..plan.count {
            let at = rule.expert.replacen(LAYER_PLACE, &number.to_string(), 1);
            let at = format!("{prefix}.{at}");
            experts.push(Expert {
                gate_up: vec![
                    self.matrix(&format!("{at}.{gate}"), wide)?,
                    self.matrix(&format!("{at}.{up}"), wide)?,
                ],
                down: self.matrix(&format!("{at}.{down}"), narrow)?,
            });
        }
        // Scores that are nearly equal must not be swapped by rounded products.
        let router = format!("{prefix}.{}", rule.router);
        let router = self.matrix(&router, [plan.count, config.hidden])?;
        Ok(Some(Experts {
            router: router.with_products(Products::F32),
            experts,
            choice: Choice {
                chosen: plan.chosen,
                normalised: plan.normalised,
            },
            activation: config.activation,
        }))
    }

    fn projection(&mut self, prefix: &str, slot: Slot) -> Result<Projection> {
        let sizes = self.config.sizes();
        let [in_features, width] = slot.shape(&sizes);
        let mut modules = Vec::new();
        let mut bias: Option<Vec<f32>> = None;
        for name in self.config.family.modules.iter().filter(|m| m.slot == slot) {
            let path = format!("{prefix}.{}", name.path);
            let spans = name.rows.spans(&sizes);
            let out = spans.iter().map(|s| s.len).sum();
            let kind = name.kind;
            let matrix = self.module(&path, kind, [out, in_features])?;
            let own = format!("{path}.bias");
            if self.checkpoint.locate(&own).is_some() {
                let own = self.tensor(&own, &[out])?.to_f32()?;
                let bias = bias.get_or_insert_with(|| vec![0.0; width]);
                for s in &spans {
                    bias[s.column..s.column + s.len].copy_from_slice(&own[s.row..s.row + s.len]);
                }
            }
            modules.push(Module {
                path,
                matrix,
                kind,
                spans,
            });
        }
        let bias = match bias {
            None => None,
            Some(bias) => Some(Tensor::from_vec(bias, width, self.device)?.to_dtype(self.dtype)?),
        };
        let whole = match fuses(self.device, self.dtype) {
            true => None,
            false => Some(Matrix::joined(&pieces(&modules), self.device, self.dtype)?),
        };
        Ok(Projection {
            modules,
            whole,
            bias,
        })
    }

    /// A module's weight, out × in.
    fn module(
        &mut self,
        path: &str,
        kind: ModuleKind,
        [out, in_features]: [usize; 2],
    ) -> Result<Matrix> {
        let name = format!("{path}.weight");
        let weight = match kind.is_transposed() {
            false => self.tensor(&name, &[out, in_features])?,
            true => transposed(&self.tensor(&name, &[in_features, out])?)?,
        };
        let matrix = Matrix::mapped(weight).map_err(|e| e.tensor(name))?;
        Ok(matrix.with_products(self.products))
    }

    /// A normalisation whose output is multiplied by `scale`.
    fn norm(&mut self, path: &str, width: usize, scale: f64) -> Result<Norm> {
        let mut gain = self.tensor(&format!("{path}.weight"), &[width])?.to_f32()?;
        gain.iter_mut()
            .for_each(|g| *g += self.config.family.gain_offset);
        let name = format!("{path}.bias");
        let mut bias = match self.checkpoint.locate(&name) {
            Some(_) => self.tensor(&name, &[width])?.to_f32()?,
            None => Vec::new(),
        };
        if scale != 1.0 {
            for x in gain.iter_mut().chain(&mut bias) {
                *x = (f64::from(*x) * scale) as f32;
            }
        }
        Norm::new(
            self.config.family.norm,
            [gain, bias],
            self.config.eps,
            self.device,
            self.dtype,
        )
    }

    fn matrix(&mut self, path: &str, shape: [usize; 2]) -> Result<Matrix> {
        let name = format!("{path}.weight");
        let weight = self.tensor(&name, &shape)?;
        let matrix = Matrix::new(weight, self.device, self.dtype).map_err(|e| e.tensor(name))?;
        Ok(matrix.with_products(self.products))
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<tensor::Tensor> {
        let place = self.checkpoint.locate(name).ok_or_else(|| {
            Error::new(
                Code::ModelConfig,
                "the checkpoint lacks a weight that its config asks for",
            )
            .tensor(name)
        })?;
        let (file, info) = self.checkpoint.at(place);
        if info.shape != shape {
            let message = format!(
                "has shape {}, the config asks for {}",
                shape_text(&info.shape),
                shape_text(shape)
            );
            return Err(Error::new(Code::ModelConfig, message).tensor(name));
        }
        self.used.insert(name.to_owned());
        file.mapped(info)
    }

    /// A weight that the decoder does not read would change what the model computes.
    fn check_unused(&self) -> Result<()> {
        let (derived, others) = (self.config.family.derived, self.config.others);
        let left = (self.checkpoint.tensors().keys()).find(|name| {
            !self.used.contains(*name)
                && !derived.iter().any(|end| name.ends_with(end))
                && !others.iter().any(|start| name.starts_with(start))
        });
        match left {
            None => Ok(()),
            Some(name) => {
                let message = format!(
                    "a weight that a `{}` does not have",
                    self.config.family.model_type
                );
                Err(Error::new(Code::ModelConfig, message).tensor(name))
            }
        }
    }
}

fn no_plan() -> Error {
    Error::new(
        Code::ModelConfig,
        "the config plans fewer layers than it has",
    )
}

/// A matrix with its rows as columns, copied: products read weights by rows.
fn transposed(weight: &tensor::Tensor) -> Result<tensor::Tensor> {
    let [rows, cols] = match weight.shape() {
        [rows, cols] => [*rows, *cols],
        _ => return Err(no_plan()),
    };
    let width = weight.dtype().bits() / 8;
    let bytes = weight.data();
    let mut out = vec![0; bytes.len()];
    for (c, column) in out.chunks_exact_mut((rows * width).max(1)).enumerate() {
        for (r, to) in column.chunks_exact_mut(width.max(1)).enumerate() {
            let from = (r * cols + c) * width;
            to.copy_from_slice(&bytes[from..from + width]);
        }
    }
    tensor::Tensor::new(weight.dtype(), vec![cols, rows], out)
}
