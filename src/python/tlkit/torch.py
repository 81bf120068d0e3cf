"""``.tl`` files as tensors of torch, as ``safetensors.torch`` has them. This module alone imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tlkit._adapter import Adapter, StrPath

__all__ = ["adapter_of", "load_file", "save_file", "tensors_of"]


def tensors_of(adapter: Adapter, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The distinct tensors of an adapter by the names of its manifest, copied, on ``device``."""
    return {name: _tensor(array).to(device) for name, array in adapter.tensors().items()}


def adapter_of(manifest: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Adapter:
    """As :meth:`tlkit.Adapter.from_parts`, of torch's tensors on any device: float32, float16, bfloat16, int8."""
    return Adapter.from_parts(manifest, {name: _array(tensor) for name, tensor in tensors.items()})


def load_file(filename: StrPath, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Load the distinct tensors of a ``.tl`` or a PEFT directory, every digest verified.

    Args:
        filename: The file.
        device: Where the tensors go.

    Returns:
        Tensors by the names of the manifest (``"g0.A"``), float32, float16, bfloat16 or int8.

    Raises:
        tlkit.Error: as :meth:`tlkit.Adapter.open`.
    """
    return tensors_of(Adapter.open(filename), device)


def save_file(
    tensors: Mapping[str, torch.Tensor], filename: StrPath, manifest: Mapping[str, Any], *, force: bool = False
) -> str:
    """Write a ``.tl`` of tensors and the manifest that names them, whole or not at all, and give its root.

    Args:
        tensors: On any device; float32, float16, bfloat16, or int8 with scales.
        filename: The file.
        manifest: As :meth:`tlkit.Adapter.from_parts` takes it; ``Adapter.open(other).manifest`` is one.
        force: Replace an existing file.

    Raises:
        tlkit.Error: as :meth:`tlkit.Adapter.from_parts` and :meth:`tlkit.Adapter.save`.
    """
    return adapter_of(manifest, tensors).save(filename, force=force)


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    # NumPy has no bfloat16; here it is ml_dtypes' or its bits.
    if array.dtype.name in ("bfloat16", "uint16"):
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    own = tensor.detach().cpu().contiguous()
    if own.dtype == torch.bfloat16:
        own = own.view(torch.int16)
        return np.asarray(own.numpy()).view(np.uint16)
    return np.asarray(own.numpy())
