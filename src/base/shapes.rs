//! What a caller can say of a base model whose weights are not at hand.

/// A parameter of a model's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterShape {
    /// Extent of its first axis where it has three: the experts.
    pub experts: Option<usize>,
    /// Whether its module says `is_transposed`: (experts, in, out).
    pub transposed: bool,
    /// Whether gate and up alternate in it, in place of the one after the other; `None` where it has not both, or nobody
    /// knows.
    pub interleaved: Option<bool>,
}

/// What the caller knows of the base model. An adapter alone does not say how its base stores a
/// weight, nor (VeRA) how many inputs a module has.
pub trait BaseShapes {
    /// Shape of the weight of a module; `None` where the base has no such module.
    fn weight_shape(&self, module: &str) -> Option<Vec<usize>>;

    /// Whether the base has the tensor that an adapter calls by this name.
    fn has_tensor(&self, name: &str) -> bool;

    /// Whether the model has it: the base has, or it is one with a tensor that the base has.
    fn is_of_model(&self, name: &str) -> bool {
        self.has_tensor(name)
    }

    /// What the base tells of a parameter of this name; `None` where it has none.
    fn parameter(&self, name: &str) -> Option<ParameterShape> {
        let _ = name;
        None
    }

    /// Whether the base has a module whose path is this, or ends in it.
    fn has_module(&self, end: &str) -> bool;

    /// How many layers the model's config says that it has; `None` where it does not say.
    fn layers(&self) -> Option<usize> {
        None
    }

    /// Whether a module is GPT-2's `Conv1D`, stored (in, out), where the base's architecture tells.
    fn is_conv1d(&self, module: &str) -> Option<bool> {
        let _ = module;
        None
    }
}

/// The base model's module paths, as far as they have weights.
pub trait BaseModules {
    /// Every path that has a `.weight` of two axes or more.
    fn modules(&self) -> Vec<String>;

    /// Output and input features of a linear module; `None` where the base has none of this path, or has it in
    /// another form.
    fn sizes(&self, module: &str) -> Option<(usize, usize)> {
        let _ = module;
        None
    }
}
