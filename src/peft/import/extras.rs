//! Full tensors beside the low-rank ones: `modules_to_save`, biases, embeddings, base layers.

use super::importer::Importer;
use crate::adapter::{Extra, ExtraRole};
use crate::base::modules::is_saved_when_resized;
use crate::error::{Code, Error, Result};
use crate::peft::config::{Bias, PeftConfig};
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
        let mut found = vec![false; saved.len()];
        let needles: Vec<(String, String)> = saved
            .iter()
            .map(|s| (format!(".{s}"), format!("{s}.")))
            .collect();
        for (name, tensor) in &sorted.others {
            let module = name.rsplit_once('.').map_or("", |(m, _)| m);
            let hits = saved.iter().zip(&needles).map(|(s, (tail, inner))| {
                module == s || module.ends_with(tail) || module.contains(inner)
            });
            let mut hit = false;
            for (flag, this) in found.iter_mut().zip(hits) {
                *flag |= this;
                hit |= this;
            }
            let role = match () {
                () if hit => ExtraRole::Replace,
                () if name.ends_with(".bias") && bias != Bias::None => ExtraRole::Bias,
                // PEFT saves whole embeddings when the vocabulary was resized, without being asked.
                () if is_saved_when_resized(module) => ExtraRole::Replace,
                () => return Err(unknown_tensor(name)),
            };
            self.adapter
                .extras
                .push(Extra::new(name, role, tensor.clone()));
        }
        if let Some((missing, _)) = saved.iter().zip(&found).find(|(_, found)| !**found) {
            let message =
                format!("modules_to_save lists `{missing}`, and the file has no tensor of it");
            return Err(Error::new(Code::TargetMismatch, message));
        }
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
}
