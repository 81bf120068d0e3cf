//! Pairs of all experts in one tensor each, as SGLang, vLLM and Tinker name them: of `experts.w1`, `lora_A` is
//! (E, r, in) and `lora_B` (E, out, r). Where all experts have one A or one B (shared-outer LoRA: A of gate and up, B of
//! down), its first extent is 1. Of `experts.gate_up_proj`, gate and up have one A, and B has gate's outputs before up's.

use super::importer::{Importer, Update, check_target};
use super::lora::{other_rank, scaling};
use crate::adapter::{Factor, MAX_EXPERTS, MAX_MODULES, ModuleKind};
use crate::base::shapes::ParameterShape;
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
/// The first two of them in one.
const JOINT: &str = "gate_up_proj";

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
            if leaf == JOINT {
                return Some((parent, &LEAVES[..2]));
            }
            let is_own = |(w, name): &(&str, &str)| leaf == *w || leaf == *name;
            let at = LEAVES.iter().position(is_own)?;
            Some((parent, &LEAVES[at..=at]))
        });
        let Some((parent, leaves)) = leaves else {
            return Err(unread(path, a, b));
        };
        if leaves.len() > 1 {
            self.check_halves(path)?;
        }
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
        if self.adapter.groups.len() + experts * leaves.len() > MAX_MODULES {
            let message = format!("more adapted modules than the limit of {MAX_MODULES}");
            return Err(Error::new(Code::ManifestLimit, message).tensor(path));
        }
        let scaling = scaling(path, config, rules)?;
        let parts = leaves.len();
        if m % parts != 0 {
            return Err(unread(path, a, b));
        }
        // Each expert's parts of B as experts of their own.
        let shape = vec![b.shape()[0] * parts, m / parts, rank];
        let cut = Tensor::new(b.dtype(), shape, b.data().clone())?;
        for (part, leaves) in leaves.iter().enumerate() {
            let leaf = self.leaf_of_experts(parent, *leaves);
            check_target(rules.targets(), path).or_else(|e| {
                match rules.targets().matches(&format!("{parent}.0.{leaf}")) {
                    Ok(true) => Ok(()),
                    _ => Err(e),
                }
            })?;
            for expert in 0..experts {
                let of = |t: &Tensor| expert.min(t.shape()[0] - 1);
                let own = (a.index_first(of(a)), cut.index_first(of(b) * parts + part));
                let (Some(a), Some(b)) = own else {
                    return Err(unread(path, a, b));
                };
                let update = Update {
                    kind: ModuleKind::Linear,
                    experts: None,
                    rank,
                    in_features: n,
                    out: m / parts,
                    scaling,
                    a: Factor::trained(a),
                    b: Factor::trained(b),
                    vectors: None,
                };
                let name = format!("{parent}.{expert}.{leaf}");
                self.push_group(&name, update)?;
                self.of_stacks.insert(name);
            }
        }
        Ok(())
    }

    /// Fails unless gate and up of a joint tensor lie in one way only. SGLang has the one after the other, whatever the
    /// model; others have the order of the model's class, and in some of these they alternate.
    fn check_halves(&self, path: &str) -> Result<()> {
        let known = self.options.base.map(|base| base.parameter(path));
        let (why, hint) = match known {
            Some(Some(ParameterShape {
                interleaved: Some(false),
                ..
            })) => return Ok(()),
            Some(Some(ParameterShape {
                interleaved: Some(true),
                ..
            })) => (
                "they alternate in this base's class, and do not in SGLang",
                "take lora_B apart into gate_proj and up_proj, which both have its lora_A",
            ),
            Some(_) => (
                "nothing is known of how they lie in this base's class",
                "take lora_B apart into gate_proj and up_proj, which both have its lora_A",
            ),
            None => (
                "they alternate in some models' classes",
                "give the base; or take lora_B apart into gate_proj and up_proj, which both have its lora_A",
            ),
        };
        let message = format!(
            "gate and up of all experts are one tensor that does not say how they lie: {why}"
        );
        let error = Error::new(Code::UnsupportedTargetParameters, message);
        Err(error.tensor(path).hint(hint))
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
        "lora_A {:?} and lora_B {:?} are of all experts at once under a name that does not say how gate and up lie; read are w1, w2, w3, gate_proj, up_proj, down_proj and gate_up_proj of `experts`",
        a.shape(),
        b.shape()
    );
    Error::new(Code::UnsupportedTargetParameters, message).tensor(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::adapter::Adapter;
    use crate::base::shapes::{BaseShapes, ParameterShape};
    use crate::error::{Code, Result};
    use crate::peft::import::{ImportOptions, import};
    use crate::safetensors::encode_header;
    use crate::tensor::Dtype;

    /// Two experts of rank 1, 3 inputs and 2 outputs; tensors count from 1, 10, 100, ….
    fn adapter(leaf: &str, shapes: [[usize; 3]; 2]) -> Result<Adapter> {
        over(None, leaf, shapes)
    }

    fn over(base: Option<&dyn BaseShapes>, leaf: &str, shapes: [[usize; 3]; 2]) -> Result<Adapter> {
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
        let options = ImportOptions {
            base,
            ..ImportOptions::default()
        };
        import(dir.path(), &options).map(|imported| imported.adapter)
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

    /// A base whose class has gate and up in one parameter, in this order.
    struct Joint(Option<bool>);

    impl BaseShapes for Joint {
        fn weight_shape(&self, _module: &str) -> Option<Vec<usize>> {
            None
        }

        fn has_tensor(&self, name: &str) -> bool {
            name.ends_with("experts.gate_up_proj")
        }

        fn parameter(&self, _name: &str) -> Option<ParameterShape> {
            Some(ParameterShape {
                experts: Some(2),
                transposed: false,
                interleaved: self.0,
            })
        }

        fn has_module(&self, _end: &str) -> bool {
            false
        }
    }

    /// Breaks where gate gets up's outputs, or another expert's; or where the halves are taken for a class that has them
    /// otherwise.
    #[test]
    fn a_joint_tensor_is_gate_before_up() {
        let of = |expert: usize, leaf: &str| format!("model.layers.0.mlp.experts.{expert}.{leaf}");
        let shapes = [[1, 1, 3], [2, 4, 1]];
        let both = over(Some(&Joint(Some(false))), "gate_up_proj", shapes).unwrap();
        assert_eq!(both.modules().len(), 4);
        for (expert, leaf, rows) in [
            (0, "gate_proj", [1., 2.]),
            (0, "up_proj", [3., 4.]),
            (1, "gate_proj", [5., 6.]),
            (1, "up_proj", [7., 8.]),
        ] {
            let expected = rows.map(|b| [b, 2. * b, 3. * b]).concat();
            assert_eq!(delta(&both, &of(expert, leaf)), expected, "{expert} {leaf}");
        }
        for (order, says) in [(Some(true), "alternate"), (None, "nothing is known")] {
            let error = over(Some(&Joint(order)), "gate_up_proj", shapes).unwrap_err();
            assert_eq!(error.code(), Code::UnsupportedTargetParameters);
            assert!(error.message().contains(says), "{error}");
        }
        let odd = over(
            Some(&Joint(Some(false))),
            "gate_up_proj",
            [[1, 1, 3], [2, 3, 1]],
        );
        assert_eq!(odd.unwrap_err().code(), Code::UnsupportedTargetParameters);
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
