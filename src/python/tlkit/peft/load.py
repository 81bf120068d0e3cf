"""From a `.tl` to an adapter of a model in PEFT."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from . import tl_file
from .config import TiedLoraConfig
from .layout import Group, Seeded, Target
from .presets import FACTORS, METHODS
from .seeds import Seed
from .tl_file import Manifest

_PREFIX = "base_model.model."


def load_tl(
    model: nn.Module,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    autocast_adapter_dtype: bool = True,
) -> PeftModel:
    """Puts the adapter of a `.tl` into a model.

    Args:
        model (`torch.nn.Module` or `PeftModel`): The base model, or one that has adapters already.
        path: The `.tl` file, or a folder with an `adapter.tl`.
        adapter_name (`str`): The adapter's name in the model.
        is_trainable (`bool`): Whether to go on training what the file marks as trained.
        autocast_adapter_dtype (`bool`): Whether half-precision factors are computed with in float32.

    Returns the model as a `PeftModel`: the one given, if it is one. In a model that has adapters, the new
    one is inactive until `set_adapter`.

    Raises ValueError for a file with what PEFT's Tied-LoRA has no place for (experts, embeddings, rows of
    an embedding, added biases), and where the model does not have its modules.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "adapter.tl")
    manifest, tensors = tl_file.read(path)
    scales = {entry.get("scales") for entry in manifest["tensors"].values()}
    values = {name: _tensor(manifest, tensors, name) for name in tensors if name not in scales}
    groups = [_group(entry, manifest, tensors) for entry in manifest["groups"]]
    state = {f"{_PREFIX}{key}": value for key, value in _state(manifest, groups, values).items()}
    config = _config(manifest, groups)
    config.inference_mode = not is_trainable
    state.update(_extras(manifest, values, config))
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config, low_cpu_mem_usage=True, autocast_adapter_dtype=autocast_adapter_dtype)
        if is_trainable:
            model.set_requires_grad(adapter_name)
        made = model
    else:
        made = get_peft_model(
            model, config, adapter_name, low_cpu_mem_usage=True, autocast_adapter_dtype=autocast_adapter_dtype
        )
    result: Any = set_peft_model_state_dict(made, state, adapter_name=adapter_name, low_cpu_mem_usage=True)
    if result.unexpected_keys:
        raise ValueError(f"{os.fspath(path)}: the model has no place for {result.unexpected_keys[0]}")
    tuner: Any = made.base_model
    tuner._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
    if not is_trainable:
        made.eval()
    return made


def _tensor(manifest: Manifest, tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """A tensor of the file; codes of I8 as the float32 numbers that they stand for."""
    tensor = tensors[name]
    if tensor.dtype == torch.int8:
        return tensor.to(torch.float32) * tensors[manifest["tensors"][name]["scales"]].unsqueeze(-1)
    return tensor


def _group(entry: dict[str, Any], manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> Group:
    kinds = {target.get("kind", "linear") for target in entry["targets"]}
    first = entry["targets"][0]["module"]
    if "experts" in entry or not kinds <= {"linear", "conv1d"}:
        raise ValueError(f"{first}: PEFT's Tied-LoRA adapts linear modules and Conv1D, not {', '.join(sorted(kinds))}")
    factors = tuple(name for name in FACTORS if name in entry)
    axes = {"A": 2, "B": 2}
    tied = tuple(name for name in ("A", "B") if len(tensors[entry[name]].shape) == axes[name])
    group = Group(
        targets=[Target(t["module"], t["out"], t.get("kind", "linear")) for t in entry["targets"]],
        inputs=entry["in"], layers=entry.get("layers"), rank=entry["rank"], alpha=_alpha(entry["alpha"]),
        scaling=entry["scaling"], factors=factors, trained=tuple(entry["trained"]), tied=tied,
    )  # fmt: skip
    for name in factors:
        described = manifest["tensors"][entry[name]]
        own = group.shape(name)
        shape = list(tensors[entry[name]].shape)
        if shape != own:
            group.spare[name] = shape[1:] if group.stacked(name) else shape
        if name in group.trained:
            continue
        if "seed" in described:
            group.seeds[name] = Seeded(Seed.parse(described["seed"]), described["dtype"])
        elif not group.stacked(name):
            group.same[name] = entry[name]
    return group


def _alpha(spelling: int | str) -> float:
    """alpha, an integer or the bits of a float64 (5.5)."""
    if isinstance(spelling, int):
        return float(spelling)
    return float(torch.tensor(int(spelling, 16) - (int(spelling, 16) >> 63 << 64)).view(torch.float64))


def _state(manifest: Manifest, groups: list[Group], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each module has of the factors that are stored, as PEFT's state dicts name it."""
    state = {}
    for group, entry in zip(groups, manifest["groups"], strict=True):
        for layer, at, path in group.modules():
            for name in group.factors:
                if name in group.seeds:
                    continue
                value = values[entry[name]]
                value = value[layer] if group.stacked(name) else value
                value = value[group.rows(at)] if group.split(name) else value
                # Cut rows are a tensor of their own: else every piece would keep the whole alive.
                state[f"{path}.tied_lora_{name}.weight"] = value.clone() if name in group.trained else value
    return state


def _config(manifest: Manifest, groups: list[Group]) -> TiedLoraConfig:
    if not groups:
        raise ValueError("the adapter has no tie groups")
    first, base = groups[0], manifest.get("base", {})
    preset = manifest["method"] if manifest["method"] in METHODS else None
    return TiedLoraConfig(
        method=preset or "tl6",
        train=None if preset else list(first.trained) or None,
        tie=None if preset else list(first.tied),
        r=first.rank,
        alpha=first.alpha,
        use_rslora=first.scaling == "alpha/sqrt(rank)",
        target_modules=sorted({path for group in groups for _, _, path in group.modules()}),
        layout=[group.to_json() for group in groups],
        task_type=manifest.get("task"),
        base_model_name_or_path=base.get("name"),
        revision=base.get("revision"),
    )


def _extras(manifest: Manifest, values: Mapping[str, torch.Tensor], config: TiedLoraConfig) -> dict[str, torch.Tensor]:
    """Tensors that replace those of whole modules, which the config then saves; ValueError for others."""
    state = {}
    modules = set()
    for extra in manifest.get("extras", []):
        if extra["role"] != "replace":
            raise ValueError(f"{extra['name']}: PEFT's Tied-LoRA has no place for an extra of role {extra['role']}")
        modules.add(extra["name"].rpartition(".")[0])
        state[f"{_PREFIX}{extra['name']}"] = values[extra["tensor"]]
    config.modules_to_save = sorted(modules) or None
    return state
