//! Full tensors beside the low-rank ones: `modules_to_save`, biases, embeddings, base layers.

use super::importer::Importer;
use crate::adapter::{Extra, ExtraRole};
use crate::base::modules::{is_head, is_saved_when_resized};
use crate::error::{Code, Error, Result};
use crate::peft::config::{Bias, PeftConfig};
use crate::peft::json::cut;
use crate::peft::saved::{heads_of_task, is_in};
use crate::peft::tensors::{Sorted, unknown_tensor};

impl Importer<'_> {
    pub(super) fn extras(&mut self, config: &PeftConfig, sorted: &Sorted) -> Result<()> {
        let (bias, saved) = match config {
            PeftConfig::Lora(c) => (c.bias, &c.selection.modules_to_save),
            PeftConfig::Vera(c) => (c.bias, &c.selection.modules_to_save),
        };
        for (name, tensor) in &sorted.base_layers {
            let role = if name.ends_with(".bias") {
                ExtraRole::Bias
            } else {
                ExtraRole::BaseLayer
            };
            self.adapter
                .extras
                .push(Extra::new(name, role, tensor.clone()));
        }
        for (name, tensor) in &sorted.others {
            let module = name.rsplit_once('.').map_or("", |(m, _)| m);
            // Of an adapted module PEFT keeps what the base had under `base_layer`.
            let is_adapted = sorted.lora.contains_key(module) || sorted.vera.contains_key(module);
            let listed = || saved.iter().any(|s| is_in(name, s));
            let role = match () {
                () if sorted.copies.contains(name) || listed() => ExtraRole::Replace,
                () if name.ends_with(".bias") && bias != Bias::None => ExtraRole::Bias,
                // PEFT saves whole embeddings when the vocabulary was resized, without being asked.
                () if is_saved_when_resized(module) || is_head(name) => ExtraRole::Replace,
                // And loads every tensor that is called like one of the model's.
                () if !is_adapted && self.options.base.is_some_and(|b| b.is_of_model(name)) => {
                    ExtraRole::Replace
                }
                () => return Err(unknown_tensor(name)),
            };
            self.adapter
                .extras
                .push(Extra::new(name, role, tensor.clone()));
        }
        self.check_saved(config, saved, sorted)?;
        if bias != Bias::None
            && !self
                .adapter
                .extras
                .iter()
                .any(|e| e.role == ExtraRole::Bias)
        {
            self.notes.push(
                "the config says that biases were trained, and the file has none (PEFT 0.7 to 0.20 dropped them)".into(),
            );
        }
        Ok(())
    }

    /// Looks for tensors of each module that was saved whole. A name that no module of the model has
    /// is harmless (PEFT adds `classifier` and `score` to every classifier); a module of the base that
    /// was saved, and is not there, is not: PEFT does not load such a file either.
    fn check_saved(
        &mut self,
        config: &PeftConfig,
        saved: &[String],
        sorted: &Sorted,
    ) -> Result<()> {
        let by_task = heads_of_task(config.common().task_type.as_deref());
        for listed in saved {
            if sorted.others.keys().any(|name| is_in(name, listed))
                || by_task.contains(&listed.as_str())
            {
                continue;
            }
            let message = format!(
                "modules_to_save lists `{}`, and the file has no tensor of it",
                cut(listed)
            );
            if self.options.base.is_some_and(|b| b.has_module(listed)) {
                return Err(Error::new(Code::TargetMismatch, message)
                    .hint("PEFT does not load such a file: save the adapter again"));
            }
            self.notes.push(message);
        }
        Ok(())
    }
}
