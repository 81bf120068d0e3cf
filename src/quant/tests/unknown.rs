use super::{changed, of, refused};

/// Breaks where what is not read is refused for its shape, or not at all.
#[test]
fn unknown_tools_are_named() {
    let method =
        |name: &str| format!("{{\"quantization_config\": {{\"quant_method\": \"{name}\"}}}}");
    for (name, says) in [
        ("hqq", "HQQ"),
        ("aqlm", "AQLM"),
        ("torchao", "torchao"),
        ("newest", "newest"),
        ("auto-round", "AutoRound"),
    ] {
        let folder = changed("awq", Some(&method(name)), |_, _, _, _| true);
        let said = refused(&folder);
        assert!(
            said.contains(&format!("quantised by {says}, which is not read")),
            "{said}"
        );
    }
    for (end, says) in [
        (".W_q", "HQQ"),
        (".trellis", "EXL3"),
        (".codebooks", "AQLM"),
        (".weight_scales", "EETQ"),
    ] {
        let folder = changed("bnb-int8", Some("{}"), |name, _, _, _| {
            if name == "norm.weight" {
                *name = format!("layers.0.q_proj{end}");
            }
            true
        });
        assert!(refused(&folder).contains(says));
    }
    for config in [
        r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}"#,
        r#"{"quantization_config": {"quant_method": "awq", "version": "gemv"}}"#,
    ] {
        let folder = changed("gptq-4bit", Some(config), |_, _, _, _| true);
        let said = refused(&folder);
        assert!(said.contains("which is not read"), "{said}");
    }
}

/// Breaks where a method of transformers is neither read nor refused by its name.
#[test]
fn all_methods_of_transformers_are_known() {
    const READ: &str = "";
    for (method, fixture, says) in [
        ("awq", "awq", READ),
        ("bitsandbytes_4bit", "bnb-nf4", READ),
        ("bitsandbytes_8bit", "bnb-int8", READ),
        ("bitsandbytes", "bnb-int8", READ),
        ("gptq", "gptq-4bit", READ),
        ("aqlm", "awq", "AQLM"),
        ("quanto", "awq", "quanto"),
        ("quark", "awq", "Quark"),
        ("fouroversix", "awq", "Four Over Six"),
        ("fp_quant", "awq", "FP-Quant"),
        ("eetq", "awq", "EETQ"),
        ("higgs", "awq", "HIGGS"),
        ("hqq", "awq", "HQQ"),
        ("compressed-tensors", "ct-int4-packed", READ),
        ("fbgemm_fp8", "fp8-fbgemm", READ),
        ("torchao", "awq", "torchao"),
        ("bitnet", "awq", "BitNet"),
        ("vptq", "awq", "VPTQ"),
        ("spqr", "awq", "SpQR"),
        ("fp8", "fp8-blocks", READ),
        ("gguf", "awq", "GGUF"),
        ("nvfp4", "awq", "NVFP4 of transformers"),
        ("mxfp8", "fp8-blocks", READ),
        ("auto-round", "awq", "AutoRound"),
        ("mxfp4", "mxfp4", READ),
        ("metal", "awq", "Metal (MLX)"),
        ("sinq", "awq", "SINQ"),
        ("gemma", "awq", "Gemma's own integers"),
    ] {
        let config = format!("{{\"quantization_config\": {{\"quant_method\": \"{method}\"}}}}");
        let folder = changed(fixture, Some(&config), |_, _, _, _| true);
        if says == READ {
            assert!(of(folder.path()).unwrap() > 0, "{method}");
            continue;
        }
        let said = refused(&folder);
        assert!(said.contains(&format!("by {says}, which")), "{said}");
    }
}

/// Breaks where a layout or an algorithm of a method that is read is taken for another.
#[test]
fn unread_parts_of_methods_are_named() {
    for (fixture, fields, says) in [
        (
            "awq",
            r#""quant_method": "awq", "version": "GEMV""#,
            "AWQ in the layout `GEMV`",
        ),
        (
            "awq",
            r#""quant_method": "awq", "format": "gemv_fast""#,
            "AWQ in the layout `gemv_fast`",
        ),
        (
            "awq",
            r#""quant_method": "awq", "backend": "llm-awq""#,
            "AWQ in the layout `llm-awq`",
        ),
        (
            "awq",
            r#""w_bit": 4, "version": "gemv""#,
            "AWQ in the layout `gemv`",
        ),
        (
            "gptq-4bit",
            r#""quant_method": "gptq", "format": "bitblas""#,
            "GPTQ in the format `bitblas`",
        ),
        (
            "gptq-4bit",
            r#""quant_method": "gptq", "is_marlin_format": true"#,
            "GPTQ in the format `marlin`",
        ),
        (
            "ct-int4-packed",
            r#""quant_method": "compressed-tensors", "format": "marlin-24""#,
            "compressed-tensors in the format `marlin-24`",
        ),
        (
            "ct-int4-packed",
            r#""quant_method": "compressed-tensors", "config_groups": {"g": {"format": "mxfp6-pack-quantized"}}"#,
            "compressed-tensors in the format `mxfp6-pack-quantized`",
        ),
        (
            "ct-int4-packed",
            r#""quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}"#,
            "compressed-tensors in the format `sparse-24-bitmask`",
        ),
        (
            "ct-int4-packed",
            r#""quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}"#,
            "compressed-tensors, its weights rotated by transforms",
        ),
        (
            "fp8-modelopt",
            r#""quant_algo": "W4A16_AWQ""#,
            "ModelOpt in the algorithm `W4A16_AWQ`",
        ),
        (
            "fp8-blocks",
            r#""quant_method": "fp8", "expert_dtype": "fp4""#,
            "DeepSeek's FP8 with experts in FP4",
        ),
    ] {
        let config = format!("{{\"quantization_config\": {{{fields}}}}}");
        let said = refused(&changed(fixture, Some(&config), |_, _, _, _| true));
        assert!(
            said.contains(&format!("quantised by {says}, which is not read")),
            "{said}"
        );
    }
    let order = changed("ct-int8-asymmetric", None, |name, _, _, _| {
        if name == "norm.weight" {
            *name = "layers.0.q_proj.weight_g_idx".into();
        }
        true
    });
    assert!(refused(&order).contains("in another order"));
}
