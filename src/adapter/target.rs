//! The modules of a tie group, and how their weights are stored.

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
    /// A parameter of any module, under its own name (PEFT's `target_parameters`): (out, in), or
    /// (experts, out, in) in a group with experts.
    Parameter,
    /// A parameter whose module says `is_transposed` (gpt-oss): (experts, in, out).
    ParameterTransposed,
}

impl ModuleKind {
    /// Whether the weight is stored (in, out), so that ΔW is transposed before it is added.
    pub fn is_transposed(self) -> bool {
        !matches!(self, Self::Linear | Self::Parameter)
    }

    /// Whether the target's path is the name of a tensor, and not of a module that has a `weight`.
    pub fn is_parameter(self) -> bool {
        matches!(self, Self::Parameter | Self::ParameterTransposed)
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
    /// Module path with `{}` for the layer number where the group has layers; of a parameter, its name.
    pub module: String,
    /// Output features; the rows of B (entries of v) that belong to this target.
    pub out: usize,
    /// How the weight is stored.
    pub kind: ModuleKind,
}
