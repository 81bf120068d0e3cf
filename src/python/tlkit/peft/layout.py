"""Tie groups: which modules of a model share which factors. No torch: names and sizes only.

A layout is a list of groups. A group has targets (modules of one layer, or of every layer with `{}` in
place of its number) that read one input through one A, and what the manifest of a `.tl` says of a group:
rank, alpha, which factors there are, which train, which are tied, which are made from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .presets import CROSS, FACTORS, JOINT
from .seeds import Seed

PLACE = "{}"


@dataclass(frozen=True)
class Module:
    """A module to adapt: its path, input and output features, and kind (`linear` or `conv1d`)."""

    name: str
    inputs: int
    outputs: int
    kind: str = "linear"


@dataclass(frozen=True)
class Target:
    """A module of a group: its path, with `{}` for the layer's number where the group has layers."""

    module: str
    out: int
    kind: str = "linear"


@dataclass(frozen=True)
class Seeded:
    """A frozen factor that is not stored: its recipe, and the dtype it is rounded to (`F32`, `F16`, `BF16`)."""

    seed: Seed
    dtype: str = "F32"


@dataclass
class Group:
    """A tie group. `factors` are those it has, `tied` those of A and B that all its layers share."""

    targets: list[Target]
    inputs: int
    layers: list[int] | None
    rank: int
    alpha: float
    scaling: str
    factors: tuple[str, ...]
    trained: tuple[str, ...]
    tied: tuple[str, ...]
    seeds: dict[str, Seeded] = field(default_factory=dict)
    spare: dict[str, list[int]] = field(default_factory=dict)  # shapes of A and B beyond the group's own
    same: dict[str, str] = field(default_factory=dict)  # frozen factors that groups share, by a name of theirs

    @property
    def out(self) -> int:
        """Rows of B: the output features of all targets."""
        return sum(target.out for target in self.targets)

    @property
    def name(self) -> str:
        """The targets' paths, as the keys of seeds have them."""
        return ",".join(target.module for target in self.targets)

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "alpha/sqrt(rank)" else self.rank)

    def stacked(self, factor: str) -> bool:
        """Whether each layer has its own."""
        return self.layers is not None and factor not in self.tied

    def shape(self, factor: str) -> list[int]:
        """The factor's shape in a `.tl`: of all layers and targets together."""
        rank = self.rank
        sizes = {"A": [rank, self.inputs], "B": [self.out, rank], "C": [rank, rank], "u": [rank], "v": [self.out]}
        own = self.spare.get(factor, sizes[factor])
        return [len(self.layers or ()), *own] if self.stacked(factor) else own

    def modules(self) -> Iterable[tuple[int, int, str]]:
        """(index of the layer, index of the target, path) of every module."""
        for index, layer in enumerate(self.layers if self.layers is not None else [None]):
            for at, target in enumerate(self.targets):
                path = target.module if layer is None else target.module.replace(PLACE, str(layer))
                yield index, at, path

    def split(self, factor: str) -> bool:
        """Whether each target holds its own rows of it: of v, and of a B that has no more than those."""
        return factor == "v" or (factor == "B" and "B" not in self.spare)

    def rows(self, at: int) -> slice:
        """The rows of B, and entries of v, of target `at`."""
        start = sum(target.out for target in self.targets[:at])
        return slice(start, start + self.targets[at].out)

    def to_json(self) -> dict[str, Any]:
        """As `adapter_config.json` has it."""
        targets = [
            {"module": t.module, "out": t.out, **({} if t.kind == "linear" else {"kind": t.kind})} for t in self.targets
        ]
        seeds = {name: {**s.seed.entry(), "dtype": s.dtype} for name, s in self.seeds.items()}
        group = {
            "targets": targets, "in": self.inputs, "layers": self.layers, "rank": self.rank, "alpha": self.alpha,
            "scaling": self.scaling, "factors": list(self.factors), "trained": list(self.trained),
            "tied": list(self.tied), "seeds": seeds, "spare": self.spare, "same": self.same,
        }  # fmt: skip
        return {key: value for key, value in group.items() if value not in (None, {})}

    @classmethod
    def from_json(cls, group: dict[str, Any]) -> Group:
        """The inverse of `to_json`; ValueError for what is no group."""
        try:
            seeds = {name: Seeded(Seed.parse(s), s.get("dtype", "F32")) for name, s in group.get("seeds", {}).items()}
            made = cls(
                targets=[Target(t["module"], int(t["out"]), t.get("kind", "linear")) for t in group["targets"]],
                inputs=int(group["in"]), layers=group.get("layers"), rank=int(group["rank"]),
                alpha=float(group["alpha"]), scaling=group["scaling"], factors=tuple(group["factors"]),
                trained=tuple(group["trained"]), tied=tuple(group["tied"]), seeds=seeds,
                spare={name: list(shape) for name, shape in group.get("spare", {}).items()},
                same=dict(group.get("same", {})),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`layout` has what is no tie group: {error!r}") from error
        factors = set(made.factors)
        fits = {"A", "B"} <= factors <= set(FACTORS) and set(made.trained) <= factors and made.rank > 0 and made.targets
        if not fits or {"C", "u"} <= factors or made.scaling not in ("alpha/rank", "alpha/sqrt(rank)"):
            raise ValueError(f"`layout` has what is no tie group: {made.name}")
        return made


def split_layer(name: str, patterns: Sequence[str] = ()) -> tuple[str, int | None]:
    """A path with `{}` for its layer's number, and the number: the first segment that is one.

    With `patterns`, the first number that follows a segment of such a name.
    """
    parts = name.split(".")
    for at, part in enumerate(parts):
        follows = not patterns or (at > 0 and parts[at - 1] in patterns)
        if part.isascii() and part.isdigit() and int(part) < 4096 and str(int(part)) == part and follows:
            return ".".join([*parts[:at], PLACE, *parts[at + 1 :]]), int(part)
    return name, None


def joint_place(name: str, joint: bool | Sequence[Sequence[str]]) -> tuple[str, int, int] | None:
    """(path before the module's own part, which set of names it is of, its place in the set), if of any."""
    if joint is False:
        return None
    for index, names in enumerate(JOINT if joint is True else joint):
        for place, suffix in enumerate(names):
            if name == suffix or name.endswith("." + suffix):
                before = name[: -len(suffix)]
                parent = before.rstrip(".").rpartition(".")[2]
                if joint is True and place == 0 and len(names) == 3 and parent in CROSS:
                    return None
                return before, index, place
    return None


def infer(modules: Sequence[Module], spec: Spec) -> list[Group]:
    """The tie groups of `modules`, in the order of their first modules.

    Modules of one path but for the layer's number, and of one size, share A and B where `spec` ties
    them; modules of one joint set in one layer share A and the rank side.
    """
    units: dict[tuple[Any, ...], list[tuple[int, str, int | None, Module]]] = {}
    for module in modules:
        pattern, layer = split_layer(module.name, spec.layers_pattern)
        place = joint_place(module.name, spec.joint)
        unit: tuple[Any, ...] = (module.name,) if place is None else (place[0], place[1], module.inputs)
        units.setdefault(unit, []).append((0 if place is None else place[2], pattern, layer, module))
    groups: dict[tuple[Any, ...], list[int | None]] = {}
    for members in units.values():
        members.sort(key=lambda member: member[0])
        layers = {layer for _, _, layer, _ in members}
        if len(layers) > 1:
            raise ValueError(f"`joint` joins modules of several layers: {', '.join(m.name for *_, m in members)}")
        key = tuple((pattern, m.inputs, m.outputs, m.kind) for _, pattern, _, m in members)
        groups.setdefault(key, []).append(layers.pop())
    return [_group(key, layers, spec) for key, layers in groups.items()]


def _group(key: tuple[Any, ...], layers: list[int | None], spec: Spec) -> Group:
    numbers = sorted(layer for layer in layers if layer is not None)
    return Group(
        targets=[Target(pattern, out, kind) for pattern, _, out, kind in key],
        inputs=key[0][1],
        layers=numbers or None,
        rank=spec.rank,
        alpha=spec.alpha,
        scaling=spec.scaling,
        factors=tuple(f for f in FACTORS if f in "AB" or f in spec.trained),
        trained=spec.trained,
        tied=spec.tied,
    )


@dataclass(frozen=True)
class Spec:
    """What `infer` makes of all groups alike."""

    trained: tuple[str, ...]
    tied: tuple[str, ...]
    joint: bool | Sequence[Sequence[str]]
    rank: int
    alpha: float
    scaling: str = "alpha/rank"
    layers_pattern: tuple[str, ...] = ()
