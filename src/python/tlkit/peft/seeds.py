"""Recipes of seeded tensors (chapter 7 of the `.tl` format): frozen random factors kept as a key."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlkit._adapter import seeded

GENERATOR = "chacha20-uniform/1"


@dataclass(frozen=True)
class Seed:
    """The recipe of a tensor: `key` of 32 bytes, and `step`, the distance of neighbouring values."""

    key: bytes
    step: np.float32

    @classmethod
    def uniform(cls, key: bytes, bound: float) -> Seed:
        """The recipe of uniform values between -`bound` and `bound`."""
        return cls(key, np.float32(bound / (1 << 23)))

    @classmethod
    def parse(cls, entry: dict[str, str]) -> Seed:
        """The recipe as a manifest spells it; ValueError where it is no recipe of this generator."""
        key, step = bytes.fromhex(entry["key"]), bytes.fromhex(entry["step"])
        if entry.get("generator", GENERATOR) != GENERATOR or len(key) != 32 or len(step) != 4:
            raise ValueError(f"not a recipe of {GENERATOR}: {entry}")
        return cls(key, np.float32(struct.unpack(">f", step)[0]))

    def entry(self) -> dict[str, str]:
        """The recipe as a manifest spells it."""
        step = struct.pack(">f", float(self.step)).hex()
        return {"generator": GENERATOR, "key": self.key.hex(), "step": step}

    def values(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """The tensor in f32, of the given shape. Raises `tlkit.Error` where step or shape are not allowed."""
        return seeded(self.key, float(self.step), tuple(shape))
