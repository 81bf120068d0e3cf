//! LoRA and DoRA: pairs with the ranks and alphas that the config's patterns give.

use super::imported::PeftKind;
use super::importer::{Importer, Update, check_target};
use crate::adapter::{Extra, ExtraRole, Factor, ModuleKind, Scaling, ScalingRule};
use crate::error::{Code, Error, Result};
use crate::peft::config::LoraConfig;
use crate::peft::json::cut;
use crate::peft::names::LoraRules;
use crate::peft::parameters::{TargetParameters, by_expert};
use crate::peft::tensors::{LoraModule, Sorted};
use crate::tensor::Tensor;

impl Importer<'_> {
    pub(super) fn lora(&mut self, config: &LoraConfig, sorted: &Sorted) -> Result<PeftKind> {
        if sorted.lora.is_empty() && config.trainable_tokens.are_alone() {
            return Ok(PeftKind::Lora);
        }
        if sorted.lora.is_empty() {
            return Err(Error::new(
                Code::MissingFactor,
                "the file has no lora_A or lora_B tensor",
            ));
        }
        let rules = LoraRules::new(config)?;
        let base = self.options.base;
        let parameters = TargetParameters(&config.target_parameters)
            .of_wrappers(sorted.lora.keys().map(String::as_str), |name| {
                base.map(|b| b.has_tensor(name))
            })?;
        for (path, module) in &sorted.lora {
            if self.is_of_rank_zero(path, module, &rules)? {
                continue;
            }
            match parameters.get(path.as_str()) {
                Some(name) => self.parameter(name, module, config, &rules)?,
                None if Self::is_stacked(path, module)? => {
                    self.stacked(path, module, config, &rules)?;
                }
                None => self.module(path, module, config, &rules)?,
            }
        }
        self.note_rank_zero();
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
        let own = parameters.into_iter();
        self.parameters
            .extend(own.map(|(path, name)| (path.to_owned(), name)));
        Ok(if dora { PeftKind::Dora } else { PeftKind::Lora })
    }

    /// Whether config and tensors give a module rank 0, so that nothing is added to its weight.
    fn is_of_rank_zero(
        &mut self,
        path: &str,
        module: &LoraModule,
        rules: &LoraRules<'_>,
    ) -> Result<bool> {
        let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
        if !a.is_empty() && !b.is_empty() {
            return Ok(false);
        }
        let rank = module.check_shapes().map_err(|e| e.tensor(path))?;
        let configured = rules.rank(path)? as usize;
        if configured != rank {
            return Err(other_rank(path, rank, configured));
        }
        check_target(rules.targets(), path)?;
        if module.bias.is_some() || module.magnitude.is_some() {
            let message =
                "has rank 0, and a bias or a magnitude that changes the module all the same";
            return Err(Error::new(Code::UnsupportedVariant, message).tensor(path));
        }
        self.rank_zero.push(path.to_owned());
        Ok(true)
    }

    fn note_rank_zero(&mut self) {
        if let [first, ..] = &self.rank_zero[..] {
            let all = self.rank_zero.len();
            self.notes.push(format!(
                "{all} modules have rank 0, change nothing and were left out, `{}` first",
                cut(first)
            ));
        }
    }

    fn module(
        &mut self,
        path: &str,
        module: &LoraModule,
        config: &LoraConfig,
        rules: &LoraRules<'_>,
    ) -> Result<()> {
        let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
        let rank = module.check_shapes().map_err(|e| e.tensor(path))?;
        check_target(rules.targets(), path)?;
        let configured = rules.rank(path)? as usize;
        if configured != rank {
            return Err(other_rank(path, rank, configured));
        }
        let scaling = scaling(path, config, rules)?;
        let (n, m) = (a.shape()[1], b.shape()[0]);
        let kind = self.kind(path, module.embedding, config.fan_in_fan_out);
        let update = Update {
            kind,
            experts: None,
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
            self.magnitudes.insert(path.to_owned(), magnitude.clone());
        }
        Ok(())
    }

    /// A pair of a parameter, of one weight or of several experts.
    fn parameter(
        &mut self,
        name: &str,
        module: &LoraModule,
        config: &LoraConfig,
        rules: &LoraRules<'_>,
    ) -> Result<()> {
        let (a, b) = module.pair().map_err(|e| e.tensor(name))?;
        let rows = module.check_shapes().map_err(|e| e.tensor(name))?;
        let refusal = match () {
            () if module.bias.is_some() || config.lora_bias => Some("lora_bias"),
            () if module.magnitude.is_some() || config.use_dora => Some("DoRA"),
            () if config.fan_in_fan_out => Some("fan_in_fan_out"),
            () if module.embedding => Some("embeddings"),
            () => None,
        };
        if let Some(what) = refusal {
            let message = format!("PEFT has no {what} for parameters");
            return Err(Error::new(Code::UnsupportedTargetParameters, message).tensor(name));
        }
        let rank = rules.rank(name)? as usize;
        let known = self.options.base.and_then(|base| base.parameter(name));
        let experts = match known {
            Some(known) => known.experts,
            None => (rows != rank).then_some(rows / rank),
        };
        if rank.checked_mul(experts.unwrap_or(1)) != Some(rows) {
            return Err(other_rank(name, rows, rank).hint(
                "lora_A of a parameter has r rows for each of its experts; r and rank_pattern must be those of the training run",
            ));
        }
        let transposed = known.is_some_and(|k| k.transposed);
        if transposed && experts == Some(1) {
            let message = "PEFT does not transpose the update of a single expert";
            return Err(Error::new(Code::UnsupportedTargetParameters, message).tensor(name));
        }
        let (in_features, out) = (a.shape()[1], b.shape()[0]);
        let (a, b) = match experts {
            Some(e) => {
                let shape = vec![e, rank, in_features];
                let a = Tensor::new(a.dtype(), shape, a.data().clone())?;
                (a, by_expert(b, e)?)
            }
            None => (a.clone(), b.clone()),
        };
        let kind = match transposed {
            true => ModuleKind::ParameterTransposed,
            false => ModuleKind::Parameter,
        };
        let update = Update {
            kind,
            experts,
            rank,
            in_features,
            out,
            scaling: scaling(name, config, rules)?,
            a: Factor::trained(a),
            b: Factor::trained(b),
            vectors: None,
        };
        self.push_group(name, update)
    }
}

pub(super) fn scaling(path: &str, config: &LoraConfig, rules: &LoraRules<'_>) -> Result<Scaling> {
    let rule = if config.use_rslora {
        ScalingRule::AlphaOverSqrtRank
    } else {
        ScalingRule::AlphaOverRank
    };
    Ok(Scaling {
        alpha: rules.alpha(path)?,
        rule,
    })
}

pub(super) fn other_rank(path: &str, rank: usize, configured: usize) -> Error {
    let message = format!("`{path}` has rank {rank}, the config gives it {configured}");
    Error::new(Code::RankMismatch, message)
        .hint("r and rank_pattern must be those of the training run")
}
