"""Several adapters as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tlkit._call import Progress, StrPath, call
from tlkit.reports import combine as reports

Method = Literal[
    "cat",
    "svd",
    "linear",
    "ties",
    "dare",
    "dare-ties",
    "magnitude-prune",
    "ties-svd",
    "dare-svd",
    "dare-ties-svd",
    "magnitude-prune-svd",
]


def combine(
    adapters: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
    output: StrPath,
    *,
    method: Method = "cat",
    rank: int | None = None,
    error: float | None = None,
    max_bytes: int | str | None = None,
    density: float | None = None,
    seed: int = 0,
    sign_method: Literal["total", "frequency"] = "total",
    dtype: str | None = None,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    blobs: StrPath | None = None,
    zstd: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Combined:
    """Combine adapters of one base into one: Σ w·ΔW exactly, cut to a rank, or as PEFT's ``add_weighted_adapter``.

    Args:
        adapters: One adapter, several, or several with weights: ``{"a.tl": 0.7, "b": -0.3}``. Each a ``.tl`` or a PEFT
            directory; ranks, alphas and modules may differ.
        output: The ``.tl`` to write, whole or not at all.
        method: ``"cat"``: the sum, exactly; ``"svd"``: the closest to it. The others are PEFT's ``combination_type``
            of that name: of A (r × in) and B (out × r) apart, or with ``-svd`` of ΔW (out × in), which is then cut.
        rank: With ``svd``, the highest rank of a module; the adapters' highest where none of the three is given.
        error: With ``svd``, the lowest ranks with at most this relative error of all modules together.
        max_bytes: With ``svd``, the ranks that give a file of at most so many bytes; text such as ``"300kB"`` too.
        density: With ``ties``, ``dare`` and ``magnitude-prune``, the share of elements that is kept.
        seed: With ``dare``, which elements are dropped.
        sign_method: With ``ties``, how the sign of an element is elected, as PEFT's ``majority_sign_method``.
        dtype: Of the factors: ``"f32"``, ``"bf16"``, ``"f16"``, or ``"int8"`` with a scale for each row; where it is
            None f32, with ``cat`` as they are.
        base: The base model: records its fingerprint, checks those of the adapters, answers what VeRA leaves open.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        zstd: Compress tensors; the root stays the same.
        force: Replace an existing file; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` for options that the method does not have; ``"incompatible"`` for adapters of
            different bases, ranks that do not add (``"TL0308"``), or tensors that replace the base's (``"TL0511"``);
            ``"unsupported"`` for DoRA (``"TL0401"``); ``"malformed"``, ``"io"``.
    """
    return call("combine", locals(), reports.Combined)
