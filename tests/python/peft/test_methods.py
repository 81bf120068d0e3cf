"""The methods and the template: what trains, what is tied, where it starts, what is saved."""

import pytest
import torch
from common import METHODS, TARGETS, TOKENS, adapted, logits, trained
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import tlkit
from tlkit.peft import TiedLoraConfig, load_tl, save_tl

TEMPLATES = [
    {"train": "A,B,C,v"},
    {"train": ["A", "v"], "tie": ["B"]},
    {"train": "A,B,u,v", "tie": False, "joint": False},
    {"train": "B", "tie": ["A"], "joint": [["k_proj", "v_proj"]]},
    {"method": "tl6", "alpha": 3.0, "use_rslora": True, "layers_to_transform": [1, 3]},
    {"method": "tl2", "exclude_modules": ["layers.0.self_attn.q_proj"]},
]


@pytest.mark.parametrize("choice", [*({"method": m} for m in METHODS), *TEMPLATES], ids=str)
def test_saved_adapters_are_what_was_trained(model, tmp_path, choice):
    """Losses fall from those of the base; folder, .tl and merged weights all give the trained logits."""
    base = logits(model())
    peft, losses = trained(model(), **choice)
    assert losses[-1] < losses[0]
    own = logits(peft)
    assert not torch.allclose(base, own, atol=1e-3)
    peft.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(model(), tmp_path)), own)
    assert torch.equal(logits(PeftModel.from_pretrained(model(), tmp_path, low_cpu_mem_usage=True)), own)
    assert torch.equal(logits(load_tl(model(), tmp_path / "adapter.tl")), own)
    assert torch.allclose(logits(peft.merge_and_unload(safe_merge=True)), own, atol=2e-5)
    # The folder is opened as its .tl, which has to have what PEFT loads, tensor by tensor.
    assert tlkit.Adapter.open(tmp_path).root == tlkit.Adapter.open(tmp_path / "adapter.tl").root
    weights = load_file(tmp_path / "adapter_model.safetensors")
    for name in weights:
        save_file({**weights, name: weights[name] + 1}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(tlkit.Error, match="beside") as caught:
            tlkit.Adapter.open(tmp_path)
        assert caught.value.code == "TL0319" and name in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_tl_has_the_numbers_of_the_safetensors(model, tmp_path, method):
    """Each stored number once in both files, and the updates of the .tl are those of the layers."""
    peft, _ = trained(model(), method=method)
    peft.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    adapter = tlkit.Adapter.open(tmp_path / "adapter.tl")
    assert adapter.method == method
    count = sum(tensor.numel() for tensor in saved.values())
    assert count == adapter.trained_parameters == peft.get_nb_trainable_parameters()[0]
    assert adapter.modules.keys() == {f"model.layers.{n}.{m}" for n in range(4) for m in _modules()}
    for module in adapter.modules:
        layer = peft.get_submodule(f"base_model.model.{module}")
        delta = torch.from_numpy(adapter.delta(module).copy())
        assert torch.allclose(delta, layer.get_delta_weight("default"), atol=1e-6)


def _modules():
    return [f"self_attn.{m}" for m in TARGETS[:3]] + ["mlp.down_proj"]


def test_tied_factors_are_one_parameter(model):
    """A of q, k, v of all layers is one object, also after casts and moves; the count says so."""
    peft = adapted(model(), method="tl6", target_modules=TARGETS[:3])
    peft.to(torch.bfloat16).to(torch.float32)
    layers = [m for n, m in peft.named_modules() if n.endswith(("q_proj", "k_proj", "v_proj"))]
    assert len({id(layer.tied_lora_A["default"].weight) for layer in layers}) == 1
    assert len({id(layer.tied_lora_B["default"].weight) for layer in layers}) == 3
    # A: 4 × 64, B: (64 + 32 + 32) × 4, u: 4 × 4 layers, v: 128 × 4 layers.
    assert peft.get_nb_trainable_parameters()[0] == 256 + 512 + 16 + 512


@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_the_base_model(model, method):
    """Whatever trains."""
    peft = get_peft_model(model(), TiedLoraConfig(method=method, r=4, target_modules=TARGETS))
    assert torch.equal(logits(peft), logits(model()))


def test_frozen_factors_are_seeded(model, tmp_path):
    """A frozen A is what its key makes, bit for bit, and no file has it."""
    peft, _ = trained(model(), method="vera", seed=7)
    peft.save_pretrained(tmp_path)
    adapter = tlkit.Adapter.open(tmp_path / "adapter.tl")
    group = next(g for g in adapter.manifest["groups"] if "q_proj" in g["targets"][0]["module"])
    described = adapter.manifest["tensors"][group["A"]]
    step = torch.tensor(int(described["seed"]["step"], 16), dtype=torch.int32).view(torch.float32).item()
    made = tlkit.seeded(described["seed"]["key"], step, described["shape"])
    held = peft.get_submodule("base_model.model.model.layers.2.self_attn.q_proj").tied_lora_A["default"].weight
    assert (held.numpy() == made).all()
    assert not any("_A." in name or "_B." in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_tlkit_trains_from_the_same_start(model, tmp_path):
    """The random start of a trained A has the bits of the seed's recipe."""
    peft = get_peft_model(model(), TiedLoraConfig(method="tl6", r=4, target_modules=TARGETS[:3], seed=3))
    frozen = get_peft_model(model(), TiedLoraConfig(train="v", r=4, target_modules=TARGETS[:3], seed=3))
    name = "base_model.model.model.layers.0.self_attn.k_proj"
    for factor in ("tied_lora_A", "tied_lora_B"):
        one, two = (getattr(m.get_submodule(name), factor)["default"].weight for m in (peft, frozen))
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_kept(model, tmp_path, dtype, autocast):
    """Loaded adapters have the dtype and the logits of the saved one, and seeded factors are rounded alike."""
    torch.manual_seed(0)
    config = TiedLoraConfig(method="tl2", r=4, target_modules=TARGETS, init_weights=False)
    peft = get_peft_model(model(dtype), config, autocast_adapter_dtype=autocast).eval()
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model(dtype), tmp_path, autocast_adapter_dtype=autocast)
    assert torch.equal(logits(loaded), logits(peft))
    again = load_tl(model(dtype), tmp_path, autocast_adapter_dtype=autocast)
    assert torch.equal(logits(again), logits(peft))


def test_conv1d(tmp_path):
    """GPT-2's modules, whose weights lie transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def base():
        torch.manual_seed(1)
        return GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()

    peft = adapted(base(), target_modules=["c_attn", "c_proj"])
    own = logits(peft)
    assert not torch.allclose(own, logits(base()), atol=1e-3)
    root = save_tl(peft, tmp_path / "gpt2.tl")
    assert tlkit.Adapter.open(tmp_path / "gpt2.tl").root == root
    assert torch.equal(logits(load_tl(base(), tmp_path / "gpt2.tl")), own)
    assert torch.allclose(logits(peft.merge_and_unload()), own, atol=1e-5)


def test_modules_to_save_are_extras(model, tmp_path):
    """A head that was trained whole is in the .tl, and comes back from it."""
    peft = adapted(model(), modules_to_save=["lm_head"])
    with torch.no_grad():
        peft.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    own = logits(peft)
    peft.save_pretrained(tmp_path)
    extras = tlkit.Adapter.open(tmp_path / "adapter.tl").manifest["extras"]
    assert [(e["name"], e["role"]) for e in extras] == [("lm_head.weight", "replace")]
    assert torch.equal(logits(load_tl(model(), tmp_path)), own)


def test_dropout_is_for_training_only(model):
    """It changes the loss of training, and nothing in evaluation."""
    peft = adapted(model(), dropout=0.5)
    assert torch.equal(logits(peft), logits(peft))
    peft.train()
    assert not torch.equal(logits(peft), logits(peft))


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        ({"method": "tl7"}, "tl7"),
        ({"r": 0}, "positive"),
        ({"train": "C,u"}, "place of u"),
        ({"train": "A,W"}, "A,W"),
        ({"tie": ["u"]}, "tie"),
        ({"alpha": float("nan")}, "alpha"),
        ({"bias": "lora_only"}, "bias"),
        ({"joint": ["q_proj"]}, "joint"),
        ({"layers_pattern": "h"}, "layers_to_transform"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(choice, word):
    """By the name of what is wrong."""
    with pytest.raises(ValueError, match=word):
        TiedLoraConfig(**choice)


def test_a_tl_of_another_model_is_refused(model, tmp_path):
    """A layout that does not fit says where."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    save_tl(adapted(model()), tmp_path / "a.tl")
    small = AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=128)
    )
    with pytest.raises(ValueError, match=r"_proj: the adapter is for in, out and kind"):
        load_tl(small, tmp_path / "a.tl")


def test_embeddings_cannot_be_adapted(model):
    """Only linear modules and Conv1D."""
    with pytest.raises(TypeError, match="not supported"):
        adapted(model(), target_modules=["embed_tokens"])
    assert TOKENS.shape == (3, 8)
