use std::cmp::Ordering;

use ndarray::Array2;

use super::{LAYER_PLACE, MAX_LAYERS, MAX_RANK, Part, check_name};
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, product, scale_rows, shape_text};

/// How a module's weight is stored, and so how ΔW is laid over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ModuleKind {
    /// `nn.Linear`: weight is (out, in).
    #[default]
    Linear,
    /// GPT-2's `Conv1D`: weight is (in, out).
    Conv1d,
    /// `nn.Embedding`: weight is (in = number of embeddings, out = embedding dimension).
    Embedding,
}

impl ModuleKind {
    /// Whether the weight is stored (in, out), so that ΔW is transposed before it is added.
    pub fn is_transposed(self) -> bool {
        self != Self::Linear
    }

    /// Shape of the stored weight.
    pub fn weight_shape(self, out: usize, in_features: usize) -> [usize; 2] {
        if self.is_transposed() {
            [in_features, out]
        } else {
            [out, in_features]
        }
    }
}

/// One target module of a tie group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Module path with `{}` for the layer number where the group has layers.
    pub module: String,
    /// Output features; the rows of B (entries of v) that belong to this target.
    pub out: usize,
    /// How the weight is stored.
    pub kind: ModuleKind,
}

/// The rule that turns alpha and rank into the factor s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScalingRule {
    /// s = alpha / rank.
    AlphaOverRank,
    /// rsLoRA: s = alpha / √rank.
    AlphaOverSqrtRank,
}

/// alpha and how it scales; s is one f32 number.
#[derive(Debug, Clone, Copy)]
pub struct Scaling {
    /// LoRA's alpha, finite and above zero.
    pub alpha: f64,
    /// What it is divided by.
    pub rule: ScalingRule,
}

impl PartialEq for Scaling {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Scaling {}

impl PartialOrd for Scaling {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scaling {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Scaling {
    /// alpha = rank, so that s = 1, as in every Tied-LoRA method and in VeRA.
    pub fn one(rank: usize) -> Self {
        Self {
            alpha: rank as f64,
            rule: ScalingRule::AlphaOverRank,
        }
    }

    /// s in f64, as PEFT computes it: `alpha / r` or `alpha / math.sqrt(r)`.
    pub fn factor(&self, rank: usize) -> f64 {
        match self.rule {
            ScalingRule::AlphaOverRank => self.alpha / rank as f64,
            ScalingRule::AlphaOverSqrtRank => self.alpha / (rank as f64).sqrt(),
        }
    }

    fn key(&self) -> (u64, ScalingRule) {
        (self.alpha.to_bits(), self.rule)
    }

    pub(crate) fn validate(&self, rank: usize) -> Result<()> {
        let s = self.factor(rank) as f32;
        if self.alpha.is_finite() && self.alpha > 0.0 && s.is_finite() && s > 0.0 {
            return Ok(());
        }
        Err(Error::new(
            Code::BadAlpha,
            format!(
                "alpha {} with rank {rank} is not a usable scaling",
                self.alpha
            ),
        ))
    }
}

/// The recipe of a seeded tensor (spec §7): ChaCha20 words to uniform numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seed {
    /// ChaCha20 key.
    pub key: [u8; 32],
    /// The one factor: a value is (word >> 8) − 2²³, times this. Finite, above zero.
    pub step: f32,
}

/// One of A, B, C, u, v.
#[derive(Debug, Clone)]
pub struct Factor {
    /// A: (r, ≥ in); B: (≥ Σ out, r); with a leading layer axis where each layer has its own.
    /// C: (layers, r, r); u: (layers, r); v: (layers, Σ out); without the layer axis in a group
    /// without layers.
    pub tensor: Tensor,
    /// Whether training changes it.
    pub trained: bool,
    /// How to make it from a key, where it is random and frozen.
    pub seed: Option<Seed>,
}

impl Factor {
    /// A factor that was trained.
    pub fn trained(tensor: Tensor) -> Self {
        Self {
            tensor,
            trained: true,
            seed: None,
        }
    }

    /// A factor that was not trained.
    pub fn frozen(tensor: Tensor) -> Self {
        Self {
            tensor,
            trained: false,
            seed: None,
        }
    }

    fn is_stacked(&self) -> bool {
        self.tensor.shape().len() == 3
    }
}

/// The (layer, target) pairs that share one A and one B, with their per-layer vectors or cores.
///
/// Several targets share A, C, u and the scaling; their rows of B and entries of v follow one another
/// in the order of [`targets`](Self::targets). A may have more columns than `in_features`, and B
/// more rows than the targets need: the leading ones count (PEFT VeRA shares one sliced pair).
#[derive(Debug, Clone)]
pub struct TieGroup {
    /// Layer numbers, ascending; the first axis of stacked tensors. `None`: one module outside the layers.
    pub layers: Option<Vec<u32>>,
    /// Rank r.
    pub rank: usize,
    /// Input features of every target.
    pub in_features: usize,
    /// alpha and its rule.
    pub scaling: Scaling,
    /// Down projection.
    pub a: Factor,
    /// Up projection.
    pub b: Factor,
    /// The core: a full matrix in place of diag(u), which a group with a core does not have.
    pub core: Option<Factor>,
    /// Rank-side diagonal; absent means all ones.
    pub u: Option<Factor>,
    /// Output-side diagonal; absent means all ones.
    pub v: Option<Factor>,
    /// The modules.
    pub targets: Vec<Target>,
}

/// The factors of one module, ready for the arithmetic of spec §12: D = s · (left · right).
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// B' = diag(v)·B, out × rank, row-major.
    pub left: Vec<f32>,
    /// A' = diag(u)·A or C·A, rank × in, row-major.
    pub right: Vec<f32>,
    /// Rank.
    pub rank: usize,
    /// Output features.
    pub out: usize,
    /// Input features.
    pub in_features: usize,
    /// s before it becomes f32.
    pub scale: f64,
}

impl LowRank {
    /// ΔW (out × in) in f32 by the normative arithmetic. For small modules and tests: it is dense.
    pub fn delta(&self) -> Array2<f32> {
        let s = self.scale as f32;
        Array2::from_shape_fn((self.out, self.in_features), |(i, j)| {
            let left = &self.left[i * self.rank..(i + 1) * self.rank];
            let d = left.iter().enumerate().fold(0.0f32, |acc, (k, b)| {
                b.mul_add(self.right[k * self.in_features + j], acc)
            });
            if s == 1.0 { d } else { s * d }
        })
    }
}

impl TieGroup {
    /// Number of (per-layer) instances: the layers, or one.
    pub fn instances(&self) -> usize {
        self.layers.as_ref().map_or(1, Vec::len)
    }

    /// Σ out over the targets; `usize::MAX`, which no B can have, where the sum does not fit.
    pub fn total_out(&self) -> usize {
        let outs = self.targets.iter().map(|t| t.out);
        outs.fold(0, usize::saturating_add)
    }

    /// Whether one A and one B serve every layer.
    pub fn is_tied(&self) -> bool {
        !self.a.is_stacked() && !self.b.is_stacked()
    }

    /// The factors that are present, with their names.
    pub fn factors(&self) -> impl Iterator<Item = (Part, &Factor)> {
        let core = self.core.as_ref().map(|f| (Part::C, f));
        let u = self.u.as_ref().map(|f| (Part::U, f));
        let v = self.v.as_ref().map(|f| (Part::V, f));
        [(Part::A, &self.a), (Part::B, &self.b)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    /// As [`factors`](Self::factors), to change them.
    pub fn factors_mut(&mut self) -> impl Iterator<Item = (Part, &mut Factor)> {
        let core = self.core.as_mut().map(|f| (Part::C, f));
        let u = self.u.as_mut().map(|f| (Part::U, f));
        let v = self.v.as_mut().map(|f| (Part::V, f));
        [(Part::A, &mut self.a), (Part::B, &mut self.b)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    /// Path of a target's module in the layer of index `layer`.
    pub fn module_path(&self, target: &Target, layer: usize) -> String {
        match self.layers.as_ref().and_then(|l| l.get(layer)) {
            Some(number) => target.module.replacen(LAYER_PLACE, &number.to_string(), 1),
            None => target.module.clone(),
        }
    }

    /// The order that the format requires: by the targets' modules, then by layers.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let modules = self.targets.iter().map(|t| &t.module);
        modules
            .cmp(other.targets.iter().map(|t| &t.module))
            .then_with(|| self.layers.cmp(&other.layers))
    }

    /// The factors of one module, widened to f32 and scaled: `A' = rn32(u·A)` or C·A by
    /// [`product`], `B' = rn32(v·B)`.
    ///
    /// # Errors
    /// [`Code::Usage`] for an index out of range, or a factor without its bytes;
    /// [`Code::DtypeNotAllowed`] for one that is neither F32, F16, BF16 nor quantised.
    pub fn low_rank(&self, layer: usize, target: usize) -> Result<LowRank> {
        let range = || {
            Error::new(
                Code::Usage,
                format!("no layer {layer} or target {target} in this tie group"),
            )
        };
        let t = self.targets.get(target).ok_or_else(range)?;
        let first_row: usize = self.targets[..target].iter().map(|t| t.out).sum();
        let (r, n) = (self.rank, self.in_features);
        let a = slice_layer(&self.a.tensor, 3, layer).ok_or_else(range)?;
        let b = slice_layer(&self.b.tensor, 3, layer).ok_or_else(range)?;
        let columns = *a.shape().last().ok_or_else(range)?;
        let wide = a.to_f32()?;
        let mut right = Vec::with_capacity(r * n);
        for row in wide.chunks_exact(columns.max(1)) {
            right.extend_from_slice(row.get(..n).ok_or_else(range)?);
        }
        let rows = b.slice_first(first_row..first_row + t.out);
        let mut left = rows.ok_or_else(range)?.to_f32()?;
        if (left.len(), right.len()) != (t.out * r, r * n) {
            return Err(range());
        }
        if let Some(core) = self.own(self.core.as_ref(), 3, layer)? {
            right = product(core.get(..r * r).ok_or_else(range)?, &right, r, n);
        }
        if let Some(u) = self.own(self.u.as_ref(), 2, layer)? {
            scale_rows(&mut right, n, u.get(..r).ok_or_else(range)?);
        }
        if let Some(v) = self.own(self.v.as_ref(), 2, layer)? {
            scale_rows(
                &mut left,
                r,
                v.get(first_row..first_row + t.out).ok_or_else(range)?,
            );
        }
        let scale = self.scaling.factor(r);
        Ok(LowRank {
            left,
            right,
            rank: r,
            out: t.out,
            in_features: n,
            scale,
        })
    }

    /// What a layer has of a factor that has `stacked_rank` axes with the layers'.
    fn own(
        &self,
        factor: Option<&Factor>,
        stacked_rank: usize,
        layer: usize,
    ) -> Result<Option<Vec<f32>>> {
        let Some(factor) = factor else {
            return Ok(None);
        };
        let row = slice_layer(&factor.tensor, stacked_rank, layer).ok_or_else(|| {
            Error::new(Code::Usage, format!("no layer {layer} in this tie group"))
        })?;
        row.to_f32().map(Some)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let limit = |what: &str, n: usize, max: usize| {
            Error::new(
                Code::ManifestLimit,
                format!("{what} {n}, the limits are 1 to {max}"),
            )
        };
        if self.rank == 0 || self.rank > MAX_RANK {
            return Err(limit("rank", self.rank, MAX_RANK));
        }
        if self.in_features == 0
            || self.targets.is_empty()
            || self.targets.iter().any(|t| t.out == 0)
        {
            return Err(Error::new(
                Code::ShapeDisagrees,
                "a tie group needs targets, each with inputs and outputs",
            ));
        }
        if let Some(layers) = &self.layers {
            if layers.is_empty() || layers.len() > MAX_LAYERS {
                return Err(limit("number of layers", layers.len(), MAX_LAYERS));
            }
            if layers.windows(2).any(|w| w[0] >= w[1])
                || layers.iter().any(|l| *l as usize >= MAX_LAYERS)
            {
                let message =
                    format!("layers {layers:?} are not ascending numbers below {MAX_LAYERS}");
                return Err(Error::new(Code::BadName, message));
            }
        }
        let mut outs = self.targets.iter().map(|t| t.out);
        if outs.try_fold(0usize, usize::checked_add).is_none() {
            let message = "the targets have more outputs than any B has rows";
            return Err(Error::new(Code::ShapeDisagrees, message));
        }
        for target in &self.targets {
            check_name(&target.module, self.layers.is_some())?;
        }
        self.scaling.validate(self.rank)?;
        self.validate_shapes()
    }

    fn validate_shapes(&self) -> Result<()> {
        let (r, n, m) = (self.rank, self.in_features, self.total_out());
        let layers = self.layers.as_ref().map(Vec::len);
        if self.core.is_some() && self.u.is_some() {
            let message = "a tie group has both C and u, which take one place";
            return Err(Error::new(Code::ShapeDisagrees, message));
        }
        for (part, factor) in self.factors() {
            let shape = factor.tensor.shape();
            if !factor.tensor.is_real() {
                return Err(crate::tensor::not_float(factor.tensor.dtype()).tensor(part.name()));
            }
            let (own, stacked) = match (shape, part) {
                ([l, own @ ..], Part::A | Part::B) if own.len() == 2 => (own, Some(*l)),
                ([l, own @ ..], Part::C | Part::U | Part::V) if layers.is_some() => (own, Some(*l)),
                _ => (shape, None),
            };
            let fits = match (part, own) {
                (Part::A, [rows, columns]) => *rows == r && *columns >= n,
                (Part::B, [rows, columns]) => *rows >= m && *columns == r,
                (Part::C, [rows, columns]) => *rows == r && *columns == r,
                (Part::U, [len]) => *len == r,
                (Part::V, [len]) => *len == m,
                _ => false,
            };
            if !fits || (stacked.is_some() && stacked != layers) {
                let message = format!(
                    "{} has shape {}, which does not fit rank {r}, in {n}, out {m}, {} layers",
                    part.name(),
                    shape_text(shape),
                    layers.map_or("no".to_owned(), |l| l.to_string()),
                );
                return Err(Error::new(Code::ShapeDisagrees, message));
            }
        }
        Ok(())
    }
}

/// The layer's slice of a tensor that has a layer axis (`stacked_rank` axes), else the tensor itself.
fn slice_layer(tensor: &Tensor, stacked_rank: usize, layer: usize) -> Option<Tensor> {
    if tensor.shape().len() == stacked_rank {
        tensor.index_first(layer)
    } else {
        Some(tensor.clone())
    }
}
