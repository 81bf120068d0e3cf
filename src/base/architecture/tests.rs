//! Facts of the table, as bases use them.

use serde_json::json;

use super::*;
use crate::base::cut::Chunk;

fn of(model_type: &str, class: &str) -> Architecture {
    let config = json!({"model_type": model_type, "architectures": [class]});
    Architecture::of_config(Some(&config))
}

/// Breaks where updates of one tensor are added in another order than PEFT comes to its modules.
#[test]
fn the_order_of_input_and_output_is_the_classs() {
    assert!(of("camembert", "CamembertForCausalLM").output_first());
    assert!(of("xlm-roberta", "XLMRobertaForMaskedLM").output_first());
    assert!(!of("roberta", "RobertaForCausalLM").output_first());
    assert!(!of("llama", "LlamaForCausalLM").output_first());
    assert!(!of("new", "NewModel").output_first());
}

/// Breaks where experts that begin after the first layers are not seen.
#[test]
fn experts_of_later_layers_are_known() {
    let name = "model.layers.7.mlp.experts.gate_up_proj";
    for (model_type, class) in [
        ("deepseek_v3", "DeepseekV3ForCausalLM"),
        ("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
        ("dots1", "Dots1ForCausalLM"),
    ] {
        let layout = Some(ExpertLayout::Stated {
            transposed: false,
            interleaved: Some(false),
        });
        assert_eq!(of(model_type, class).experts(name), layout, "{model_type}");
    }
}

/// Breaks where a layout is taken from a name that another architecture has for `nn.Linear`.
#[test]
fn conv1d_is_a_matter_of_the_architecture() {
    for (model_type, class, module, want) in [
        (
            "gpt2",
            "GPT2LMHeadModel",
            "transformer.h.3.attn.c_proj",
            true,
        ),
        ("gpt2", "GPT2LMHeadModel", "h.3.attn.c_proj", true),
        ("gpt2", "GPT2LMHeadModel", "lm_head", false),
        (
            "imagegpt",
            "ImageGPTForCausalImageModeling",
            "transformer.h.0.attn.c_attn",
            true,
        ),
        (
            "openai-gpt",
            "OpenAIGPTLMHeadModel",
            "transformer.h.0.mlp.c_fc",
            true,
        ),
        (
            "gpt_neo",
            "GPTNeoForCausalLM",
            "transformer.h.0.mlp.c_proj",
            false,
        ),
        (
            "gpt_bigcode",
            "GPTBigCodeForCausalLM",
            "transformer.h.0.attn.c_attn",
            false,
        ),
        (
            "llama",
            "LlamaForCausalLM",
            "model.layers.0.mlp.down_proj",
            false,
        ),
    ] {
        assert_eq!(
            of(model_type, class).is_conv1d(module),
            Some(want),
            "{module}"
        );
    }
    assert_eq!(of("new", "NewModel").is_conv1d("h.0.attn.c_attn"), None);
}

#[test]
fn experts_lie_as_their_module_says() {
    let stated = |transposed, interleaved| {
        Some(ExpertLayout::Stated {
            transposed,
            interleaved,
        })
    };
    let at = |layer: &str, name: &str| format!("model.layers.{layer}.mlp.experts.{name}");
    let oss = of("gpt_oss", "GptOssForCausalLM");
    assert_eq!(
        oss.experts(&at("7", "gate_up_proj")),
        stated(true, Some(true))
    );
    assert_eq!(oss.experts(&at("7", "down_proj")), stated(true, None));
    let qwen = of("qwen3_moe", "Qwen3MoeForCausalLM");
    assert_eq!(
        qwen.experts(&at("0", "gate_up_proj")),
        stated(false, Some(false))
    );
    assert_eq!(qwen.experts("model.layers.0.mlp.gate.weight"), None);
}

/// Breaks where a tie that a class has goes unseen, or a class without an output has one to refuse.
#[test]
fn ties_are_those_of_the_class() {
    let names =
        |a: &Architecture| -> Vec<usize> { a.tied().iter().map(|t| t.names.len()).collect() };
    let bart = of("bart", "BartForConditionalGeneration");
    assert_eq!(names(&bart), [4]);
    assert!(bart.tied()[0].default && bart.tied()[0].output.is_some());
    let classifier = of("bart", "BartForSequenceClassification");
    assert!(classifier.tied()[0].output.is_none());
    assert!(
        of("bert", "BertForSequenceClassification")
            .tied()
            .is_empty()
    );
    assert_eq!(
        of("mamba", "MambaForCausalLM").input().as_deref(),
        Some("backbone.embeddings.weight")
    );
    assert_eq!(
        of("whisper", "WhisperForConditionalGeneration")
            .output()
            .as_deref(),
        Some("proj_out.weight")
    );
    assert!(!of("llama", "LlamaForCausalLM").tied()[0].default);
}

/// Breaks where a part of a model is taken for the type that the class has by default.
#[test]
fn parts_are_of_the_type_that_their_config_names() {
    let config = |text: &str| {
        json!({
            "model_type": "vision-encoder-decoder", "architectures": ["VisionEncoderDecoderModel"],
            "decoder": {"model_type": text, "tie_word_embeddings": false},
        })
    };
    let gpt2 = Architecture::of_config(Some(&config("gpt2")));
    assert_eq!(
        gpt2.is_conv1d("decoder.transformer.h.0.attn.c_attn"),
        Some(true)
    );
    assert_eq!(
        gpt2.input().as_deref(),
        Some("decoder.transformer.wte.weight")
    );
    let tied = &gpt2.tied()[0];
    assert_eq!(
        tied.names,
        ["decoder.transformer.wte.weight", "decoder.lm_head.weight"]
    );
    assert_eq!((tied.told, tied.output), (Some(false), Some(1)));
    let bert = Architecture::of_config(Some(&config("bert")));
    assert_eq!(
        bert.is_conv1d("decoder.transformer.h.0.attn.c_attn"),
        Some(false)
    );
}

#[test]
fn configs_that_say_nothing_or_nonsense_are_unknown() {
    for config in [
        json!({}),
        json!([]),
        json!({"model_type": 3}),
        json!({"model_type": "none-such"}),
    ] {
        assert!(!Architecture::of_config(Some(&config)).is_known());
    }
    let odd =
        json!({"model_type": "llama", "architectures": "LlamaForCausalLM", "text_config": []});
    let odd = Architecture::of_config(Some(&odd));
    assert!(odd.is_known() && !odd.is_class_known());
}

/// Breaks where gate and up that alternate on the disk, and follow one another in the class, are taken as they lie.
#[test]
fn what_alternates_on_the_disk_is_two_halves_of_the_class() {
    let links = of("inkling2_text", "Inkling2ForCausalLM")
        .links("model.llm.layers.0.mlp.experts.w13_weight");
    let chunks: Vec<_> = links.iter().map(|l| (l.of.chunk, l.at.chunk)).collect();
    let half = |part, interleaved| {
        Some(Chunk {
            axis: 1,
            part,
            of: 2,
            interleaved,
        })
    };
    let halves = [0, 1].map(|part| (half(part, false), half(part, true)));
    assert_eq!(chunks, halves);
    for link in links {
        assert_eq!(link.class, "model.layers.0.mlp.experts.gate_up_proj");
    }
}

/// Breaks where an output that the class tells nobody of is not seen by what it is tied to.
#[test]
fn an_output_is_known_by_its_tie() {
    let blip = of("blip", "BlipForConditionalGeneration");
    let output = blip.output();
    assert_eq!(
        output.as_deref(),
        Some("text_decoder.cls.predictions.decoder.weight")
    );
}
