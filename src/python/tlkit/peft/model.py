"""The tuner: puts Tied-LoRA adapters into a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from .build import Builder, lay_out
from .config import TiedLoraConfig
from .factor import Factor
from .layer import TiedLoraLayer, TiedLoraLinear


class TiedLoraModel(BaseTuner):
    """Creates a Tied-LoRA model from a pretrained model.

    Args:
        model (`torch.nn.Module`): The model to be adapted.
        config ([`TiedLoraConfig`]): The configuration.
        adapter_name (`str`): The name of the adapter.
        low_cpu_mem_usage (`bool`): Make trained weights on the meta device, to be loaded into.

    Example:

        >>> from transformers import AutoModelForCausalLM
        >>> from peft import get_peft_model
        >>> from tlkit.peft import TiedLoraConfig
        >>> model = AutoModelForCausalLM.from_pretrained("fixtures/llama-tiny")
        >>> config = TiedLoraConfig(method="tl6", r=8, target_modules=["q_proj", "k_proj", "v_proj"])
        >>> model = get_peft_model(model, config)
    """

    prefix: str = "tied_lora_"
    tuner_layer_cls = TiedLoraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Wraps the modules that the config targets, then lays the tie groups out over all of them."""
        self._found: list[tuple[str, TiedLoraLinear]] = []
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict
        )
        found, self._found = self._found, []
        config: Any = self.peft_config[adapter_name]
        groups = lay_out(config, found)
        Builder(adapter_name, config, dict(found), low_cpu_mem_usage).build(groups)
        config._found = [group.to_json() for group in groups]
        trainable = adapter_name in self.active_adapters and not config.inference_mode
        for _, layer in found:
            for factor in layer.factors(adapter_name).values():
                factor.requires_grad_(trainable)

    def _create_and_replace(
        self,
        config: TiedLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        if not isinstance(target, TiedLoraLinear):
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            backend = resolve_quantization_backend(base)
            if not isinstance(base, (nn.Linear, Conv1D)) and (backend is None or backend.layer_type != "linear"):
                raise TypeError(
                    f"Target module {target} is not supported. Only `torch.nn.Linear` (also quantized) and "
                    "`transformers.pytorch_utils.Conv1D` can be adapted."
                )
            layer = TiedLoraLinear(target, adapter_name, **get_quantization_kwargs(self))
            self._replace_module(parent, target_name, layer, target)
            target = layer
        self._found.append((current_key, target))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Factors are made in float32. Without autocast they take the dtype of the base, as LoRA's do.
        for factor, layer in _factors(self.model, adapter_name):
            base_dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[1]
            low = (torch.float16, torch.bfloat16)
            if autocast_adapter_dtype and factor.weight.dtype in low:
                factor.cast(torch.float32)
            elif not autocast_adapter_dtype and base_dtype in low:
                factor.cast(base_dtype)
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hands `adapter_names` of a mixed batch to every layer."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = set(names) - {"__base__"} - set(self.peft_config)
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams")
        repeated = [name for name in names for _ in range(beams)] if isinstance(beams, int) and beams > 1 else names
        # The encoder sees each example once, whatever the number of beams.
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else None
        once = set() if encoder is None or encoder is self.model else set(encoder.modules())
        handles = []
        for module in self.modules():
            if isinstance(module, (TiedLoraLayer, AuxiliaryTrainingWrapper)):
                hook = partial(_add_adapter_names, adapter_names=names if module in once else repeated)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: TiedLoraConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The adapter's entries, each tied factor once: under the name of the first module that holds it."""
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for keys in _keys_of_factors(model, adapter_name):
            for alias in keys[1:]:
                selected.pop(alias, None)
        _note_dtypes(model, config, adapter_name)
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: TiedLoraConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Gives each tied factor's tensor to every name that the model knows it by."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for keys in _keys_of_factors(model, adapter_name):
            tensor = next((remapped[key] for key in keys if key in remapped), None)
            if tensor is not None:
                remapped.update(dict.fromkeys(keys, tensor))
        return remapped


def _add_adapter_names(module: nn.Module, args: Any, kwargs: Any, adapter_names: list[str]) -> tuple[Any, Any]:
    kwargs["adapter_names"] = adapter_names
    return args, kwargs


def _layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, TiedLoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, TiedLoraLayer) and adapter in module.places:
            yield name.removeprefix("_fsdp_wrapped_module."), module


def _factors(model: nn.Module, adapter: str) -> Iterator[tuple[Factor, TiedLoraLayer]]:
    """Every factor of an adapter once, with the first layer that holds it."""
    seen: set[int] = set()
    for _, layer in _layers(model, adapter):
        for factor in layer.factors(adapter).values():
            if id(factor) not in seen:
                seen.add(id(factor))
                yield factor, layer


def _keys_of_factors(model: nn.Module, adapter: str) -> list[list[str]]:
    """The names of each stored factor in the model's state dict, that of its first layer first."""
    keys: dict[int, list[str]] = {}
    for path, layer in _layers(model, adapter):
        for name, factor in layer.factors(adapter).items():
            if not (factor.trained or "weight" not in factor._non_persistent_buffers_set):
                continue
            key = f"tied_lora_{name}.{adapter}.weight"
            keys.setdefault(id(factor), []).append(f"{path}.{key}" if path else key)
    return list(keys.values())


def _note_dtypes(model: nn.Module, config: TiedLoraConfig, adapter: str) -> None:
    """Writes down which dtype the seeded factors are rounded to, so that they are made alike again."""
    layout = config.layout if config.layout is not None else config._found
    for _, layer in _layers(model, adapter):
        seeds = (layout or [])[layer.places[adapter].group].get("seeds", {}) if layout else {}
        for name in seeds:
            seeds[name]["dtype"] = layer.factors(adapter)[name].dtype_name
