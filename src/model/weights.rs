//! A model's frozen weights, found by name and checked against the config.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use super::ModelConfig;
use super::family::Slot;
use crate::adapter::LAYER_PLACE;
use crate::error::{Code, Error, Result};
use crate::model::ops::{Heads, Matrix, Norm, Piece, Products, Span, fuses};
use crate::safetensors::Checkpoint;
use crate::tensor::{self, shape_text};

/// A linear module of a layer.
#[derive(Debug)]
pub(super) struct Module {
    /// Full path, as adapters name it.
    pub(super) path: String,
    pub(super) matrix: Matrix,
    /// Its rows among the slot's columns.
    pub(super) spans: Vec<Span>,
}

/// The modules that read one input, and their product.
#[derive(Debug)]
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
    /// Before attention and before the MLP.
    pub(super) norms: [Norm; 2],
    /// Of the query and the key heads.
    pub(super) head_norms: Option<[Norm; 2]>,
    pub(super) heads: Heads,
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
    pub(super) embedding: Matrix,
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
        used: BTreeSet::new(),
    };
    loader.all().map_err(|e| e.file(checkpoint.path()))
}

impl Loader<'_> {
    fn all(&mut self) -> Result<Weights> {
        let (family, config) = (self.config.family, self.config);
        let embedding = self.matrix(family.embedding, [config.vocabulary, config.hidden])?;
        let layers = (0..config.layers)
            .map(|l| self.layer(l))
            .collect::<Result<_>>()?;
        let norm = self.norm(family.final_norm, config.hidden)?;
        let head = match config.tied_head {
            true => {
                // Some checkpoints store the tied head a second time.
                self.used.insert(format!("{}.weight", family.head));
                None
            }
            false => Some(self.matrix(family.head, [config.vocabulary, config.hidden])?),
        };
        self.check_unused()?;
        Ok(Weights {
            embedding,
            layers,
            norm,
            head,
        })
    }

    fn layer(&mut self, number: usize) -> Result<Layer> {
        let (family, config) = (self.config.family, self.config);
        let prefix = family.layer.replacen(LAYER_PLACE, &number.to_string(), 1);
        let norms = [
            self.norm(&format!("{prefix}.{}", family.norms[0]), config.hidden)?,
            self.norm(&format!("{prefix}.{}", family.norms[1]), config.hidden)?,
        ];
        let head_norms = match family.head_norms {
            None => None,
            Some([q, k]) => Some([
                self.norm(&format!("{prefix}.{q}"), config.head_dim)?,
                self.norm(&format!("{prefix}.{k}"), config.head_dim)?,
            ]),
        };
        let mut slot = |slot| self.projection(&prefix, slot);
        Ok(Layer {
            norms,
            head_norms,
            heads: Heads {
                q: config.q_heads,
                kv: config.kv_heads,
                dim: config.head_dim,
                scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                window: config.windows[number],
            },
            slots: [
                slot(Slot::Qkv)?,
                slot(Slot::Output)?,
                slot(Slot::GateUp)?,
                slot(Slot::Down)?,
            ],
        })
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
            let name = format!("{path}.weight");
            let matrix = Matrix::mapped(self.tensor(&name, &[out, in_features])?)
                .map_err(|e| e.tensor(name))?
                .with_products(self.products);
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

    fn norm(&mut self, path: &str, width: usize) -> Result<Norm> {
        let mut gain = self.tensor(&format!("{path}.weight"), &[width])?.to_f32()?;
        gain.iter_mut()
            .for_each(|g| *g += self.config.family.gain_offset);
        let name = format!("{path}.bias");
        let bias = match self.checkpoint.locate(&name) {
            Some(_) => self.tensor(&name, &[width])?.to_f32()?,
            None => Vec::new(),
        };
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
        let left = (self.checkpoint.tensors().keys()).find(|name| {
            // Old checkpoints store the frequencies, which follow from the config.
            !self.used.contains(*name) && !name.ends_with("rotary_emb.inv_freq")
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
