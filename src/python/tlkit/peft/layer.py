"""A linear module with Tied-LoRA adapters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from peft.utils.integrations import skip_init_on_device
from torch import nn
from transformers.pytorch_utils import Conv1D

from .factor import Factor


@dataclass(frozen=True)
class Place:
    """Where a module stands: the index of its group, of its layer in the group, and of its target."""

    group: int
    layer: int
    target: int


class TiedLoraLayer(BaseTunerLayer):
    """What a module has of each adapter: factors that it shares with others, and its own.

    `tied_lora_A[adapter].weight` is [rank, in], `tied_lora_B` [out, rank], and where the adapter has
    them `tied_lora_C` [rank, rank], `tied_lora_u` [rank] and `tied_lora_v` [out]. The same `Factor`
    object stands in all layers that are tied, and A, C and u in all modules of a joint group.
    """

    adapter_layer_names = ("tied_lora_A", "tied_lora_B", "tied_lora_C", "tied_lora_u", "tied_lora_v")
    other_param_names = ("tied_lora_dropout", "r", "scaling", "places")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.tied_lora_A = nn.ModuleDict()
        self.tied_lora_B = nn.ModuleDict()
        self.tied_lora_C = nn.ModuleDict()
        self.tied_lora_u = nn.ModuleDict()
        self.tied_lora_v = nn.ModuleDict()
        self.tied_lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.places: dict[str, Place] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        sizes: Any = _get_in_out_features(self.get_base_layer())
        self.in_features: int
        self.out_features: int
        self.in_features, self.out_features = sizes

    @property
    def kind(self) -> str:
        """The kind of the module as a `.tl` names it."""
        return "conv1d" if isinstance(self.get_base_layer(), Conv1D) else "linear"

    @skip_init_on_device
    def set_factors(
        self, adapter: str, factors: dict[str, Factor], *, rank: int, scale: float, place: Place, dropout: float
    ) -> None:
        """Gives the module the factors of an adapter, by their names A, B, C, u and v."""
        for name, factor in factors.items():
            getattr(self, f"tied_lora_{name}")[adapter] = factor
        self.tied_lora_dropout[adapter] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        assert isinstance(self, nn.Module)
        self.tied_lora_dropout[adapter].train(self.training)
        self.r[adapter], self.scaling[adapter], self.places[adapter] = rank, scale, place

    def factors(self, adapter: str) -> dict[str, Factor]:
        """The factors of an adapter, by their names A, B, C, u and v."""
        named = ((name, getattr(self, name)) for name in self.adapter_layer_names)
        return {name.removeprefix("tied_lora_"): held[adapter] for name, held in named if adapter in held}

    def compute_dtype(self, adapter: str) -> torch.dtype:
        """The dtype that the update is computed in: that of what trains."""
        factors = self.factors(adapter).values()
        chosen: Any = next((f for f in factors if f.trained), self.tied_lora_A[adapter])
        return chosen.weight.dtype

    def _weights(self, adapter: str, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The factors on a device and in a dtype, without what A and B have beyond this module's size."""
        made = {name: factor.weight.to(device=device, dtype=dtype) for name, factor in self.factors(adapter).items()}
        if made["A"].shape[1] != self.in_features:
            made["A"] = made["A"][:, : self.in_features]
        if made["B"].shape[0] != self.out_features:
            made["B"] = made["B"][: self.out_features]
        return made

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The dtype stays: a tied factor has no one base layer, and is cast for all its holders at once.
        base = self.get_base_layer()
        target = device if device is not None else self._get_base_layer_device_and_dtype(base)[0]
        if target is None or target.type == "meta" or adapter_name not in self.places:
            return
        for name, factor in self.factors(adapter_name).items():
            shared = name in ("A", "B")
            if factor.weight.device.type == "meta" or (shared and factor.weight.device.type == target.type):
                continue
            factor.to(target)


class TiedLoraLinear(nn.Module, TiedLoraLayer):
    """A `torch.nn.Linear`, a quantised one, or a `Conv1D` with Tied-LoRA adapters."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        TiedLoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name

    def update(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        """s · diag(v) · B · diag(u) · A · x (C in place of diag(u)): [..., in] to [..., out]."""
        dtype = self.compute_dtype(adapter)
        w = self._weights(adapter, x.device, dtype)
        x = self.tied_lora_dropout[adapter](self._cast_input_dtype(x, dtype))
        hidden = F.linear(x, w["A"])
        if "C" in w:
            hidden = F.linear(hidden, w["C"])
        rank_side: Any = w.get("u")
        if self.scaling[adapter] != 1.0:
            rank_side = self.scaling[adapter] if rank_side is None else rank_side * self.scaling[adapter]
        if rank_side is not None:
            hidden = hidden * rank_side
        # v scales the rows of B, out × rank numbers, and not the output, out numbers for each token.
        up = w["B"] * w["v"].unsqueeze(-1) if "v" in w else w["B"]
        return F.linear(hidden, up.to(hidden.dtype))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """ΔW in the shape of the base weight: [out, in], or [in, out] of a Conv1D."""
        factor: Any = self.tied_lora_B[adapter].weight
        dtype = self.compute_dtype(adapter)
        # (b)float16 matmuls are slow on some CPUs, and rounded more than once.
        wide = torch.float32 if factor.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16) else dtype
        w = self._weights(adapter, factor.device, wide)
        down = w["C"] @ w["A"] if "C" in w else w["A"]
        if "u" in w:
            down = w["u"].unsqueeze(-1) * down
        up = w["v"].unsqueeze(-1) * w["B"] if "v" in w else w["B"]
        delta = up @ down
        if self.scaling[adapter] != 1.0:
            delta = delta * self.scaling[adapter]
        return (delta.T if self.kind == "conv1d" else delta).to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds ΔW of the active adapters, or of those named, to the base weight.

        With `safe_merge` into a copy, which is refused with ValueError where it is not finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names) or ():
            if adapter not in self.places:
                continue
            weight = self.get_base_weight()
            delta = self.get_delta_weight(adapter).to(weight.device)
            if safe_merge:
                weight = weight.clone()
                weight += delta.to(weight.dtype)
                if not torch.isfinite(weight).all():
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken")
            else:
                weight += delta
            self.set_base_weight(weight)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Takes the merged adapters out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.places:
                weight = self.get_base_weight()
                weight -= self.get_delta_weight(adapter).to(weight.device)
                self.set_base_weight(weight)

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The module's output, with the updates of the active adapters, or of `adapter_names`, one for each example."""
        if adapter_names is not None:
            return self._mixed_batch(x, *args, adapter_names=adapter_names, **kwargs)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for adapter in self.active_adapters:
            if adapter in self.places:
                result = result + self.update(x, adapter)
        return result.to(dtype)

    def _mixed_batch(self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> torch.Tensor:
        """Each example of the batch through the adapter of its name; `__base__` through none."""
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result = self.base_layer(x, *args, **kwargs)
        for adapter in dict.fromkeys(adapter_names):
            if adapter in self.places:
                rows = [index for index, name in enumerate(adapter_names) if name == adapter]
                result[rows] += self.update(x[rows], adapter).to(result.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether ΔW can be written as a LoRA: always."""
        return True

    def __repr__(self) -> str:
        return "tied_lora." + super().__repr__()

    def extra_repr(self) -> str:
        """What `repr` says of a quantised base."""
        return quantization_extra_repr(self)
