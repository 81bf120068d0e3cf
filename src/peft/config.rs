//! `adapter_config.json`: what PEFT 0.21 and older wrote, read strictly, and written minimally.
//!
//! Keys that PEFT added for features which change the update (DoRA, aLoRA, …) are kept as
//! [`Feature`]s, so that a caller refuses them by name. Keys that only matter while training are
//! skipped; keys nobody knows are listed in [`Common::unknown`], never an error, because every PEFT
//! release adds some.

use super::features::{Feature, read_features, refuse_init};
use super::json::{self, Fields, Json, cut, wrong};
use super::saved::heads_of_task;
use super::tokens::{self, TrainedTokens};
use crate::error::{Code, Error, Result};

/// The `peft_type` of what `tlkit.peft` saves.
pub const TIED_LORA: &str = "TIED_LORA";
/// Bytes of `adapter_config.json` beyond which it is not parsed.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// A parsed `adapter_config.json` of a kind that tlkit knows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PeftConfig {
    /// `"peft_type": "LORA"`, with all its variants.
    Lora(LoraConfig),
    /// `"peft_type": "VERA"`.
    Vera(VeraConfig),
}

/// Which modules a list or string in the config names (`target_modules`, `exclude_modules`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Names {
    /// Null or absent. For targets PEFT has a table per model type; here the tensors tell.
    #[default]
    None,
    /// Full names, or their last segments. Literal.
    List(Vec<String>),
    /// A Python regular expression that must match the whole name.
    Regex(String),
    /// `"all-linear"`, which PEFT expands before it saves.
    AllLinear,
}

/// Which bias vectors of the base were trained (`bias`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bias {
    /// `"none"`.
    #[default]
    None,
    /// `"all"`: every bias of the model.
    All,
    /// `"lora_only"` or `"vera_only"`: those of adapted modules.
    Adapted,
}

/// The keys that say which modules are adapted; the rules are in [`super::names`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Modules to adapt.
    pub target_modules: Names,
    /// Modules to leave out, before all other rules.
    pub exclude_modules: Names,
    /// Layer numbers to which targets named by suffix are confined; `None` for all.
    pub layers_to_transform: Option<Vec<u64>>,
    /// Regular expressions for the name of the list of layers.
    pub layers_pattern: Vec<String>,
    /// Modules stored whole, which replace those of the base: ends of their paths. In a config that
    /// was read also those that PEFT adds by the task when it loads (`classifier`, `score`,
    /// `qa_outputs`). What the model has no module for is harmless. Regular expressions where they
    /// keep modules from being adapted.
    pub modules_to_save: Vec<String>,
}

impl Selection {
    fn add_heads(&mut self, common: &Common) {
        for head in heads_of_task(common.task_type.as_deref()) {
            if !self.modules_to_save.iter().any(|m| m == head) {
                self.modules_to_save.push((*head).to_owned());
            }
        }
    }
}

/// Keys that every PEFT config has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Common {
    /// Where the base came from: a Hub id or a path on somebody's machine.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base, not of the adapter.
    pub revision: Option<String>,
    /// Such as `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// The PEFT that wrote the file; absent in old files.
    pub peft_version: Option<String>,
    /// Keys that neither PEFT 0.21 nor tlkit knows, sorted.
    pub unknown: Vec<String>,
}

/// A `LORA` config (PEFT `LoraConfig`).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Keys of every config.
    pub common: Common,
    /// Which modules are adapted.
    pub selection: Selection,
    /// Default rank, at least 1; PEFT's default 8 where absent.
    pub r: u32,
    /// Numerator of the scaling as stored; see [`LoraConfig::alpha`] for the checked value.
    pub lora_alpha: Option<f64>,
    /// Whether the scaling is α/√r (rsLoRA) rather than α/r.
    pub use_rslora: bool,
    /// Ranks by module pattern, in file order: the first match wins.
    pub rank_pattern: Vec<(String, u32)>,
    /// Alphas by module pattern, in file order: the first match wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Which biases were trained.
    pub bias: Bias,
    /// Whether `lora_B` has a bias.
    pub lora_bias: bool,
    /// Whether the base's weights are stored `in × out` (GPT-2). Not authoritative: PEFT corrects
    /// it from the module's class on load.
    pub fan_in_fan_out: bool,
    /// Name of the initialisation (`pissa`, `gaussian`, …); `None` for true and false.
    pub init_lora_weights: Option<String>,
    /// Whether magnitudes are trained (DoRA).
    pub use_dora: bool,
    /// Parameters that are adapted themselves, of fused experts above all: whole names, or their ends.
    pub target_parameters: Vec<String>,
    /// Rows of embeddings that were trained one by one.
    pub trainable_tokens: TrainedTokens,
    /// Features that are set and that a plain low-rank update cannot represent.
    pub features: Vec<Feature>,
}

/// A `VERA` config (PEFT `VeraConfig`). There is no alpha: the scaling is 1.
#[derive(Debug, Clone, PartialEq)]
pub struct VeraConfig {
    /// Keys of every config.
    pub common: Common,
    /// Which modules are adapted. PEFT's VeRA has no `exclude_modules`.
    pub selection: Selection,
    /// Rank, at least 1; PEFT's default 256 where absent.
    pub r: u32,
    /// Seed of the projections: of torch's generator, which PEFT draws them from.
    pub projection_prng_key: u64,
    /// Whether the projections are stored with the adapter (PEFT's default: true).
    pub save_projection: bool,
    /// What `vera_lambda_d` started from; of interest to training alone.
    pub d_initial: f64,
    /// Which biases were trained.
    pub bias: Bias,
    /// As in [`LoraConfig::fan_in_fan_out`].
    pub fan_in_fan_out: bool,
}

impl PeftConfig {
    /// Parses an `adapter_config.json`.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`]: not JSON, larger than [`MAX_CONFIG_BYTES`], or a value of the wrong
    /// type; [`Code::DuplicateKey`]; [`Code::NotPeft`]: MLX's config, or no adapter's at all;
    /// [`Code::ConfigMissingKey`]: no `peft_type`; [`Code::UnsupportedPeftType`]: another tuner.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_CONFIG_BYTES {
            let message = format!(
                "the config has {} bytes, at most {MAX_CONFIG_BYTES} are read",
                bytes.len()
            );
            return Err(Error::new(Code::ConfigInvalid, message));
        }
        let mut fields = Fields::new(Json::parse(bytes)?)?;
        let is_null = fields.has("peft_type");
        let Some(peft_type) = fields.text("peft_type")? else {
            return Err(match is_null {
                true => wrong("peft_type", &Json::Null, "a string"),
                false => no_type(&fields),
            });
        };
        match peft_type.as_str() {
            TIED_LORA => Err(Error::new(
                Code::UnsupportedPeftType,
                "`peft_type` is \"TIED_LORA\", which is tied already",
            )
            .hint("use the adapter.tl in its folder")),
            "LORA" => LoraConfig::read(fields).map(Self::Lora),
            "VERA" => VeraConfig::read(fields).map(Self::Vera),
            "TRAINABLE_TOKENS" => LoraConfig::of_rows(fields).map(Self::Lora),
            other => Err(Error::new(
                Code::UnsupportedPeftType,
                format!(
                    "`peft_type` is \"{}\", and must be \"LORA\", \"VERA\" or \"TRAINABLE_TOKENS\"",
                    cut(other)
                ),
            )
            .hint("PEFT's save_as_lora turns adapters of some other types into LoRA")),
        }
    }

    /// The keys of every config.
    pub fn common(&self) -> &Common {
        match self {
            Self::Lora(c) => &c.common,
            Self::Vera(c) => &c.common,
        }
    }

    /// Which modules are adapted.
    pub fn selection(&self) -> &Selection {
        match self {
            Self::Lora(c) => &c.selection,
            Self::Vera(c) => &c.selection,
        }
    }
}

fn no_type(fields: &Fields) -> Error {
    if fields.has("lora_parameters") || fields.has("fine_tune_type") {
        return Error::new(
            Code::NotPeft,
            "this is an adapter config of MLX, not of PEFT",
        )
        .hint("open the folder that it is in, which is read as MLX's");
    }
    if ["lora_alpha", "target_modules", "projection_prng_key"]
        .iter()
        .any(|k| fields.has(k))
    {
        return Error::new(Code::ConfigMissingKey, "`peft_type` is missing")
            .hint("add \"peft_type\": \"LORA\" (or \"VERA\") if that is what the adapter is");
    }
    Error::new(
        Code::NotPeft,
        "the file has no `peft_type` and no key of a PEFT adapter",
    )
}

/// Keys that say nothing about what a trained adapter does to the base: they steer training,
/// initialisation or the choice of a Python class.
const INERT: &[&str] = &[
    "auto_mapping",
    "inference_mode",
    "runtime_config",
    "lora_dropout",
    "vera_dropout",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "init_weights",
    "merge_weights",
];

fn read_common(fields: &mut Fields) -> Result<Common> {
    for key in INERT {
        fields.take(key);
    }
    Ok(Common {
        base_model_name_or_path: fields.text("base_model_name_or_path")?,
        revision: fields.text("revision")?,
        task_type: fields.text("task_type")?,
        peft_version: fields.text("peft_version")?,
        unknown: Vec::new(),
    })
}

fn read_selection(fields: &mut Fields) -> Result<Selection> {
    Ok(Selection {
        target_modules: match read_names(fields, "target_modules")? {
            Names::Regex(t) if t.eq_ignore_ascii_case("all-linear") => Names::AllLinear,
            names => names,
        },
        exclude_modules: read_names(fields, "exclude_modules")?,
        layers_to_transform: match fields.take("layers_to_transform") {
            Json::Null => None,
            Json::List(items) if items.is_empty() => None,
            Json::List(items) => Some(
                items
                    .iter()
                    .map(|i| json::unsigned("layers_to_transform", i))
                    .collect::<Result<_>>()?,
            ),
            one => Some(vec![json::unsigned("layers_to_transform", &one)?]),
        },
        layers_pattern: match fields.take("layers_pattern") {
            Json::Null => Vec::new(),
            Json::Text(t) if t.is_empty() => Vec::new(),
            Json::Text(t) => vec![t],
            list => json::texts("layers_pattern", list)?,
        },
        modules_to_save: fields.texts("modules_to_save")?,
    })
}

fn read_names(fields: &mut Fields, key: &str) -> Result<Names> {
    match fields.take(key) {
        Json::Null => Ok(Names::None),
        Json::Text(t) => Ok(Names::Regex(t)),
        list => json::texts(key, list).map(Names::List),
    }
}

fn read_bias(fields: &mut Fields, adapted: &str) -> Result<Bias> {
    match fields.text("bias")?.as_deref() {
        None | Some("none") => Ok(Bias::None),
        Some("all") => Ok(Bias::All),
        Some(b) if b == adapted => Ok(Bias::Adapted),
        Some(b) => Err(wrong(
            "bias",
            &Json::Text(b.into()),
            &format!("none, all or {adapted}"),
        )),
    }
}

impl LoraConfig {
    /// A config for export: PEFT's defaults but for these, with no pattern and no feature.
    pub fn new(r: u32, lora_alpha: f64, target_modules: Vec<String>) -> Self {
        let target_modules = Names::List(target_modules);
        Self {
            common: Common::default(),
            selection: Selection {
                target_modules,
                ..Selection::default()
            },
            r,
            lora_alpha: Some(lora_alpha),
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            bias: Bias::None,
            lora_bias: false,
            fan_in_fan_out: false,
            init_lora_weights: None,
            use_dora: false,
            target_parameters: Vec::new(),
            trainable_tokens: TrainedTokens::None,
            features: Vec::new(),
        }
    }

    fn read(mut fields: Fields) -> Result<Self> {
        let mut config = Self {
            common: read_common(&mut fields)?,
            selection: read_selection(&mut fields)?,
            r: fields.rank("r", 8)?,
            lora_alpha: fields.number("lora_alpha")?,
            use_rslora: fields.flag("use_rslora")?,
            rank_pattern: fields.pattern("rank_pattern", json::rank_or_none)?,
            alpha_pattern: fields.pattern("alpha_pattern", json::number)?,
            bias: read_bias(&mut fields, "lora_only")?,
            lora_bias: fields.flag("lora_bias")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
            init_lora_weights: match fields.take("init_lora_weights") {
                Json::Null | Json::Bool(_) => None,
                Json::Text(t) => Some(t),
                other => return Err(wrong("init_lora_weights", &other, "a name, true or false")),
            },
            use_dora: fields.flag("use_dora")?,
            target_parameters: fields.texts("target_parameters")?,
            trainable_tokens: TrainedTokens::read(&fields.take(tokens::KEY))?,
            features: read_features(&mut fields)?,
        };
        config.common.unknown = fields.rest();
        config.selection.add_heads(&config.common);
        Ok(config)
    }

    /// The config of trained rows alone (PEFT's `TrainableTokensConfig`): a LoRA without a module.
    fn of_rows(mut fields: Fields) -> Result<Self> {
        fields.take("target_modules");
        let mut config = Self {
            common: read_common(&mut fields)?,
            trainable_tokens: TrainedTokens::read_alone(&fields.take(tokens::ALONE_KEY))?,
            ..Self::new(1, 1.0, Vec::new())
        };
        config.common.unknown = fields.rest();
        Ok(config)
    }

    /// The default alpha.
    ///
    /// # Errors
    /// [`Code::BadAlpha`] where it is missing, zero, negative or not finite. PEFT's default is not
    /// assumed: exporters of other frameworks have lost the value, and a wrong scaling is silent.
    pub fn alpha(&self) -> Result<f64> {
        check_alpha("lora_alpha", self.lora_alpha)
    }

    /// PEFT's scaling of a module with this alpha and rank: α/r, or α/√r with rsLoRA, in f64.
    pub fn scaling(&self, alpha: f64, rank: u32) -> f64 {
        let rank = f64::from(rank);
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether the adapter is DoRA: mergeable, but with no form in `.tl` v1.
    pub(crate) fn is_dora(&self) -> bool {
        self.use_dora
    }

    /// Refuses every variant whose update is not `s·B·A` on the stored base, by name.
    ///
    /// DoRA passes, see [`LoraConfig::is_dora`]; biases and `modules_to_save` pass too, they stand
    /// beside the update.
    ///
    /// # Errors
    /// An `Unsupported…` code for the first one found: the initialisation, then the features in
    /// alphabetical order of their keys.
    pub(crate) fn refuse_unrepresentable(&self) -> Result<()> {
        if let Some(init) = &self.init_lora_weights {
            refuse_init(init)?;
        }
        self.features
            .first()
            .map_or(Ok(()), |feature| Err(feature.refusal()))
    }

    /// The config as PEFT writes it, with the fewest keys, as old releases refuse unknown ones.
    ///
    /// Two-space indentation, keys sorted, ASCII only, the same for the same config. Patterns keep
    /// their order, because their first match wins; name lists are sorted.
    ///
    /// # Errors
    /// [`Code::BadAlpha`], or the code of a variant that tlkit cannot say: such keys are not written.
    pub fn to_json_pretty(&self) -> Result<String> {
        self.refuse_unrepresentable()?;
        let mut keys = common_keys(&self.common, &self.selection);
        keys.extend([
            ("peft_type", Json::Text("LORA".into())),
            ("r", Json::Int(self.r.into())),
            ("lora_alpha", Json::number(self.alpha()?)),
            ("bias", bias_text(self.bias, "lora_only")),
            ("fan_in_fan_out", Json::Bool(self.fan_in_fan_out)),
            ("init_lora_weights", Json::Bool(true)),
        ]);
        let flags = [
            ("use_rslora", self.use_rslora),
            ("lora_bias", self.lora_bias),
            ("use_dora", self.use_dora),
        ];
        keys.extend(
            flags
                .into_iter()
                .filter(|(_, on)| *on)
                .map(|(k, _)| (k, Json::Bool(true))),
        );
        if !self.target_parameters.is_empty() {
            let mut names = self.target_parameters.clone();
            names.sort();
            keys.push(("target_parameters", Json::texts(&names)));
        }
        if self.trainable_tokens != TrainedTokens::None {
            keys.push((tokens::KEY, self.trainable_tokens.to_json()));
        }
        if !self.rank_pattern.is_empty() {
            let entry = |(k, r): &(String, u32)| (k.clone(), Json::Int((*r).into()));
            keys.push((
                "rank_pattern",
                Json::Map(self.rank_pattern.iter().map(entry).collect()),
            ));
        }
        if !self.alpha_pattern.is_empty() {
            let entry = |(k, a): &(String, f64)| {
                check_alpha(&format!("alpha_pattern[{}]", cut(k)), Some(*a))
                    .map(|a| (k.clone(), Json::number(a)))
            };
            let entries = self
                .alpha_pattern
                .iter()
                .map(entry)
                .collect::<Result<_>>()?;
            keys.push(("alpha_pattern", Json::Map(entries)));
        }
        Ok(pretty(keys))
    }
}

/// An alpha that a scaling can be computed from; `key` is what a failure names.
pub(super) fn check_alpha(key: &str, alpha: Option<f64>) -> Result<f64> {
    let message = match alpha {
        Some(a) if a.is_finite() && a > 0.0 => return Ok(a),
        Some(a) => format!("`{key}` is {a}, and must be a positive number"),
        None => format!("`{key}` is missing"),
    };
    Err(Error::new(Code::BadAlpha, message)
        .hint("set it to the alpha of the training run; some exporters lose it"))
}

impl VeraConfig {
    /// A config for export, with stored projections.
    pub fn new(r: u32, target_modules: Vec<String>) -> Self {
        let target_modules = Names::List(target_modules);
        Self {
            common: Common::default(),
            selection: Selection {
                target_modules,
                ..Selection::default()
            },
            r,
            projection_prng_key: 0,
            save_projection: true,
            d_initial: 0.1,
            bias: Bias::None,
            fan_in_fan_out: false,
        }
    }

    fn read(mut fields: Fields) -> Result<Self> {
        let mut config = Self {
            common: read_common(&mut fields)?,
            selection: read_selection(&mut fields)?,
            r: fields.rank("r", 256)?,
            projection_prng_key: fields.unsigned("projection_prng_key", 0)?,
            save_projection: fields.flag_or_null("save_projection")?.unwrap_or(true),
            d_initial: fields.number("d_initial")?.unwrap_or(0.1),
            bias: read_bias(&mut fields, "vera_only")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
        };
        config.common.unknown = fields.rest();
        config.selection.add_heads(&config.common);
        Ok(config)
    }

    /// The config as PEFT writes it, with the fewest keys; as [`LoraConfig::to_json_pretty`].
    pub fn to_json_pretty(&self) -> String {
        let mut keys = common_keys(&self.common, &self.selection);
        keys.extend([
            ("peft_type", Json::Text("VERA".into())),
            ("r", Json::Int(self.r.into())),
            (
                "projection_prng_key",
                Json::Int(self.projection_prng_key.into()),
            ),
            ("save_projection", Json::Bool(self.save_projection)),
            ("bias", bias_text(self.bias, "vera_only")),
            ("fan_in_fan_out", Json::Bool(self.fan_in_fan_out)),
        ]);
        pretty(keys)
    }
}

type Keys = Vec<(&'static str, Json)>;

fn common_keys(common: &Common, selection: &Selection) -> Keys {
    let text = |t: &Option<String>| t.clone().map_or(Json::Null, Json::Text);
    let mut keys: Keys = vec![
        (
            "base_model_name_or_path",
            text(&common.base_model_name_or_path),
        ),
        ("inference_mode", Json::Bool(true)),
        ("target_modules", names_json(&selection.target_modules)),
        ("task_type", text(&common.task_type)),
    ];
    let layers = selection
        .layers_to_transform
        .iter()
        .flatten()
        .map(|l| Json::Int((*l).into()));
    let optional = [
        ("revision", text(&common.revision)),
        ("exclude_modules", names_json(&selection.exclude_modules)),
        ("layers_to_transform", Json::List(layers.collect())),
        ("layers_pattern", Json::texts(&selection.layers_pattern)),
        ("modules_to_save", Json::texts(&selection.modules_to_save)),
    ];
    keys.extend(optional.into_iter().filter(|(_, value)| !value.is_falsy()));
    keys
}

fn names_json(names: &Names) -> Json {
    match names {
        Names::None => Json::Null,
        Names::AllLinear => Json::Text("all-linear".into()),
        Names::Regex(regex) => Json::Text(regex.clone()),
        Names::List(list) => {
            let mut list = list.clone();
            list.sort();
            list.dedup();
            Json::texts(&list)
        }
    }
}

fn bias_text(bias: Bias, adapted: &str) -> Json {
    let text = match bias {
        Bias::None => "none",
        Bias::All => "all",
        Bias::Adapted => adapted,
    };
    Json::Text(text.into())
}

fn pretty(mut keys: Keys) -> String {
    keys.sort_by_key(|(key, _)| *key);
    Json::Map(keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()).to_pretty()
}

#[cfg(test)]
mod tests;
