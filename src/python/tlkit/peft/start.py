"""Where training starts: the values of tlkit's own trainer, bit for bit.

The update is zero at the start because the first trained factor of v, B, A, C, u is; the others of A
and B are uniform with variance 1 / (terms of their sums), from a key of the seed, the group and the
factor; u starts at ones and C at the identity.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from .layout import Group, Seeded
from .seeds import Seed

_ZERO_ORDER = ("v", "B", "A", "C", "u")


def zero_factor(group: Group) -> str:
    """The factor that starts at zero."""
    return next((factor for factor in _ZERO_ORDER if factor in group.trained), "v")


def seed_of(group: Group, factor: str, seed: int) -> Seed:
    """The recipe of the random start of A or B."""
    text = f"tlkit start 1\n{seed}\n{group.name}\n{factor}\n"
    terms = group.inputs if factor == "A" else group.rank
    return Seed.uniform(hashlib.sha256(text.encode()).digest(), math.sqrt(3.0 / terms))


def add_seeds(group: Group, seed: int) -> None:
    """Marks the frozen ones of A and B as made from their seeds."""
    for factor in ("A", "B"):
        if factor not in group.trained:
            group.seeds[factor] = Seeded(seed_of(group, factor, seed))


def start(group: Group, factor: str, seed: int) -> npt.NDArray[np.float32]:
    """The start of a factor, of all layers and targets together (`group.shape(factor)`)."""
    shape = group.shape(factor)
    if factor in group.seeds:
        return group.seeds[factor].seed.values(shape)
    if factor == zero_factor(group):
        return np.zeros(shape, np.float32)
    if factor in ("A", "B"):
        return seed_of(group, factor, seed).values(shape)
    if factor == "C":
        return np.broadcast_to(np.eye(group.rank, dtype=np.float32), shape).copy()
    return np.ones(shape, np.float32)
