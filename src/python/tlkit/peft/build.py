"""The factors of an adapter, made and given to the modules of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import start as starts
from .config import TiedLoraConfig
from .factor import TORCH_DTYPES, Factor
from .layer import Place, TiedLoraLinear
from .layout import Group, Module, infer


def lay_out(config: TiedLoraConfig, found: Sequence[tuple[str, TiedLoraLinear]]) -> list[Group]:
    """The tie groups of the modules that were found, checked against a layout that the config gives.

    ValueError where the model's modules are not those of the layout, or not of its sizes.
    """
    modules = [Module(name, layer.in_features, layer.out_features, layer.kind) for name, layer in found]
    if config.layout is None:
        groups = infer(modules, config.spec())
        if config.init_weights:
            for group in groups:
                starts.add_seeds(group, config.seed)
        return groups
    groups = config.groups() or []
    sizes = {module.name: (module.inputs, module.outputs, module.kind) for module in modules}
    for group in groups:
        for _, at, name in group.modules():
            target = group.targets[at]
            wanted = (group.inputs, target.out, target.kind)
            if name not in sizes:
                raise ValueError(f"the adapter's layout has the module {name}, which was not found to be adapted")
            if sizes.pop(name) != wanted:
                raise ValueError(f"{name}: the adapter is for in, out and kind {wanted}")
    if sizes:
        raise ValueError(f"the adapter's layout does not have the module {next(iter(sizes))}")
    return groups


class Builder:
    """Makes the factors of one adapter, each once, and hands them to its modules."""

    def __init__(self, adapter: str, config: TiedLoraConfig, layers: dict[str, TiedLoraLinear], empty: bool) -> None:
        self.adapter = adapter
        self.config = config
        self.layers = layers
        self.empty = empty
        self._frozen: dict[Any, Factor] = {}  # what several groups use, by its recipe or name

    def build(self, groups: Sequence[Group]) -> None:
        """Make what the groups need and give it to their modules."""
        for index, group in enumerate(groups):
            self._build_group(index, group)

    def _build_group(self, index: int, group: Group) -> None:
        held: dict[tuple[str, int, int], Factor] = {}
        whole: dict[str, torch.Tensor | None] = {name: self._values(group, name) for name in group.factors}
        for layer, at, path in group.modules():
            module = self.layers[path]
            factors = {}
            for name in group.factors:
                of_layer = layer if group.stacked(name) else 0
                of_target = at if group.split(name) else 0
                key = (name, of_layer, of_target)
                if key not in held:
                    held[key] = self._factor(group, name, whole[name], of_layer, of_target, module)
                factors[name] = held[key]
            module.set_factors(
                self.adapter, factors, rank=group.rank, scale=group.scale,
                place=Place(index, layer, at), dropout=self.config.dropout,
            )  # fmt: skip

    def _values(self, group: Group, name: str) -> torch.Tensor | None:
        """The start of a factor, of all layers and targets; None where a state dict will bring it."""
        if self.empty and name not in group.seeds:
            return None
        zero = name == starts.zero_factor(group)
        if zero and not self.config.init_weights and name in group.trained:
            values = torch.randn(group.shape(name)) / {"B": group.rank, "A": group.inputs}.get(name, 1) ** 0.5
        else:
            values = torch.tensor(starts.start(group, name, self.config.seed))
        if name in group.seeds:
            dtype = TORCH_DTYPES[group.seeds[name].dtype]
            values = values.to(dtype).to(torch.float32)
        return values

    def _factor(
        self, group: Group, name: str, whole: torch.Tensor | None, layer: int, at: int, module: TiedLoraLinear
    ) -> Factor:
        seeded = name in group.seeds
        shape = group.shape(name)[1:] if group.stacked(name) else group.shape(name)
        rows = group.rows(at) if group.split(name) else slice(None)
        device = module._get_base_layer_device_and_dtype(module.get_base_layer())[0] or torch.device("cpu")
        if whole is None:
            count = shape[0] if rows == slice(None) else rows.stop - rows.start
            weight = torch.empty([count, *shape[1:]], device="meta")
        else:
            one = whole[layer] if group.stacked(name) else whole
            weight = one[rows].clone().to(device)
        factor = Factor(weight, trained=name in group.trained, seeded=seeded)
        if group.stacked(name) or not (seeded or name in group.same):
            return factor
        # One frozen pair for groups of one recipe or name, as VeRA's of several sizes have.
        recipe = (group.seeds.get(name) or group.same[name], tuple(shape), rows.start, rows.stop, str(device))
        return self._frozen.setdefault(recipe, factor)
