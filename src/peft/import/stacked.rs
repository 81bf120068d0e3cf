//! Pairs of all experts in one tensor each, as SGLang, vLLM and Tinker name them: of `experts.w1`, `lora_A` is
//! (E, r, in) and `lora_B` (E, out, r). Where all experts have one A or one B (shared-outer LoRA: A of gate and up, B of
//! down), its first extent is 1.

use super::importer::{Importer, Update, check_target};
use super::lora::{other_rank, scaling};
use crate::adapter::{Factor, MAX_EXPERTS, MAX_MODULES, ModuleKind};
use crate::error::{Code, Error, Result};
use crate::peft::config::LoraConfig;
use crate::peft::names::LoraRules;
use crate::peft::tensors::LoraModule;
use crate::tensor::Tensor;

/// What ends the path of the module that has experts.
const EXPERTS: &str = "experts";
/// What ends it where a single expert's weights are called w1, w2 and w3.
const NUMBERED: &str = "block_sparse_moe.experts";
/// The weights of an expert by both of their names: gate, up and down.
const LEAVES: [(&str, &str); 3] = [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")];

impl Importer<'_> {
    /// Whether a pair has the form, of any module of experts.
    pub(super) fn is_stacked(path: &str, module: &LoraModule) -> Result<bool> {
        let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
        let of_experts = path.split('.').any(|segment| segment == EXPERTS);
        Ok(of_experts && a.shape().len() == 3 && b.shape().len() == 3)
    }

    /// Takes such a pair apart, into one of each expert; the bytes are shared.
    pub(super) fn stacked(
        &mut self,
        path: &str,
        module: &LoraModule,
        config: &LoraConfig,
        rules: &LoraRules<'_>,
    ) -> Result<()> {
        let (a, b) = module.pair().map_err(|e| e.tensor(path))?;
        let split = path.rsplit_once('.').filter(|(parent, _)| {
            parent
                .rsplit_once('.')
                .map_or(*parent, |(_, last)| last)
                .eq(EXPERTS)
        });
        let leaves = split.and_then(|(parent, leaf)| {
            let leaves = LEAVES
                .iter()
                .find(|(w, name)| leaf == *w || leaf == *name)?;
            Some((parent, leaves))
        });
        let Some((parent, leaves)) = leaves else {
            return Err(unread(path, a, b));
        };
        if module.bias.is_some() || module.magnitude.is_some() || config.fan_in_fan_out {
            let message = "a pair of all experts with a bias, a magnitude or fan_in_fan_out";
            return Err(Error::new(Code::UnsupportedTargetParameters, message).tensor(path));
        }
        let experts = stack(path, a, b)?;
        let (rank, n, m) = (a.shape()[1], a.shape()[2], b.shape()[1]);
        let configured = rules.rank(path)? as usize;
        if configured != rank {
            return Err(other_rank(path, rank, configured));
        }
        let leaf = self.leaf_of_experts(parent, *leaves);
        check_target(rules.targets(), path).or_else(|e| {
            match rules.targets().matches(&format!("{parent}.0.{leaf}")) {
                Ok(true) => Ok(()),
                _ => Err(e),
            }
        })?;
        if self.adapter.groups.len() + experts > MAX_MODULES {
            let message = format!("more adapted modules than the limit of {MAX_MODULES}");
            return Err(Error::new(Code::ManifestLimit, message).tensor(path));
        }
        let scaling = scaling(path, config, rules)?;
        for expert in 0..experts {
            let own = |t: &Tensor| t.index_first(expert.min(t.shape()[0] - 1));
            let (Some(a), Some(b)) = (own(a), own(b)) else {
                return Err(unread(path, a, b));
            };
            let update = Update {
                kind: ModuleKind::Linear,
                experts: None,
                rank,
                in_features: n,
                out: m,
                scaling,
                a: Factor::trained(a),
                b: Factor::trained(b),
                vectors: None,
            };
            let name = format!("{parent}.{expert}.{leaf}");
            self.push_group(&name, update)?;
            self.of_stacks.insert(name);
        }
        Ok(())
    }

    /// What the weight of a single expert is called: as the base has it, else as SGLang takes it.
    fn leaf_of_experts(&self, parent: &str, (numbered, named): (&str, &str)) -> String {
        let has = |leaf: &str| {
            let name = format!("{parent}.0.{leaf}.weight");
            self.options.base.map(|base| base.has_tensor(&name))
        };
        let is_numbered = match (has(named), has(numbered)) {
            (Some(false), Some(true)) => true,
            (Some(true), _) => false,
            _ => parent.ends_with(NUMBERED),
        };
        if is_numbered { numbered } else { named }.to_owned()
    }
}

/// How many experts a pair has.
fn stack(path: &str, a: &Tensor, b: &Tensor) -> Result<usize> {
    let ([of_a, rank, _], [of_b, _, other]) = (a.shape(), b.shape()) else {
        return Err(unread(path, a, b));
    };
    let experts = *of_a.max(of_b);
    let fits = |own: usize| own == experts || own == 1;
    if rank != other || !fits(*of_a) || !fits(*of_b) {
        let message = format!(
            "lora_A {:?} and lora_B {:?} do not fit one another as (experts, r, in) and (experts, out, r)",
            a.shape(),
            b.shape()
        );
        return Err(Error::new(Code::FactorShape, message).tensor(path));
    }
    if experts > MAX_EXPERTS {
        let message = format!("{experts} experts, the limit is {MAX_EXPERTS}");
        return Err(Error::new(Code::ManifestLimit, message).tensor(path));
    }
    Ok(experts)
}

fn unread(path: &str, a: &Tensor, b: &Tensor) -> Error {
    let message = format!(
        "lora_A {:?} and lora_B {:?} are of all experts at once under a name that does not say how gate and up lie; read are w1, w2, w3, gate_proj, up_proj and down_proj of `experts`",
        a.shape(),
        b.shape()
    );
    Error::new(Code::UnsupportedTargetParameters, message).tensor(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use crate::adapter::Adapter;
    use crate::error::{Code, Result};
    use crate::peft::import::{ImportOptions, import};
    use crate::safetensors::encode_header;
    use crate::tensor::Dtype;

    /// Two experts of rank 1, 3 inputs and 2 outputs; tensors count from 1, 10, 100, ….
    fn adapter(leaf: &str, shapes: [[usize; 3]; 2]) -> Result<Adapter> {
        let dir = tempfile::tempdir().unwrap();
        let names = ["A", "B"].map(|part| {
            format!("base_model.model.model.layers.0.mlp.experts.{leaf}.lora_{part}.weight")
        });
        let (mut tensors, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in names.iter().zip(&shapes) {
            let elements: usize = shape.iter().product();
            data.extend((1..=elements).flat_map(|v| (v as f32).to_le_bytes()));
            tensors.push((name.as_str(), Dtype::F32, &shape[..], 4 * elements as u64));
        }
        let mut bytes = encode_header(&[], tensors, 8);
        bytes.extend(data);
        fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
        let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["w1", "down_proj", "gate_up_proj"]}"#;
        fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        let read = |dir: &Path| import(dir, &ImportOptions::default());
        read(dir.path()).map(|imported| imported.adapter)
    }

    fn delta(adapter: &Adapter, path: &str) -> Vec<f32> {
        let modules = adapter.modules();
        let module = modules.iter().find(|m| m.path == path).unwrap();
        let group = &adapter.groups[module.group];
        group.low_rank(0, 0).unwrap().delta().into_iter().collect()
    }

    /// Breaks where an expert gets another's factor, or a shared one goes to the first alone.
    #[test]
    fn each_expert_has_its_own_factor_and_the_shared_one() {
        let of = |expert: usize, leaf: &str| format!("model.layers.0.mlp.experts.{expert}.{leaf}");
        let up = adapter("w1", [[1, 1, 3], [2, 2, 1]]).unwrap();
        assert_eq!(up.modules().len(), 2);
        let first = [1., 2., 3., 2., 4., 6.];
        assert_eq!(delta(&up, &of(0, "gate_proj")), first);
        let second = [3., 6., 9., 4., 8., 12.];
        assert_eq!(delta(&up, &of(1, "gate_proj")), second);
        let down = adapter("down_proj", [[2, 1, 3], [1, 2, 1]]).unwrap();
        assert_eq!(delta(&down, &of(0, "down_proj")), first);
        let second = [4., 5., 6., 8., 10., 12.];
        assert_eq!(delta(&down, &of(1, "down_proj")), second);
    }

    /// Breaks where halves of a joint tensor are guessed, or unlike numbers of experts pass.
    #[test]
    fn what_does_not_say_its_layout_is_refused() {
        let refusal = |leaf, shapes| adapter(leaf, shapes).unwrap_err().code();
        let joint = refusal("gate_up_proj", [[1, 1, 3], [2, 4, 1]]);
        assert_eq!(joint, Code::UnsupportedTargetParameters);
        let unlike = refusal("w1", [[3, 1, 3], [2, 2, 1]]);
        assert_eq!(unlike, Code::FactorShape);
    }
}
