//! `adapter_config.json`: rules compile or fail, matching ends, and what is written reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tlkit::peft::names::{LoraRules, TargetRules};
use tlkit::peft::{LoraConfig, PeftConfig};

const MODULES: &[&str] = &[
    "model.layers.0.self_attn.q_proj",
    "model.layers.31.mlp.down_proj",
    "transformer.h.3.attn.c_attn",
    "lm_head",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.0.aaaaaaaaaaaaaaaaaaab",
];

fuzz_target!(|bytes: &[u8]| match PeftConfig::from_slice(bytes) {
    Ok(PeftConfig::Lora(config)) => lora(&config),
    Ok(PeftConfig::Vera(config)) => {
        if let Ok(rules) = TargetRules::new(&config.selection) {
            let _ = rules.matches(MODULES[0]);
        }
        let text = config.to_json_pretty();
        let Ok(PeftConfig::Vera(again)) = PeftConfig::from_slice(text.as_bytes()) else {
            panic!("own output does not parse: {text}");
        };
        assert_eq!((again.r, again.bias), (config.r, config.bias));
        assert_eq!(again.projection_prng_key, config.projection_prng_key);
        assert_eq!(again.to_json_pretty(), text);
    }
    Ok(_) => {}
    // An error must be printable, whatever stood in the file.
    Err(e) => assert!(!e.to_string().chars().any(char::is_control)),
});

fn lora(config: &LoraConfig) {
    if let Ok(rules) = LoraRules::new(config) {
        for module in MODULES {
            let _ = rules.targets().matches(module);
            let _ = rules.rank(module);
            let _ = rules.scaling(module, config.r);
        }
    }
    let Ok(text) = config.to_json_pretty() else {
        return;
    };
    let Ok(PeftConfig::Lora(again)) = PeftConfig::from_slice(text.as_bytes()) else {
        panic!("own output does not parse: {text}");
    };
    let essence = |c: &LoraConfig| {
        let flags = [c.use_rslora, c.use_dora, c.lora_bias, c.fan_in_fan_out];
        (
            c.r,
            c.lora_alpha,
            c.rank_pattern.clone(),
            c.alpha_pattern.clone(),
            c.bias,
            flags,
        )
    };
    assert_eq!(essence(&again), essence(config));
    assert_eq!(
        again.selection.layers_to_transform,
        config.selection.layers_to_transform
    );
    assert_eq!(
        again.selection.modules_to_save,
        config.selection.modules_to_save
    );
    assert_eq!(again.to_json_pretty().expect("as before"), text);
}
