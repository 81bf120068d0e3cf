"""The closest tied adapter, or smaller LoRA, of any LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tlkit._call import Progress, StrPath, call
from tlkit.reports import convert


def fit(
    adapter: StrPath,
    output: StrPath,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    max_bytes: int | str | None = None,
    coded: bool = False,
    error: float | None = None,
    joint: bool = False,
    quick: bool = False,
    core: bool = False,
    dtype: str = "f32",
    calibrate: StrPath | None = None,
    model: StrPath | None = None,
    valid: StrPath | None = None,
    seq_len: int = 512,
    limit: int | None = None,
    device: str = "cpu",
    distill: int | bool | None = None,
    distill_lr: float = 0.001,
    distill_batch: int = 8,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    zstd: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.Fitted:
    """Write the closest tied adapter of any LoRA, and tell its error and a bound that no tied adapter of its rank
    beats.

    Give one of ``rank``, ``tolerance`` and ``max_bytes``. With ``calibrate`` and ``model`` it is fitted to what the
    adapter does to texts.

    Args:
        adapter: The PEFT directory.
        output: The ``.tl`` to write, whole or not at all.
        rank: Rank of the fitted tie groups.
        tolerance: The smallest ranks with at most this relative error.
        max_bytes: The ranks that give a file of at most so many bytes; text such as ``"300kB"`` too.
        coded: Code the factors, in the fewest bytes that ``error`` or ``max_bytes`` allows.
        error: With ``coded``: at most this relative error that coding adds, over all modules together.
        joint: Fit query, key and value as one tie group, which shares A and u.
        quick: Leave out the search: the largest singular triplets as they are.
        core: Give every layer a core, a rank × rank matrix, in place of u.
        dtype: Of the fitted tensors: ``"f32"``, ``"bf16"``, ``"f16"``, or ``"int8"`` with a scale for each row.
        calibrate: JSONL with texts to fit the outputs on.
        model: The base model to run on them.
        valid: Texts to compare on; every tenth of ``calibrate`` where there is none.
        seq_len: Most tokens of a text.
        limit: Most texts to read of each file.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        distill: Then train so many steps to predict what the LoRA predicts; True for 200.
        distill_lr: Highest learning rate of it.
        distill_batch: Texts of one step of it.
        base: The base model: a safetensors file or a model directory.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        zstd: Compress tensors; the root stays the same.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The dtype of the base in training, for them.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without exactly one of ``rank``, ``tolerance``, ``max_bytes`` (``coded`` takes one
            more, or of ``error`` and ``max_bytes`` one alone where it is untied); ``"unsupported"``
            for what a ``.tl`` cannot say; ``"io"``, ``"malformed"``.
    """
    return call("convert peft-to-tied", locals(), convert.Fitted, without=("adapter",), adapters=adapter, fit=True)


def fit_untied(
    adapter: StrPath,
    output: StrPath,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    max_bytes: int | str | None = None,
    coded: bool = False,
    error: float | None = None,
    dtype: str = "f32",
    calibrate: StrPath | None = None,
    model: StrPath | None = None,
    valid: StrPath | None = None,
    seq_len: int = 512,
    limit: int | None = None,
    device: str = "cpu",
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    zstd: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.Shrunk | convert.Coded:
    """Write the closest smaller LoRA, untied, every module at the rank it needs: where tying does not pay.

    Args:
        adapter: The PEFT directory.
        output: The ``.tl`` to write, whole or not at all.
        rank: The highest rank of a module.
        tolerance: The smallest ranks with at most this relative error over all modules.
        max_bytes: The ranks that give a file of at most so many bytes; text such as ``"300kB"`` too.
        coded: Code the factors, in the fewest bytes that ``error`` or ``max_bytes`` allows.
        error: With ``coded``: at most this relative error that coding adds, over all modules together.
        dtype: As in :func:`fit`.
        calibrate: With ``coded``: JSONL with texts; the error is that of the outputs on them, not of the updates.
        model: The base model to run on texts.
        valid: Texts to compare on what is coded; every tenth of ``calibrate`` where there is none.
        seq_len: Most tokens of a text.
        limit: Most texts to read of each file.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        base: The base model: a safetensors file or a model directory.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        zstd: Compress tensors; the root stays the same.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The dtype of the base in training, for them.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without exactly one of ``rank``, ``tolerance``, ``max_bytes`` (``coded`` takes one
            more, or of ``error`` and ``max_bytes`` one alone where it is untied); ``"unsupported"``
            for what a ``.tl`` cannot say; ``"io"``, ``"malformed"``.
    """
    given, name, own = locals(), "convert peft-to-tied", ("adapter",)
    if coded:
        return call(name, given, convert.Coded, without=own, adapters=adapter, fit=True, untied=True)
    return call(name, given, convert.Shrunk, without=own, adapters=adapter, fit=True, untied=True)


def fit_curve(
    adapter: StrPath,
    *,
    curve: StrPath | Literal[True] = True,
    joint: bool = False,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.Curve:
    """Tell error against bytes for many ranks, beside LoRAs of the same bytes; write no adapter.

    Args:
        adapter: The PEFT directory.
        curve: An SVG to draw it into; True for none.
        joint: Fit query, key and value as one tie group, which shares A and u.
        base: The base model: a safetensors file or a model directory.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The dtype of the base in training, for them.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"io"``, ``"malformed"``, ``"unsupported"``.
    """
    return call("convert peft-to-tied", locals(), convert.Curve, without=("adapter",), adapters=adapter, fit=True)


def fit_shared(
    adapters: Sequence[StrPath],
    output: StrPath,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    max_bytes: int | str | None = None,
    coded: bool = False,
    error: float | None = None,
    joint: bool = False,
    apart: float = 0.5,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    zstd: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.SharedFactors:
    """Fit one A and B for many adapters, each with its own u: thin files over blobs that are kept once.

    Args:
        adapters: The PEFT directories.
        output: The folder for ``NAME.tl`` and ``blobs``.
        rank: The rank of the tie groups.
        tolerance: The smallest ranks with at most this relative error.
        max_bytes: The ranks that give a file of at most so many bytes; text such as ``"300kB"`` too.
        coded: Code the factors, in the fewest bytes that ``error`` or ``max_bytes`` allows.
        error: With ``coded``: at most this relative error that coding adds, over all modules together.
        joint: Fit query, key and value as one tie group, which shares A and u.
        apart: Leave an adapter as it is where sharing would leave it with a larger relative error.
        base: The base model: a safetensors file or a model directory.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        zstd: Compress tensors; the root stays the same.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The dtype of the base in training, for them.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without exactly one of ``rank``, ``tolerance``, ``max_bytes`` (``coded`` takes one
            more, or of ``error`` and ``max_bytes`` one alone where it is untied); ``"unsupported"``
            for what a ``.tl`` cannot say; ``"io"``, ``"malformed"``.
    """
    return call("convert peft-to-tied", locals(), convert.SharedFactors, fit=True, share=True)


def fit_onto(
    adapter: StrPath,
    output: StrPath,
    onto: StrPath,
    *,
    blobs: StrPath | None = None,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    zstd: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.FittedOnto:
    """Take A and B from another ``.tl``, and fit u alone.

    Args:
        adapter: The PEFT directory.
        output: The ``.tl`` to write, whole or not at all.
        onto: The ``.tl`` with A and B.
        blobs: Folder with the tensors that it leaves out; the new file leaves them out too.
        base: The base model: a safetensors file or a model directory.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        zstd: Compress tensors; the root stays the same.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The dtype of the base in training, for them.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"incompatible"`` where they do not fit; ``"io"``, ``"malformed"``, ``"unsupported"``.
    """
    return call("convert peft-to-tied", locals(), convert.FittedOnto, without=("adapter",), adapters=adapter)
