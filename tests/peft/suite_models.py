"""The models that PEFT's test suite takes from the hub, made small and put where the hub's client keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers as t
from peft import LoraConfig

TEXT = {"vocab_size": 128, "num_hidden_layers": 2}
ONES = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
# The suite takes padding off what decoders generate by the id of the end.
ENDS = {**ONES, "pad_token_id": 2}
DECODER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}
ENCODER = {**TEXT, **DECODER, "type_vocab_size": 2}


def _models() -> dict[str, t.PreTrainedModel]:
    llama = t.LlamaConfig(**TEXT, **DECODER, **ENDS, num_key_value_heads=2)
    mistral = t.MistralConfig(**TEXT, **DECODER, **ENDS, num_key_value_heads=2)
    opt = t.OPTConfig(
        **TEXT,
        **ENDS,
        hidden_size=16,
        ffn_dim=32,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
    )
    gpt2 = t.GPT2Config(vocab_size=128, n_positions=128, n_embd=16, n_layer=2, n_head=4, **ENDS)
    gptj = t.GPTJConfig(vocab_size=128, n_positions=128, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, **ENDS)
    qwen2 = t.Qwen2Config(**TEXT, **DECODER, **ENDS, num_key_value_heads=2)
    gemma3 = t.Gemma3TextConfig(**TEXT, **DECODER, **ENDS, num_key_value_heads=2, head_dim=4)
    t5 = t.T5Config(
        vocab_size=128,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    bart = t.BartConfig(
        vocab_size=128, d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128, **ONES, decoder_start_token_id=2,
    )  # fmt: skip
    bert = t.BertConfig(**ENCODER)
    roberta = t.RobertaConfig(**ENCODER, **ONES)
    deberta = t.DebertaConfig(
        **ENCODER, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
    )
    deberta2 = t.DebertaV2Config(
        **ENCODER, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
    )
    return {
        "peft-internal-testing/tiny-random-OPTForCausalLM": t.OPTForCausalLM(opt),
        "peft-internal-testing/opt-125m": t.OPTForCausalLM(opt),
        "peft-internal-testing/tiny-random-GPT2LMHeadModel": t.GPT2LMHeadModel(gpt2),
        "hf-internal-testing/tiny-random-gpt2": t.GPT2LMHeadModel(gpt2),
        "peft-internal-testing/tiny-random-GPTJForCausalLM": t.GPTJForCausalLM(gptj),
        "trl-internal-testing/tiny-random-LlamaForCausalLM": t.LlamaForCausalLM(llama),
        "hf-internal-testing/tiny-random-MistralForCausalLM": t.MistralForCausalLM(mistral),
        "peft-internal-testing/tiny-dummy-qwen2": t.Qwen2ForCausalLM(qwen2),
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM": t.Gemma3ForCausalLM(gemma3),
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": t.T5ForConditionalGeneration(t5),
        "peft-internal-testing/tiny-random-BartForConditionalGeneration": t.BartForConditionalGeneration(bart),
        "peft-internal-testing/tiny-random-BertModel": t.BertModel(bert),
        "peft-internal-testing/tiny-random-RobertaModel": t.RobertaModel(roberta),
        "peft-internal-testing/tiny-random-DebertaModel": t.DebertaModel(deberta),
        "peft-internal-testing/tiny-random-DebertaV2Model": t.DebertaV2Model(deberta2),
        "peft-internal-testing/tiny-random-BertForSequenceClassification": t.BertForSequenceClassification(bert),
        "peft-internal-testing/tiny-random-RobertaForSequenceClassification": t.RobertaForSequenceClassification(
            roberta
        ),
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": t.LlamaForSequenceClassification(llama),
    }


def make(cache: Path) -> None:
    """Puts every model into `cache`, laid out as `huggingface_hub` lays out what it has downloaded."""
    torch.manual_seed(0)
    for name, model in _models().items():
        folder = cache / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        # Larger than the initial range, so that an update shows in the logits.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(snapshot)
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("0" * 40)
    # A configuration of LoRA under a revision, which every method's configuration is to read.
    folder = cache / "models--peft-internal-testing--tiny-opt-lora-revision"
    LoraConfig(base_model_name_or_path="none").save_pretrained(folder / "snapshots" / ("1" * 40))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "test").write_text("1" * 40)


if __name__ == "__main__":
    make(Path(os.environ["HF_HUB_CACHE"]))
