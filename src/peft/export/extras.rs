//! Full tensors of an adapter under PEFT's names, and the config's keys that go with them.

use std::collections::BTreeSet;

use super::content::{Entry, Values, impossible};
use crate::adapter::{Adapter, ExtraRole, Module};
use crate::error::Result;
use crate::peft::config::Bias;
use crate::peft::names::PREFIX;
use crate::peft::saved::heads_of_task;
use crate::peft::tokens::{SUFFIX, TrainedTokens};
use crate::tensor::Tensor;

/// What `modules_to_save` calls the module: what PEFT itself saves for the task goes as a whole, since
/// it does not wrap a module within one that it wraps.
fn saved_module(module: &str, tensor: &str, task: Option<&str>) -> String {
    let heads = heads_of_task(task);
    let mut dots = tensor.match_indices('.').map(|(dot, _)| &tensor[..dot]);
    let wrapped = dots.find(|path| heads.iter().any(|head| path.ends_with(head)));
    wrapped.unwrap_or(module).to_owned()
}

/// The tensors, and what the config says of them.
pub(super) struct Extras {
    pub(super) entries: Vec<Entry>,
    pub(super) bias: Bias,
    pub(super) lora_bias: bool,
    pub(super) saved: Vec<String>,
    pub(super) tokens: TrainedTokens,
}

/// The adapter's full tensors as entries of a directory.
pub(super) fn extra_entries(adapter: &Adapter, modules: &[Module]) -> Result<Extras> {
    let adapted: BTreeSet<&str> = modules.iter().map(|m| m.path.as_str()).collect();
    let mut out = Extras {
        entries: Vec::new(),
        bias: Bias::None,
        lora_bias: false,
        saved: Vec::new(),
        tokens: TrainedTokens::None,
    };
    let mut trained_rows = Vec::new();
    let mut with_bias = BTreeSet::new();
    let mut push = |name: String, tensor: &Tensor| {
        out.entries.push(Entry {
            name,
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            values: Values::Ready(tensor.clone()),
        });
    };
    for extra in &adapter.extras {
        let (module, parameter) = extra.name.rsplit_once('.').unwrap_or(("", &extra.name));
        let is_adapted = adapted.contains(module);
        match extra.role {
            ExtraRole::Replace => {
                push(format!("{PREFIX}{}", extra.name), &extra.tensor);
                out.saved
                    .push(saved_module(module, &extra.name, adapter.task.as_deref()));
            }
            ExtraRole::Bias => {
                let wrapper = if is_adapted { ".base_layer" } else { "" };
                let name = format!("{PREFIX}{module}{wrapper}.{parameter}");
                push(name, &extra.tensor);
                out.bias = match out.bias {
                    Bias::None | Bias::Adapted if is_adapted => Bias::Adapted,
                    _ => Bias::All,
                };
            }
            ExtraRole::BaseLayer => push(
                format!("{PREFIX}{module}.base_layer.{parameter}"),
                &extra.tensor,
            ),
            ExtraRole::Rows => {
                push(format!("{PREFIX}{module}{SUFFIX}"), &extra.tensor);
                trained_rows.push((module.to_owned(), extra.rows.clone()));
            }
            ExtraRole::AddBias(scaling, rank) => {
                let own = modules.iter().find(|m| m.path == module);
                let own = own.map(|m| &adapter.groups[m.group]);
                if own.is_none_or(|g| g.scaling != scaling || g.rank != rank) {
                    let message = format!("the bias of `{module}` is not scaled as its update is");
                    return Err(impossible(message));
                }
                push(format!("{PREFIX}{module}.lora_B.bias"), &extra.tensor);
                with_bias.insert(module);
            }
        }
    }
    if !with_bias.is_empty() {
        out.lora_bias = true;
        // PEFT knows lora_bias for all modules or none: the others get zeros.
        let others = modules.iter();
        for m in others.filter(|m| !with_bias.contains(m.path.as_str())) {
            let n = adapter.groups[m.group].targets[m.target].out;
            let zeros = Tensor::from_f32(vec![n], &vec![0.0; n])?;
            push(format!("{PREFIX}{}.lora_B.bias", m.path), &zeros);
        }
    }
    if !trained_rows.is_empty() {
        out.tokens = TrainedTokens::Named(trained_rows);
    }
    out.saved.sort();
    out.saved.dedup();
    Ok(out)
}
