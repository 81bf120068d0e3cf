"""From what PEFT saves to a `.tl`: the same numbers, put together group by group."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors.torch import load_file

from . import tl_file
from .config import TiedLoraConfig
from .layout import Group
from .tl_file import Manifest

TL_NAME = "adapter.tl"
_PREFIX = "base_model.model."
State = Mapping[str, torch.Tensor]


def save_tl(model: Any, path: str | os.PathLike[str], adapter_name: str = "default") -> str:
    """Writes an adapter of a model as `.tl`, and returns its root (`sha256:…`).

    Args:
        model (`PeftModel`): A model with a Tied-LoRA adapter.
        path: The file to write. An existing one is replaced.
        adapter_name (`str`): Which adapter.

    Raises ValueError for an adapter that a `.tl` cannot hold, naming the tensor.
    """
    config = model.peft_config[adapter_name]
    if not isinstance(config, TiedLoraConfig):
        raise ValueError(f"the adapter {adapter_name!r} is {config.peft_type}, not Tied-LoRA")
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    return tl_file.write(path, *parts(config, state))


def folder_to_tl(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Writes the `.tl` of a folder that `PeftModel.save_pretrained` wrote, and returns its root."""
    config = PeftConfig.from_pretrained(os.fspath(folder))
    if not isinstance(config, TiedLoraConfig):
        raise ValueError(f"{os.fspath(folder)}: the adapter is {config.peft_type}, not Tied-LoRA")
    weights = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if weights.exists():
        state = load_file(weights)
    else:
        state = torch.load(Path(folder) / WEIGHTS_NAME, map_location="cpu", weights_only=True)
    return tl_file.write(path, *parts(config, state))


def write_beside(folder: str | os.PathLike[str]) -> None:
    """Puts `adapter.tl` into a folder that PEFT has just saved to, in place of an older one.

    What a `.tl` cannot hold (a buffer of integers, a number that is not finite) ends no training: then
    there is no `adapter.tl`, and a warning says why.
    """
    path = Path(folder) / TL_NAME
    path.unlink(missing_ok=True)
    if not any((Path(folder) / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        return  # a configuration saved by itself
    try:
        folder_to_tl(folder, path)
    except Exception as error:
        warnings.warn(f"{path} is not written: {error}", stacklevel=2)


def parts(config: TiedLoraConfig, state: State) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Manifest and tensors of an adapter as saved, for `tl_file.write`.

    ValueError where the configuration has no layout, or a tensor is missing, left over or of another shape.
    """
    groups = config.groups()
    if groups is None:
        raise ValueError("the configuration has no layout: it was not saved with an adapter")
    state = {key.removeprefix(_PREFIX): tensor.detach().cpu() for key, tensor in state.items()}
    used: set[str] = set()
    tensors: dict[str, torch.Tensor] = {}
    manifest: Manifest = {"tl": 1, "groups": [], "tensors": {}}
    shared: dict[str, torch.Tensor] = {}
    for index, group in enumerate(groups):
        entry = _entry(group)
        for factor in group.factors:
            name = f"{index}.{factor}"
            entry[factor] = name
            if factor in group.seeds:
                seeded = group.seeds[factor]
                recipe = {"dtype": seeded.dtype, "shape": group.shape(factor), "seed": seeded.seed.entry()}
                manifest["tensors"][name] = recipe
            else:
                tensors[name] = _assemble(group, factor, state, used, shared)
        manifest["groups"].append(entry)
    manifest["extras"] = list(_extras(config, state, used, tensors))
    manifest.update(_texts(config))
    return manifest, tensors


def _entry(group: Group) -> dict[str, Any]:
    targets = [
        {"module": t.module, "out": t.out, **({} if t.kind == "linear" else {"kind": t.kind})} for t in group.targets
    ]
    entry: dict[str, Any] = {
        "alpha": group.alpha, "in": group.inputs, "rank": group.rank, "scaling": group.scaling,
        "targets": targets, "trained": list(group.trained),
    }  # fmt: skip
    if group.layers is not None:
        entry["layers"] = list(group.layers)
    return entry


def _assemble(group: Group, factor: str, state: State, used: set[str], shared: dict[str, torch.Tensor]) -> torch.Tensor:
    """A factor of all layers and targets, from what each of its first holders has."""
    layers = range(len(group.layers or ())) if group.stacked(factor) else [None]
    targets = range(len(group.targets)) if group.split(factor) else [None]
    stacked = []
    for layer in layers:
        pieces = []
        for at in targets:
            holders = [p for i, t, p in group.modules() if layer in (None, i) and at in (None, t)]
            keys = [f"{path}.tied_lora_{factor}.weight" for path in holders]
            key = next((key for key in keys if key in state), None)
            known = f"{group.same.get(factor)}/{at}"
            if key is not None:
                used.add(key)
                shared[known] = state[key]
            elif known not in shared or factor not in group.same:
                raise ValueError(f"{keys[0]} is not among the saved tensors")
            pieces.append(shared[known] if key is None else state[key])
        stacked.append(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
    whole = torch.stack(stacked) if group.stacked(factor) else stacked[0]
    if list(whole.shape) != group.shape(factor):
        raise ValueError(f"{factor} of {group.name} has the shape {list(whole.shape)}, not {group.shape(factor)}")
    return whole


def _extras(
    config: TiedLoraConfig, state: State, used: set[str], tensors: dict[str, torch.Tensor]
) -> Iterable[dict[str, Any]]:
    """What goes with the update: modules trained whole, biases, weights under an update."""
    for key in sorted(set(state) - used):
        if ".tied_lora_" in key:
            raise ValueError(f"{key} belongs to no tie group")
        name = key.replace(".base_layer.", ".")
        bias = config.bias != "none" and name.endswith(".bias")
        role = "bias" if bias else "base_layer" if name != key else "replace"
        tensors[f"extra.{name}"] = state[key]
        yield {"name": name, "role": role, "tensor": f"extra.{name}"}


def _texts(config: TiedLoraConfig) -> dict[str, Any]:
    """Task, and name of the base where it is one that a hub has, and no path."""
    texts: dict[str, Any] = {"provenance": {"tool": "tlkit.peft"}}
    if config.task_type is not None:
        texts["task"] = str(getattr(config.task_type, "value", config.task_type))
    name = config.base_model_name_or_path
    if name and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) and not os.path.exists(name):
        texts["base"] = {"name": name, **({"revision": config.revision} if config.revision else {})}
    return texts
