//! VeRA: two vectors for each module over one pair of projections, stored or made anew.

use super::imported::PeftKind;
use super::importer::{Importer, Update, check_target};
use crate::adapter::provenance::{VERA_KEY, VERA_REGENERATED};
use crate::adapter::{Factor, Scaling};
use crate::error::{Code, Error, Result};
use crate::peft::config::VeraConfig;
use crate::peft::inputs::vera_inputs;
use crate::peft::names::TargetRules;
use crate::peft::projection::{Fma, regenerate};
use crate::peft::tensors::Sorted;
use crate::tensor::{Dtype, Tensor};

impl Importer<'_> {
    pub(super) fn vera(&mut self, config: &VeraConfig, sorted: &Sorted) -> Result<PeftKind> {
        if sorted.vera.is_empty() {
            return Err(Error::new(
                Code::MissingFactor,
                "the file has no vera_lambda_d or vera_lambda_b tensor",
            ));
        }
        let rules = TargetRules::new(&config.selection)?;
        let rank = config.r as usize;
        let mut modules = Vec::new();
        for (path, module) in &sorted.vera {
            let (d, b) = module.vectors().map_err(|e| e.tensor(path))?;
            check_target(&rules, path)?;
            if d.len() != rank {
                let message = format!("`{path}` has rank {}, the config says {rank}", d.len());
                return Err(Error::new(Code::RankMismatch, message));
            }
            modules.push((path, d, b, b.len()));
        }
        let paths: Vec<(&str, usize)> = modules
            .iter()
            .map(|(p, .., out)| (p.as_str(), *out))
            .collect();
        let stored_in = sorted
            .projection
            .as_ref()
            .and_then(|(a, _)| a.shape().get(1).copied());
        let inputs = vera_inputs(&paths, stored_in, self.options.base, config.fan_in_fan_out)?;
        let max_in = inputs.iter().copied().max().unwrap_or(0);
        let max_out = paths.iter().map(|(_, out)| *out).max().unwrap_or(0);
        let (a, b, kind) = self.projections(config, sorted, rank, [max_in, max_out])?;
        for ((path, d, lambda_b, out), n) in modules.into_iter().zip(inputs) {
            let kind = self.kind(path, false, config.fan_in_fan_out);
            let update = Update {
                kind,
                experts: None,
                rank,
                in_features: n,
                out,
                scaling: Scaling::one(rank),
                a: a.clone(),
                b: b.clone(),
                vectors: Some((d, lambda_b)),
            };
            self.push_group(path, update)?;
        }
        Ok(kind)
    }

    fn projections(
        &mut self,
        config: &VeraConfig,
        sorted: &Sorted,
        rank: usize,
        [max_in, max_out]: [usize; 2],
    ) -> Result<(Factor, Factor, PeftKind)> {
        match (&sorted.projection, config.save_projection) {
            (Some((a, b)), true) => {
                if a.shape() != [rank, max_in] || b.shape() != [max_out, rank] {
                    let message = format!(
                        "vera_A {:?} and vera_B {:?} do not fit rank {rank}, inputs up to {max_in}, outputs up to {max_out}",
                        a.shape(),
                        b.shape()
                    );
                    return Err(Error::new(Code::FactorShape, message));
                }
                self.record(VERA_KEY, config.projection_prng_key.to_string());
                let (a, b) = (Factor::frozen(a.clone()), Factor::frozen(b.clone()));
                Ok((a, b, PeftKind::Vera))
            }
            (None, true) => Err(Error::new(
                Code::NoProjection,
                "save_projection is true, and base_model.vera_A and vera_B are not in the file",
            )),
            // PEFT ignores stored projections where save_projection is false; so do we, and say so.
            (stored, false) => {
                if stored.is_some() {
                    self.notes.push("save_projection is false: the stored projections are ignored, as PEFT does".into());
                }
                let (a, b) = self.regenerated(config, rank, [max_in, max_out])?;
                Ok((a, b, PeftKind::VeraRegenerated))
            }
        }
    }

    /// The projections that the config's key makes.
    fn regenerated(
        &mut self,
        config: &VeraConfig,
        rank: usize,
        [max_in, max_out]: [usize; 2],
    ) -> Result<(Factor, Factor)> {
        let (key, fma) = (config.projection_prng_key, self.options.fma);
        let (a, b) = regenerate(key, rank, max_in, max_out, fma)?;
        let dtype = self.options.projection_dtype.unwrap_or(Dtype::F32);
        // PEFT casts the f32 values to the base's dtype and back before it uses them.
        let effective = |shape: [usize; 2], values: &[f32]| {
            let narrow = Tensor::narrowed(dtype, shape.to_vec(), values)?;
            Tensor::from_f32(shape.to_vec(), &narrow.to_f32()?).map(Factor::frozen)
        };
        let rounding = match fma {
            Fma::Fused => "fused",
            Fma::Separate => "separate",
        };
        let how = format!("mt19937 key {key}, {rounding} multiply-add, {dtype} base");
        self.notes.push(format!(
            "the projections are not stored; they were regenerated ({how}), which is exact only if training computed them so"
        ));
        self.record(VERA_REGENERATED, how);
        self.record(VERA_KEY, key.to_string());
        let (a, b) = (
            effective([rank, max_in], &a),
            effective([max_out, rank], &b),
        );
        Ok((a?, b?))
    }

    fn record(&mut self, key: &str, value: String) {
        self.adapter.provenance.insert(key.to_owned(), value);
    }
}
