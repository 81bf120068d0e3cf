//! Quantisations that are known by name and not read.

/// What the ends of tensor names tell of the tool that made them.
const MARKS: [(&str, &str); 17] = [
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
    (".weight_quant", "a tool that is not known"),
];

/// Methods of configs whose weights are read.
const READ: [&str; 8] = [
    "bitsandbytes",
    "fp8",
    "mxfp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "mxfp4",
    "gptq",
    "awq",
];

/// How a method of a config is called.
const NAMES: [(&str, &str); 12] = [
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
    ("intel/auto-round", "AutoRound"),
    ("exl3", "EXL3"),
];

/// The tool whose mark a tensor's name ends with.
pub(super) fn mark(name: &str) -> Option<&'static str> {
    let found = MARKS.iter().find(|(end, _)| name.ends_with(end));
    found.map(|(_, tool)| *tool)
}

/// Whether weights of a method are read.
pub(super) fn is_read(method: &str) -> bool {
    READ.contains(&method) || method == "modelopt"
}

/// A method as its people call it.
pub(super) fn name(method: &str) -> &str {
    let found = NAMES.iter().find(|(m, _)| *m == method);
    found.map_or(method, |(_, name)| name)
}
