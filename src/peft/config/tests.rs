use std::collections::BTreeMap;

use super::*;
use crate::peft::testing::shared;

fn lora(text: &str) -> Result<LoraConfig> {
    match PeftConfig::from_slice(format!(r#"{{"peft_type":"LORA",{text}}}"#).as_bytes())? {
        PeftConfig::Lora(config) => Ok(config),
        PeftConfig::Vera(_) => unreachable!(),
    }
}

fn code(text: &str) -> Code {
    PeftConfig::from_slice(text.as_bytes()).unwrap_err().code()
}

#[test]
fn defaults_are_pefts() {
    let c = lora(r#""revision":null"#).unwrap();
    assert_eq!(
        (c.r, c.lora_alpha, c.use_rslora, c.bias),
        (8, None, false, Bias::None)
    );
    assert_eq!(c.selection, Selection::default());
    let PeftConfig::Vera(v) = PeftConfig::from_slice(br#"{"peft_type":"VERA"}"#).unwrap() else {
        unreachable!()
    };
    assert_eq!(
        (v.r, v.projection_prng_key, v.save_projection),
        (256, 0, true)
    );
}

#[test]
fn every_key_that_bears_meaning_is_read() {
    let c = lora(
        r#""r":4,"lora_alpha":2.5,"use_rslora":true,"rank_pattern":{"b":2,"a":1},
        "alpha_pattern":{"z":1,"y":0.5},"target_modules":["q","v"],"exclude_modules":".*0.*",
        "layers_to_transform":3,"layers_pattern":"h","modules_to_save":["lm_head"],"bias":"lora_only",
        "lora_bias":true,"fan_in_fan_out":true,"init_lora_weights":"gaussian","use_dora":true,
        "base_model_name_or_path":"b","task_type":"CAUSAL_LM","peft_version":"0.9.0",
        "lora_dropout":0.1,"megatron_core":"x","zzz":1,"new_key":{}"#,
    )
    .unwrap();
    // Alphabetised patterns could match another one first.
    assert_eq!(c.rank_pattern, [("b".into(), 2), ("a".into(), 1)]);
    assert_eq!(c.alpha_pattern, [("z".into(), 1.0), ("y".into(), 0.5)]);
    assert_eq!(
        c.selection.target_modules,
        Names::List(vec!["q".into(), "v".into()])
    );
    assert_eq!(c.selection.exclude_modules, Names::Regex(".*0.*".into()));
    assert_eq!(c.selection.layers_to_transform, Some(vec![3]));
    assert_eq!(c.selection.layers_pattern, ["h"]);
    assert_eq!(c.selection.modules_to_save, ["lm_head"]);
    assert_eq!((c.r, c.alpha().unwrap(), c.bias), (4, 2.5, Bias::Adapted));
    assert_eq!(c.scaling(2.5, 4), 1.25);
    assert!(c.lora_bias && c.fan_in_fan_out && c.is_dora());
    assert_eq!(c.common.unknown, ["new_key", "zzz"]);
    c.refuse_unrepresentable().unwrap();
    let c = lora(r#""target_modules":"All-Linear","layers_to_transform":[]"#).unwrap();
    assert_eq!(c.selection.target_modules, Names::AllLinear);
    assert_eq!(c.selection.layers_to_transform, None);
}

#[test]
fn wrong_types_name_the_key_and_the_value() {
    for (key, value) in [
        ("r", "\"8\""),
        ("r", "0"),
        ("r", "-1"),
        ("r", "8.5"),
        ("r", "4294967296"),
        ("lora_alpha", "\"16\""),
        ("use_rslora", "1"),
        ("use_dora", "\"yes\""),
        ("rank_pattern", "[]"),
        ("rank_pattern", "{\"a\":-1}"),
        ("alpha_pattern", "{\"a\":null}"),
        ("target_modules", "[1]"),
        ("target_modules", "{}"),
        ("layers_to_transform", "-1"),
        ("layers_to_transform", "[\"0\"]"),
        ("layers_pattern", "3"),
        ("modules_to_save", "\"lm_head\""),
        ("bias", "\"vera_only\""),
        ("bias", "false"),
        ("init_lora_weights", "2"),
        ("base_model_name_or_path", "[]"),
        ("use_qalora", "\"on\""),
        ("layer_replication", "{\"a\":1}"),
        ("kasa_config", "true"),
    ] {
        let e = lora(&format!("\"{key}\":{value}")).unwrap_err();
        assert_eq!(e.code(), Code::ConfigInvalid, "{key} {value}");
        assert!(e.message().contains(&format!("`{key}")), "{e}");
    }
    assert!(
        lora(r#""r":"eight""#)
            .unwrap_err()
            .message()
            .contains("eight")
    );
}

#[test]
fn what_is_not_a_peft_config_is_told_apart() {
    assert_eq!(
        code(r#"{"fine_tune_type":"lora","lora_parameters":{"rank":8}}"#),
        Code::NotPeft
    );
    assert_eq!(
        code(r#"{"architectures":["LlamaForCausalLM"]}"#),
        Code::NotPeft
    );
    assert_eq!(
        code(r#"{"r":8,"lora_alpha":16,"target_modules":["q"]}"#),
        Code::ConfigMissingKey
    );
    assert_eq!(code(r#"{"peft_type":"LOHA"}"#), Code::UnsupportedPeftType);
    assert_eq!(code(r#"{"peft_type":["LORA"]}"#), Code::ConfigInvalid);
    assert_eq!(
        code(r#"{"peft_type":"LORA","peft_type":"VERA"}"#),
        Code::DuplicateKey
    );
    for text in ["", "[]", "null", "{", "{\"peft_type\":NaN}", "{} x"] {
        assert_eq!(code(text), Code::ConfigInvalid, "{text}");
    }
    assert_eq!(code(&" ".repeat(MAX_CONFIG_BYTES + 1)), Code::ConfigInvalid);
    let e = PeftConfig::from_slice(br#"{"peft_type":"LOHA"}"#).unwrap_err();
    assert!(e.message().contains("LOHA"));
}

#[test]
fn alpha_is_never_assumed() {
    // verl wrote 0, and merges silently lost the adapter.
    for text in [
        r#""r":8"#,
        r#""lora_alpha":0"#,
        r#""lora_alpha":-1"#,
        r#""lora_alpha":null"#,
    ] {
        assert_eq!(
            lora(text).unwrap().alpha().unwrap_err().code(),
            Code::BadAlpha,
            "{text}"
        );
    }
    let mut c = LoraConfig::new(8, f64::NAN, Vec::new());
    assert_eq!(c.alpha().unwrap_err().code(), Code::BadAlpha);
    assert_eq!(c.to_json_pretty().unwrap_err().code(), Code::BadAlpha);
    c.lora_alpha = Some(8.0);
    c.alpha_pattern = vec![("a".into(), f64::INFINITY)];
    assert_eq!(c.to_json_pretty().unwrap_err().code(), Code::BadAlpha);
}

#[test]
fn features_are_refused_by_name() {
    for (key, value, code) in [
        ("alora_invocation_tokens", "[1,2]", Code::UnsupportedAlora),
        ("arrow_config", "{\"top_k\":3}", Code::UnsupportedArrow),
        ("enable_lora", "[true,false,true]", Code::UnsupportedVariant),
        ("ensure_weight_tying", "true", Code::UnsupportedWeightTying),
        ("kasa_config", "{\"beta\":1}", Code::UnsupportedKasa),
        (
            "layer_replication",
            "[[0,4],[2,5]]",
            Code::UnsupportedLayerReplication,
        ),
        ("megatron_config", "{\"a\":1}", Code::UnsupportedMegatron),
        ("monteclora_config", "{\"a\":1}", Code::UnsupportedVariant),
        ("use_bdlora", "{\"nblocks\":2}", Code::UnsupportedBdlora),
        ("use_qalora", "true", Code::UnsupportedQalora),
        ("velora_config", "{\"a\":1}", Code::UnsupportedVariant),
    ] {
        let c = lora(&format!("\"lora_alpha\":1,\"{key}\":{value}")).unwrap();
        let e = c.refuse_unrepresentable().unwrap_err();
        assert_eq!(e.code(), code, "{key}");
        assert!(
            e.message().starts_with(&format!("`{key}` is ")) && e.hint_text().is_some(),
            "{e}"
        );
        assert_eq!(c.to_json_pretty().unwrap_err().code(), code);
        for off in ["null", "false", "[]", "{}"] {
            let c = lora(&format!("\"{key}\":{off}")).unwrap();
            assert_eq!(c.features, [], "{key} {off}");
        }
    }
}

#[test]
fn initialisations_that_change_the_base_are_refused() {
    let refused = |init: &str| {
        lora(&format!("\"init_lora_weights\":{init}"))
            .unwrap()
            .refuse_unrepresentable()
            .err()
            .map(|e| e.code())
    };
    for init in [
        "null",
        "true",
        "false",
        "\"gaussian\"",
        "\"eva\"",
        "\"orthogonal\"",
        "\"MiCA\"",
    ] {
        assert_eq!(refused(init), None, "{init}");
    }
    for (init, code) in [
        ("pissa", Code::UnsupportedPissa),
        ("pissa_niter_16", Code::UnsupportedPissa),
        ("OLoRA", Code::UnsupportedOlora),
        ("corda", Code::UnsupportedCorda),
        ("loftq", Code::UnsupportedLoftq),
        ("lora_ga", Code::UnsupportedLoraGa),
        ("kasa", Code::UnsupportedKasa),
        ("pissa2", Code::UnsupportedInit),
        ("", Code::UnsupportedInit),
    ] {
        assert_eq!(refused(&format!("\"{init}\"")), Some(code), "{init}");
    }
}

#[test]
fn exported_configs_are_minimal_sorted_and_read_back() {
    let mut c = LoraConfig::new(8, 8.0, vec!["v_proj".into(), "q_proj".into()]);
    c.common.base_model_name_or_path = Some("org/bäse".into());
    let text = c.to_json_pretty().unwrap();
    let want = [
        "{",
        r#"  "base_model_name_or_path": "org/b\u00e4se","#,
        r#"  "bias": "none","#,
        r#"  "fan_in_fan_out": false,"#,
        r#"  "inference_mode": true,"#,
        r#"  "init_lora_weights": true,"#,
        r#"  "lora_alpha": 8,"#,
        r#"  "peft_type": "LORA","#,
        r#"  "r": 8,"#,
        r#"  "target_modules": ["#,
        r#"    "q_proj","#,
        r#"    "v_proj""#,
        "  ],",
        r#"  "task_type": null"#,
        "}",
    ];
    assert_eq!(text, want.join("\n"));
    c.selection.target_modules = Names::List(vec!["q_proj".into(), "v_proj".into()]);
    assert_eq!(
        PeftConfig::from_slice(text.as_bytes()).unwrap(),
        PeftConfig::Lora(c.clone())
    );

    c.use_rslora = true;
    c.use_dora = true;
    c.rank_pattern = vec![("z".into(), 2), ("a".into(), 4)];
    c.alpha_pattern = vec![("a".into(), 1.5)];
    c.selection.layers_to_transform = Some(vec![0, 2]);
    c.selection.modules_to_save = vec!["score".into()];
    let text = c.to_json_pretty().unwrap();
    assert_eq!(
        PeftConfig::from_slice(text.as_bytes()).unwrap(),
        PeftConfig::Lora(c)
    );

    let mut v = VeraConfig::new(16, vec!["q_proj".into()]);
    v.projection_prng_key = u64::MAX;
    v.bias = Bias::Adapted;
    let text = v.to_json_pretty();
    assert_eq!(
        PeftConfig::from_slice(text.as_bytes()).unwrap(),
        PeftConfig::Vera(v)
    );
}

#[test]
fn collected_configs_parse_or_are_refused_with_the_code_they_deserve() {
    // 401 files of PEFT's examples and experiments: no key of theirs may be unexpected.
    let Some(dir) = shared("adapter_configs") else {
        return;
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let outcome = match PeftConfig::from_slice(&bytes) {
            Ok(PeftConfig::Lora(c)) => match c.refuse_unrepresentable() {
                Ok(()) if c.trainable_tokens.are_alone() => "rows",
                Ok(()) if c.is_dora() => "dora",
                Ok(()) => "lora",
                Err(e) => e.code().as_str(),
            },
            Ok(PeftConfig::Vera(_)) => "vera",
            Err(e) => e.code().as_str(),
        };
        *counts.entry(outcome).or_default() += 1;
    }
    // The same counts come from a dozen lines of Python over the same files.
    let want = [
        ("TL0405", 7),
        ("TL0406", 1),
        ("TL0410", 2),
        ("TL0413", 3),
        ("TL0417", 290),
        ("dora", 17),
        ("lora", 70),
        ("rows", 3),
        ("vera", 8),
    ];
    assert_eq!(counts, BTreeMap::from(want));
}

#[test]
fn configs_of_real_adapters_have_no_unknown_key() {
    // A key that PEFT 0.21.2 writes and that falls through would be one we forgot to judge.
    let folders = ["peft-interop/adapters", "adapters"].map(shared);
    for folder in folders.into_iter().flatten() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let parsed =
                PeftConfig::from_slice(&std::fs::read(path.join("adapter_config.json")).unwrap());
            if name.starts_with("mlx") {
                assert_eq!(parsed.unwrap_err().code(), Code::NotPeft);
                continue;
            }
            let config = parsed.unwrap();
            assert_eq!(config.common().unknown, Vec::<String>::new(), "{name}");
            let PeftConfig::Lora(lora) = &config else {
                continue;
            };
            assert_eq!(lora.is_dora(), name.contains("dora"));
            let refused = lora.refuse_unrepresentable().err().map(|e| e.code());
            let want = match name.as_str() {
                "lora-pissa" => Some(Code::UnsupportedPissa),
                "bloom-560m-r8-bin" => Some(Code::UnsupportedVariant),
                _ => None,
            };
            assert_eq!(refused, want, "{name}");
        }
    }
}
