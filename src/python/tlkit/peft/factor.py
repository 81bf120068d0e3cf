"""A factor as a module, so that all layers that share it hold one object."""

from __future__ import annotations

import torch
from torch import nn

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Factor(nn.Module):
    """One tensor, `weight`: a parameter where it trains, else a buffer.

    PEFT keeps and casts adapters by replacing entries and parameters of the modules that own them. The
    owner is this module, and layers hold the module: the tie outlives a cast, a move and a load. A
    buffer that is made from a seed is not persistent: it is not part of a state dict.
    """

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, *, trained: bool, seeded: bool = False) -> None:
        super().__init__()
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=not seeded)

    @property
    def trained(self) -> bool:
        """Whether it is a parameter."""
        return "weight" in self._parameters

    @property
    def dtype_name(self) -> str:
        """The dtype as a `.tl` names it; ValueError for one that it cannot hold."""
        if self.weight.dtype not in DTYPE_NAMES:
            raise ValueError(f"a factor is {self.weight.dtype}; a .tl holds float32, float16 and bfloat16")
        return DTYPE_NAMES[self.weight.dtype]

    def cast(self, dtype: torch.dtype) -> None:
        """Changes the dtype for all who hold this factor."""
        if self.weight.dtype == dtype:
            return
        if self.trained:
            self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=self.weight.requires_grad)
        else:
            self.weight = self.weight.to(dtype)
