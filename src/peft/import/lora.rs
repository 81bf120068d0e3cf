//! LoRA and DoRA: pairs with the ranks and alphas that the config's patterns give.

use super::imported::PeftKind;
use super::importer::{Importer, Update, check_target};
use crate::adapter::{Extra, ExtraRole, Factor, Scaling, ScalingRule};
use crate::error::{Code, Error, Result};
use crate::peft::config::LoraConfig;
use crate::peft::names::LoraRules;
use crate::peft::tensors::Sorted;

impl Importer<'_> {
    pub(super) fn lora(&mut self, config: &LoraConfig, sorted: &Sorted) -> Result<PeftKind> {
        if sorted.lora.is_empty() {
            return Err(Error::new(
                Code::MissingFactor,
                "the file has no lora_A or lora_B tensor",
            ));
        }
        let rules = LoraRules::new(config)?;
        for (path, module) in &sorted.lora {
            let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
            let rank = module.check_shapes().map_err(|e| e.tensor(path))?;
            check_target(rules.targets(), path)?;
            let configured = rules.rank(path)? as usize;
            if configured != rank {
                let message = format!("`{path}` has rank {rank}, the config gives it {configured}");
                return Err(Error::new(Code::RankMismatch, message)
                    .hint("r and rank_pattern must be those of the training run"));
            }
            let rule = if config.use_rslora {
                ScalingRule::AlphaOverSqrtRank
            } else {
                ScalingRule::AlphaOverRank
            };
            let scaling = Scaling {
                alpha: rules.alpha(path)?,
                rule,
            };
            let (n, m) = (a.shape()[1], b.shape()[0]);
            let kind = self.kind(path, module.embedding, config.fan_in_fan_out);
            let update = Update {
                kind,
                rank,
                in_features: n,
                out: m,
                scaling,
                a: Factor::trained(a.clone()),
                b: Factor::trained(b.clone()),
                vectors: None,
            };
            self.push_group(path, update)?;
            if let Some(bias) = &module.bias {
                let role = ExtraRole::AddBias(scaling, rank);
                self.adapter
                    .extras
                    .push(Extra::new(format!("{path}.bias"), role, bias.clone()));
            }
            if let Some(magnitude) = &module.magnitude {
                self.magnitudes.insert(path.clone(), magnitude.clone());
            }
        }
        let dora = config.is_dora();
        let expected = if dora { sorted.lora.len() } else { 0 };
        if self.magnitudes.len() != expected {
            let message = format!(
                "use_dora is {dora}, and {} of {} modules have a magnitude vector",
                self.magnitudes.len(),
                sorted.lora.len()
            );
            return Err(Error::new(Code::MissingFactor, message));
        }
        Ok(if dora { PeftKind::Dora } else { PeftKind::Lora })
    }
}
