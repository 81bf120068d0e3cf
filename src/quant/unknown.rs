//! Quantisations that are known by name and not read.

use super::config::Config;

/// What the ends of tensor names tell of the tool that made them.
const MARKS: [(&str, &str); 18] = [
    (".W_q", "HQQ"),
    (".weight._data", "quanto"),
    (".weight._packed", "quanto"),
    (".weight_scales", "EETQ"),
    (".codebooks", "AQLM"),
    (".trellis", "EXL3"),
    (".q_weight", "EXL2"),
    (".weight_qdata", "torchao"),
    (".weight:_data", "torchao"),
    (".weight__data", "torchao"),
    (".centroids.weight", "VPTQ"),
    (".dense_weights", "SpQR"),
    (".weight_q", "a tool that is not known"),
    (".bitmask", "compressed-tensors (sparse)"),
    (".weight_bitmask", "compressed-tensors (sparse)"),
    (".svdq_weight", "SVDQuant"),
    (".pre_quant_scale", "ModelOpt (AWQ)"),
    (".weight_quant", "a tool that is not known"),
];

/// Methods of configs whose weights are read.
const READ: [&str; 12] = [
    "bitsandbytes",
    "bitsandbytes_4bit",
    "bitsandbytes_8bit",
    "fp8",
    "mxfp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "mxfp4",
    "gptq",
    "awq",
    "modelopt",
    "mlx",
];

/// Formats of compressed-tensors that are read.
const COMPRESSED: [&str; 9] = [
    "dense",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
];

/// Algorithms of ModelOpt that are read.
const MODELOPT: [&str; 6] = [
    "FP8",
    "FP8_PB_WO",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "NVFP4",
    "W4A16_NVFP4",
    "MIXED_PRECISION",
];

/// How a method of a config is called.
const NAMES: [(&str, &str); 23] = [
    ("hqq", "HQQ"),
    ("eetq", "EETQ"),
    ("aqlm", "AQLM"),
    ("vptq", "VPTQ"),
    ("spqr", "SpQR"),
    ("higgs", "HIGGS"),
    ("gguf", "GGUF"),
    ("quark", "Quark"),
    ("bitnet", "BitNet"),
    ("auto-round", "AutoRound"),
    ("auto_round", "AutoRound"),
    ("intel/auto-round", "AutoRound"),
    ("exl2", "EXL2"),
    ("exl3", "EXL3"),
    ("fp_quant", "FP-Quant"),
    ("fouroversix", "Four Over Six"),
    ("metal", "Metal (MLX)"),
    ("gemma", "Gemma's own integers"),
    ("nvfp4", "NVFP4 of transformers"),
    ("sinq", "SINQ"),
    ("qqq", "QQQ"),
    ("modelopt_fp4", "ModelOpt (fp4)"),
    ("modelopt_mixed", "ModelOpt (mixed)"),
];

/// The tool whose mark a tensor's name ends with.
pub(super) fn mark(name: &str) -> Option<&'static str> {
    let found = MARKS.iter().find(|(end, _)| name.ends_with(end));
    found.map(|(_, tool)| *tool)
}

/// Whether weights of a method are read.
pub(super) fn is_read(method: &str) -> bool {
    READ.contains(&method)
}

/// A method as its people call it.
pub(super) fn name(method: &str) -> &str {
    let found = NAMES.iter().find(|(m, _)| *m == method);
    found.map_or(method, |(_, name)| name)
}

/// What of a method that is read is not: a layout, a format, an algorithm.
pub(super) fn unread_part(config: &Config, method: Option<&str>) -> Option<String> {
    match method {
        Some("awq") | None => awq(config),
        Some("gptq") => gptq(config),
        Some("compressed-tensors") => compressed(config),
        Some("modelopt") => {
            let algorithm = config.text("quant_algo")?;
            let unread = !MODELOPT.iter().any(|a| a.eq_ignore_ascii_case(algorithm));
            unread.then(|| format!("ModelOpt in the algorithm `{algorithm}`"))
        }
        Some("mlx") => {
            let mode = config.text("mode").filter(|m| *m != "affine")?;
            Some(format!("MLX in the mode `{mode}`"))
        }
        Some("fp8" | "mxfp8") => (config.expert_dtype.as_deref() == Some("fp4"))
            .then(|| "DeepSeek's FP8 with experts in FP4".to_owned()),
        Some(_) => None,
    }
}

/// A layout is said as `version`, and by others as a format, where GPTQ's may stand that means nothing.
fn awq(config: &Config) -> Option<String> {
    if config.text("backend") == Some("llm-awq") {
        return Some("AWQ in the layout `llm-awq`".to_owned());
    }
    let said = ["version", "format", "checkpoint_format"];
    let mut layouts = said.into_iter().filter_map(|key| config.text(key));
    let unread = |layout: &&str| {
        let layout = layout.to_ascii_lowercase();
        match config.method() {
            Some(_) => !matches!(layout.as_str(), "gemm" | "gptq"),
            None => layout.contains("gemv"),
        }
    };
    let layout = layouts.find(unread)?;
    Some(format!("AWQ in the layout `{layout}`"))
}

fn gptq(config: &Config) -> Option<String> {
    let said = config
        .text("checkpoint_format")
        .or_else(|| config.text("format"));
    let format = match said {
        _ if config.flag("is_marlin_format") => "marlin",
        Some(format) => format,
        None => return None,
    };
    let is_read = ["gptq", "gptq_v2", "gemm"]
        .iter()
        .any(|f| f.eq_ignore_ascii_case(format));
    (!is_read).then(|| format!("GPTQ in the format `{format}`"))
}

fn compressed(config: &Config) -> Option<String> {
    const TOOL: &str = "compressed-tensors";
    if config.has_transforms() {
        return Some(format!("{TOOL}, its weights rotated by transforms"));
    }
    let formats = config.formats();
    let unread = formats.iter().find(|f| !COMPRESSED.contains(&f.as_str()))?;
    Some(format!("{TOOL} in the format `{unread}`"))
}
