"""Several adapters in one model: switched, mixed, merged, deleted, loaded."""

import pytest
import torch
from common import METHODS, TOKENS, adapted, logits
from peft import PeftModel

from tlkit.peft import TiedLoraConfig, load_tl, save_tl


@pytest.fixture
def two(model):
    """A model with two adapters of two methods, and what each gives alone."""
    peft = adapted(model(), method="tl6")
    peft.add_adapter(
        "other", TiedLoraConfig(method="lora", r=2, target_modules=["q_proj", "up_proj"], init_weights=False)
    )
    alone = {}
    for name in ("default", "other"):
        peft.set_adapter(name)
        alone[name] = logits(peft.eval())
    with peft.disable_adapter():
        alone["__base__"] = logits(peft)
    assert torch.equal(alone["__base__"], logits(model()))
    return peft, alone


def test_mixed_batches(two):
    """Each example of a batch has the logits of its adapter alone."""
    peft, alone = two
    names = ["other", "__base__", "default"]
    mixed = logits(peft, adapter_names=names)
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], alone[name][row], atol=1e-5)
    with pytest.raises(ValueError, match="non-existing"):
        logits(peft, adapter_names=["nobody"] * 3)


def test_generating_from_mixed_batches_with_beams(two):
    """Beams keep the adapter of their example."""
    peft, _ = two
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "min_new_tokens": 6, "pad_token_id": 0}
    names = ["default", "other", "__base__"]
    mixed = peft.generate(input_ids=TOKENS, adapter_names=names, **options)
    for row, name in enumerate(names):
        if name == "__base__":
            with peft.disable_adapter():
                one = peft.generate(input_ids=TOKENS[row : row + 1], **options)
        else:
            peft.set_adapter(name)
            one = peft.generate(input_ids=TOKENS[row : row + 1], **options)
        assert torch.equal(mixed[row], one[0])


def test_merging_and_unmerging(two):
    """Merged weights give the adapter's logits; unmerged ones those of the base."""
    peft, alone = two
    for name in ("default", "other"):
        peft.set_adapter(name)
        peft.merge_adapter([name], safe_merge=name == "other")
        assert torch.allclose(logits(peft), alone[name], atol=2e-5)
        peft.unmerge_adapter()
    with peft.disable_adapter():
        assert torch.allclose(logits(peft), alone["__base__"], atol=2e-5)
    peft.base_model.set_adapter(["default", "other"])
    both = logits(peft)
    assert torch.allclose(logits(peft.merge_and_unload()), both, atol=2e-5)


def test_safe_merge_refuses_what_is_not_finite(model):
    """The weight stays as it was."""
    peft = adapted(model(), method="tl5")
    layer = peft.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.tied_lora_B["default"].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)


def test_deleting(two):
    """The other adapter stays what it is."""
    peft, alone = two
    peft.delete_adapter("default")
    peft.set_adapter("other")
    assert torch.equal(logits(peft), alone["other"])
    assert not any(".default." in name for name, _ in peft.named_parameters())


def test_only_the_active_adapter_trains(two):
    """set_adapter moves requires_grad; frozen factors never have it."""
    peft, _ = two
    peft.set_adapter("default")
    assert {n.split(".")[-2] for n, p in peft.named_parameters() if p.requires_grad} == {"default"}


def test_loading_beside(two, tmp_path, model):
    """load_adapter and load_tl put an adapter beside others, under a name."""
    peft, alone = two
    peft.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(model(), tmp_path)
    fresh.load_adapter(tmp_path / "other", adapter_name="second")
    load_tl(fresh, tmp_path / "other" / "adapter.tl", "third")
    for name in ("second", "third"):
        fresh.set_adapter(name)
        assert torch.equal(logits(fresh.eval()), alone["other"])


@pytest.mark.parametrize("method", METHODS)
def test_going_on_with_a_tl(model, tmp_path, method):
    """A loaded .tl that is trainable trains what the file says trains, and saves the same root."""
    peft = adapted(model(), method=method)
    root = save_tl(peft, tmp_path / "a.tl")
    loaded = load_tl(model(), tmp_path / "a.tl", is_trainable=True)
    assert loaded.get_nb_trainable_parameters() == peft.get_nb_trainable_parameters()
    assert save_tl(loaded, tmp_path / "b.tl") == root
