//! What an adapter is: from its manifest, or from the names and shapes of PEFT's tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Recipe, TargetModule};
use super::row::Kind;
use super::sum::add;
use super::tensors::{Contents, StoredTensor, TensorSums};
use crate::adapter::{Adapter, LAYER_PLACE, Method, split_digits};
use crate::peft::names::strip_prefix;
use crate::peft::slot::Slot;

/// What is known of an adapter beside its bytes.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) kind: Option<Kind>,
    pub(super) base: Option<String>,
    pub(super) base_fingerprint: Option<String>,
    pub(super) rank: Option<u64>,
    pub(super) alpha: Option<f64>,
    pub(super) modules: Option<u64>,
    pub(super) layers: Option<u64>,
    pub(super) trained_parameters: Option<u64>,
    /// What other forms of it would be computed from, where it is a LoRA.
    pub(super) lora: Option<LoraShape>,
}

/// The modules of a LoRA, and what else its weights hold.
#[derive(Debug, Default)]
pub(super) struct LoraShape {
    /// Tie groups that a retrained adapter would have.
    pub(super) targets: Vec<TargetModule>,
    /// Bits of a factor's number.
    pub(super) bits: u64,
    /// Bytes of tensors that are no factors.
    pub(super) extra_bytes: u64,
}

impl Description {
    /// Of an adapter with this manifest.
    pub(super) fn of_tl(adapter: &Adapter) -> Self {
        let method = adapter.method();
        let modules = adapter.modules();
        let base = adapter.base.as_ref();
        Self {
            kind: Some(Kind::Method(method)),
            base: base.and_then(|b| b.name.clone()),
            base_fingerprint: base.and_then(|b| b.weights.clone()),
            rank: adapter.groups.iter().map(|g| g.rank as u64).max(),
            alpha: adapter.groups.first().map(|g| g.scaling.alpha),
            modules: Some(modules.len() as u64),
            layers: Some(layers(modules.iter().map(|m| m.path.as_str()))),
            trained_parameters: Some(adapter.trained_parameters()),
            lora: (method == Method::Lora).then(|| LoraShape::of_tl(adapter)),
        }
    }

    /// As the config says, with what the names and shapes of the tensors add.
    pub(super) fn with_peft(self, tensors: &[StoredTensor], sums: &TensorSums) -> Self {
        let frozen = tensors.iter().filter(|t| is_projection(&t.name));
        let frozen = frozen.map(StoredTensor::elements);
        let frozen = frozen.fold(0, u64::saturating_add);
        let modules: BTreeSet<&str> = tensors
            .iter()
            .filter_map(|t| factor(&t.name))
            .map(|(module, _)| module)
            .collect();
        let adapted = !modules.is_empty();
        let is_lora = self.kind == Some(Kind::Method(Method::Lora));
        let lora = is_lora.then(|| LoraShape::of_peft(tensors));
        let largest = lora.iter().flat_map(|l| &l.targets).map(|t| t.rank).max();
        Self {
            rank: largest.or(self.rank),
            modules: adapted.then_some(modules.len() as u64),
            layers: adapted.then(|| layers(modules.iter().copied())),
            trained_parameters: Some(sums.parameters.saturating_sub(frozen)),
            lora,
            ..self
        }
    }
}

impl LoraShape {
    fn of_tl(adapter: &Adapter) -> Self {
        let mut targets = Targets::default();
        for module in &adapter.modules() {
            let Some(group) = adapter.groups.get(module.group) else {
                continue;
            };
            let Some(target) = group.targets.get(module.target) else {
                continue;
            };
            let sizes = [group.in_features, target.out, group.rank];
            targets.add(&module.path, sizes.map(|n| n as u64));
        }
        let a = adapter.groups.first().map(|g| g.a.tensor.dtype());
        Self {
            targets: targets.finish(),
            bits: a.map_or(0, |d| d.bits() as u64),
            extra_bytes: adapter.extras.iter().map(|e| e.tensor.byte_len()).sum(),
        }
    }

    fn of_peft(tensors: &[StoredTensor]) -> Self {
        let mut shape = Self::default();
        let mut pairs: BTreeMap<&str, [Option<&StoredTensor>; 2]> = BTreeMap::new();
        for tensor in tensors {
            match factor(&tensor.name) {
                Some((module, slot @ (0 | 1))) => {
                    pairs.entry(module).or_default()[slot] = Some(tensor);
                }
                _ => add(&mut shape.extra_bytes, tensor.bytes),
            }
        }
        let mut targets = Targets::default();
        for (module, pair) in pairs {
            let [Some(a), Some(b)] = pair else { continue };
            // A convolution's A is (rank, in, height, width). Where B is of another rank, as in the
            // grouped factors of PEFT's first releases, no formula says what retraining would take.
            let (Some(rank), Some(out)) = (a.shape.first(), b.shape.first()) else {
                continue;
            };
            if b.shape.get(1) != Some(rank) {
                add(&mut shape.extra_bytes, a.bytes + b.bytes);
                continue;
            }
            let input = a.elements().checked_div(*rank as u64).unwrap_or(0);
            targets.add(module, [input, *out as u64, *rank as u64]);
            shape.bits = shape.bits.max(a.dtype.bits() as u64);
        }
        shape.targets = targets.finish();
        shape
    }
}

/// PEFT's tensors by what their waste is looked for by. `key` is the seed of VeRA's projections.
pub(super) fn peft_contents(tensors: &[StoredTensor], key: Option<u64>) -> Contents {
    let find = |name: &str| {
        let found = tensors.iter().find(|t| t.name == name);
        found.map(|t| t.shape.as_slice())
    };
    let pair = match (find("base_model.vera_A"), find("base_model.vera_B")) {
        (Some(&[rank, input]), Some(&[out, _])) => key.map(|key| (key, rank, input, out)),
        _ => None,
    };
    let recipe = |tensor: &StoredTensor| {
        let (key, rank, input, out) = pair.filter(|_| is_projection(&tensor.name))?;
        Some(Recipe::Vera {
            key,
            rank,
            input,
            out,
            dtype: tensor.dtype,
            is_b: tensor.name.ends_with('B'),
        })
    };
    Contents::of(tensors.iter().map(|t| (t, t.wide(), recipe(t))))
}

fn is_projection(name: &str) -> bool {
    matches!(name, "base_model.vera_A" | "base_model.vera_B")
}

/// The module that a tensor is a factor of, and which: 0 for A, 1 for B, 2 for VeRA's outputs.
fn factor(name: &str) -> Option<(&str, usize)> {
    let named = Slot::split(strip_prefix(name))?;
    let which = match named.slot {
        Slot::A | Slot::EmbeddingA => 0,
        Slot::B | Slot::EmbeddingB => 1,
        Slot::LambdaB => 2,
        Slot::Bias | Slot::Magnitude | Slot::LambdaD => return None,
    };
    Some((named.module, which))
}

/// How many layers these modules are in; the same number in two lists of layers is two.
fn layers<'m>(modules: impl Iterator<Item = &'m str>) -> u64 {
    let layer = |module: &'m str| {
        let (path, layer) = split_digits(module);
        let list = path
            .split(LAYER_PLACE)
            .next()
            .unwrap_or_default()
            .to_owned();
        layer.map(|layer| (list, layer))
    };
    modules.filter_map(layer).collect::<BTreeSet<_>>().len() as u64
}

/// Adapted modules, gathered over their layers.
#[derive(Default)]
struct Targets(BTreeMap<(String, u64, u64), (u64, u64)>);

impl Targets {
    /// Adds a module with its input, output and rank.
    fn add(&mut self, module: &str, [input, out, rank]: [u64; 3]) {
        let key = (split_digits(module).0, input, out);
        let (layers, largest) = self.0.entry(key).or_default();
        *layers += 1;
        *largest = rank.max(*largest);
    }

    fn finish(self) -> Vec<TargetModule> {
        let target = |((module, input, out), (layers, rank))| TargetModule {
            module,
            input,
            out,
            rank,
            layers,
        };
        self.0.into_iter().map(target).collect()
    }
}
