"""Adapters into base weights, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from tlkit._call import Progress, StrPath, call
from tlkit.reports import merge as reports

Method: TypeAlias = Literal[
    "linear",
    "ties",
    "dare",
    "dare-ties",
    "magnitude-prune",
    "breadcrumbs",
    "breadcrumbs-ties",
    "della",
    "della-linear",
]
"""A merge method of :func:`merge`."""


def merge(
    base: StrPath,
    adapters: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
    output: StrPath | None = None,
    *,
    in_place: bool = False,
    undo: StrPath | None = None,
    method: Method | None = None,
    density: float | Sequence[float] | None = None,
    seed: int | None = None,
    rescale: Literal["none", "density", "l1"] | None = None,
    sign_method: Literal["total", "frequency"] | None = None,
    normalize: bool | None = None,
    lambda_: float | None = None,
    gamma: float | None = None,
    epsilon: float | None = None,
    rounding: Literal["peft", "peft-safe"] = "peft",
    tied: Literal["refuse", "untie", "shared"] | None = None,
    tokenizer: Literal["base", "adapter"] = "base",
    rename: Mapping[str, str] | None = None,
    dtype: str | None = None,
    check_base: bool = False,
    strict: bool = False,
    no_fsync: bool = False,
    allow_unchanged: bool = False,
    device: str = "cpu",
    device_memory: int | str | None = None,
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Merge:
    """Merge adapters into base weights: the same bytes on any machine, with any number of threads, on a GPU too.

    Args:
        base: The base model: a safetensors file or a model directory.
        adapters: One adapter, several, or several with weights: ``{"a.tl": 0.5}``. Each a ``.tl`` or a PEFT directory.
        output: The file or folder; ``BASE-ADAPTER`` beside the base where it is None.
        in_place: Change the base itself, and write an undo file first.
        undo: The undo file; ``BASE.tlkit-undo`` where it is None.
        method: How the updates of several adapters become one, by task arithmetic on ΔW; they are added where it is
            None.
        density: Share of each update's elements that stays: one for all adapters, or one for each, in their order.
        seed: What the drops of dare and della begin from; 0 where it is None.
        rescale: How what stays makes up for what is dropped: ``"l1"`` as mergekit, ``"density"`` by the probability.
        sign_method: Which sign wins where a method elects one: that of the sum, or of the majority.
        normalize: Whether the sum is divided by the weights that take part.
        lambda_: Multiplies what comes of the method.
        gamma: Share of the largest elements that breadcrumbs drops.
        epsilon: How far below and above the density della's odds begin and end.
        rounding: ``"peft"``: round once, as PEFT by default; ``"peft-safe"``: round the update first, as its
            ``safe_merge``.
        tied: Where an adapter changes a tensor that input and output embedding share: ``"refuse"``, ``"untie"``,
            ``"shared"``.
        tokenizer: Whose tokenizer goes into the output: the base's, or the one in the adapter's folder.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        dtype: What the weights of a quantised base are written as; what they are made for where it is None.
        check_base: Refuse a base whose weights are not those that the adapter was made for.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        no_fsync: Do not wait until the output is on the disk.
        allow_unchanged: Accept an adapter that changes nothing.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        device_memory: Most device memory to take: bytes, or text such as ``"2GB"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"incompatible"`` where adapter and base do not fit or the result is not finite; ``"io"``
            where the output exists; ``"malformed"``, ``"integrity"``, ``"unsupported"``. Nothing is left half-written.
    """
    return call("merge", locals(), reports.Merge)


def merge_each(
    base: StrPath,
    adapters: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
    output: StrPath,
    *,
    method: Method | None = None,
    density: float | Sequence[float] | None = None,
    seed: int | None = None,
    rescale: Literal["none", "density", "l1"] | None = None,
    sign_method: Literal["total", "frequency"] | None = None,
    normalize: bool | None = None,
    lambda_: float | None = None,
    gamma: float | None = None,
    epsilon: float | None = None,
    rounding: Literal["peft", "peft-safe"] = "peft",
    tied: Literal["refuse", "untie", "shared"] | None = None,
    tokenizer: Literal["base", "adapter"] = "base",
    rename: Mapping[str, str] | None = None,
    dtype: str | None = None,
    check_base: bool = False,
    strict: bool = False,
    no_fsync: bool = False,
    allow_unchanged: bool = False,
    device: str = "cpu",
    device_memory: int | str | None = None,
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.MergeEach:
    """Merge each adapter alone into an output named after it, with the base read once (once for every 64).

    Args:
        base: The base model: a safetensors file or a model directory.
        adapters: One adapter, several, or several with weights: ``{"a.tl": 0.5}``. Each a ``.tl`` or a PEFT directory.
        output: The folder for the outputs.
        method: How the updates of several adapters become one, by task arithmetic on ΔW; they are added where it is
            None.
        density: Share of each update's elements that stays: one for all adapters, or one for each, in their order.
        seed: What the drops of dare and della begin from; 0 where it is None.
        rescale: How what stays makes up for what is dropped: ``"l1"`` as mergekit, ``"density"`` by the probability.
        sign_method: Which sign wins where a method elects one: that of the sum, or of the majority.
        normalize: Whether the sum is divided by the weights that take part.
        lambda_: Multiplies what comes of the method.
        gamma: Share of the largest elements that breadcrumbs drops.
        epsilon: How far below and above the density della's odds begin and end.
        rounding: ``"peft"``: round once, as PEFT by default; ``"peft-safe"``: round the update first, as its
            ``safe_merge``.
        tied: Where an adapter changes a tensor that input and output embedding share: ``"refuse"``, ``"untie"``,
            ``"shared"``.
        tokenizer: Whose tokenizer goes into the output: the base's, or the one in the adapter's folder.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        dtype: What the weights of a quantised base are written as; what they are made for where it is None.
        check_base: Refuse a base whose weights are not those that the adapter was made for.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        no_fsync: Do not wait until the output is on the disk.
        allow_unchanged: Accept an adapter that changes nothing.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        device_memory: Most device memory to take: bytes, or text such as ``"2GB"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"incompatible"`` where adapter and base do not fit or the result is not finite; ``"io"``
            where the output exists; ``"malformed"``, ``"integrity"``, ``"unsupported"``. Nothing is left half-written.
    """
    return call("merge", locals(), reports.MergeEach, each=True)


def plan_merge(
    base: StrPath,
    adapters: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
    *,
    method: Method | None = None,
    density: float | Sequence[float] | None = None,
    seed: int | None = None,
    rescale: Literal["none", "density", "l1"] | None = None,
    sign_method: Literal["total", "frequency"] | None = None,
    normalize: bool | None = None,
    lambda_: float | None = None,
    gamma: float | None = None,
    epsilon: float | None = None,
    rounding: Literal["peft", "peft-safe"] = "peft",
    tied: Literal["refuse", "untie", "shared"] | None = None,
    tokenizer: Literal["base", "adapter"] = "base",
    rename: Mapping[str, str] | None = None,
    dtype: str | None = None,
    check_base: bool = False,
    strict: bool = False,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.MergePlan:
    """Tell what a merge would do, and write nothing. What can be refused without the numbers is refused.

    Args:
        base: The base model: a safetensors file or a model directory.
        adapters: One adapter, several, or several with weights: ``{"a.tl": 0.5}``. Each a ``.tl`` or a PEFT directory.
        method: How the updates of several adapters become one, by task arithmetic on ΔW; they are added where it is
            None.
        density: Share of each update's elements that stays: one for all adapters, or one for each, in their order.
        seed: What the drops of dare and della begin from; 0 where it is None.
        rescale: How what stays makes up for what is dropped: ``"l1"`` as mergekit, ``"density"`` by the probability.
        sign_method: Which sign wins where a method elects one: that of the sum, or of the majority.
        normalize: Whether the sum is divided by the weights that take part.
        lambda_: Multiplies what comes of the method.
        gamma: Share of the largest elements that breadcrumbs drops.
        epsilon: How far below and above the density della's odds begin and end.
        rounding: ``"peft"``: round once, as PEFT by default; ``"peft-safe"``: round the update first, as its
            ``safe_merge``.
        tied: Where an adapter changes a tensor that input and output embedding share: ``"refuse"``, ``"untie"``,
            ``"shared"``.
        tokenizer: Whose tokenizer goes into the output: the base's, or the one in the adapter's folder.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        dtype: What the weights of a quantised base are written as; what they are made for where it is None.
        check_base: Refuse a base whose weights are not those that the adapter was made for.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"incompatible"`` where adapter and base do not fit; ``"io"`` where the output exists;
            ``"malformed"``, ``"integrity"``, ``"unsupported"``.
    """
    return call("merge", locals(), reports.MergePlan, dry_run=True)


def unmerge(
    base: StrPath,
    *,
    undo: StrPath | None = None,
    undigested: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Unmerge:
    """Restore the original bytes of a base that was merged in place, proven by the digests of its undo file.

    Args:
        base: The base that was merged in place.
        undo: The undo file; ``BASE.tlkit-undo`` where it is None.
        undigested: Accept an undo file of an older tlkit, which has no digest of what it says.
        device: Accepted as in :func:`merge`, and not used.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"integrity"`` where it is not the base of the undo file; ``"io"``.
    """
    return call("unmerge", locals(), reports.Unmerge)


def dequantise(
    base: StrPath,
    output: StrPath | None = None,
    *,
    dtype: str | None = None,
    dry_run: bool = False,
    no_fsync: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Dequantised:
    """Write a quantised base as one of full-width weights, bit for bit as its own library dequantises it.

    Args:
        base: The base model: a safetensors file or a model directory.
        output: The file or folder; may be None with ``dry_run``.
        dtype: What the weights are written as; what they are made for where it is None.
        dry_run: Show what would be done, and write nothing.
        no_fsync: Do not wait until the output is on the disk.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for a quantisation that is not read; ``"malformed"``, ``"io"``.
    """
    return call("dequantise", locals(), reports.Dequantised)
