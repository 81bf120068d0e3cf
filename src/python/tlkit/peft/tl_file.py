"""Reading and writing `.tl` files: manifests as dictionaries, tensors as torch's. What the rest knows of the format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tlkit._adapter import Adapter

Manifest = dict[str, Any]

_BITS = {"uint16": torch.bfloat16, "bfloat16": torch.bfloat16}


def write(path: str | os.PathLike[str], manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes the canonical `.tl` of an adapter, in place of an existing file, and returns its root.

    `manifest` has groups, extras and texts as `spec/tl-v1.md` describes them, with any names of tensors; under
    `tensors` the recipes of those that are seeded, which need not be given. Raises `tlkit.Error`.
    """
    adapter = Adapter.from_parts(manifest, {name: _to_numpy(tensor, name) for name, tensor in tensors.items()})
    return adapter.save(path, force=True)


def read(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """The manifest and every tensor of a `.tl`, seeded ones made. Raises `tlkit.Error`."""
    adapter = Adapter.open(path)
    return adapter.manifest, {name: _to_torch(array) for name, array in adapter.tensors().items()}


def _to_numpy(tensor: torch.Tensor, name: str) -> np.ndarray[Any, Any]:
    tensor = tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} is {tensor.dtype}, which a .tl cannot hold")
    tensor = tensor.detach().cpu().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    # A copy: the file's pages are read-only, and gone when the adapter is.
    if array.dtype.name in _BITS:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
