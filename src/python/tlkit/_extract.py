"""The adapter between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tlkit._call import Progress, StrPath, call
from tlkit.reports import extract as reports


def extract(
    base: StrPath,
    tuned: StrPath,
    output: StrPath,
    *,
    rank: int | None = None,
    error: float | None = None,
    max_bytes: int | str | None = None,
    dtype: str = "f32",
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    embeddings: bool = False,
    allow_left_out: bool = False,
    tied: Literal["search", "quick", "core"] | None = None,
    rename: Mapping[str, str] | None = None,
    zstd: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Extracted:
    """Write the adapter that makes one model of another: the closest factors of every weight that changed, (out, rank)
    and (rank, in), and whole what has no low rank.

    Give one of ``rank``, ``error`` and ``max_bytes``.

    Args:
        base: The base model: a safetensors file or a model directory.
        tuned: The model that was made of it.
        output: The ``.tl`` to write, whole or not at all.
        rank: One rank for every module.
        error: The ranks of the fewest bytes with at most this relative error over all modules.
        max_bytes: The ranks of the least error that give a file of at most so many bytes; text such as ``"20MB"`` too.
        dtype: Of the factors: ``"f32"``, ``"bf16"``, ``"f16"``, or ``"int8"`` with a scale for each row.
        targets: Only these modules, by the last part of their names or in full.
        exclude: All modules but these.
        embeddings: Embeddings and output projections as factors, too.
        allow_left_out: Leave out what changed and is not named, or is in one of the models only.
        tied: Fit a tied adapter of the rank to what was extracted.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        zstd: Compress tensors; the root stays the same.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without exactly one of ``rank``, ``error``, ``max_bytes``, where nothing changed,
            and where something changed that would be left out; ``"incompatible"`` for tensors that are not of one
            model; ``"io"``, ``"malformed"``.
    """
    return call("extract", locals(), reports.Extracted)
