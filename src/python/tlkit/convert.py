"""Between the adapters of PEFT, MLX and NeMo and ``.tl``, without loss; :func:`tlkit.fit` loses as little as it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tlkit._call import Progress, StrPath, call
from tlkit.reports import convert as reports

__all__ = ["mlx_to_tied", "nemo_to_tied", "peft_to_tied", "tied_to_gguf", "tied_to_mlx", "tied_to_peft"]


def peft_to_tied(
    adapter: StrPath,
    output: StrPath,
    *,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    keep_equal: bool = False,
    zstd: bool = False,
    projection_rounding: Literal["fused", "separate"] = "fused",
    projection_dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.PeftToTied:
    """Convert a PEFT LoRA or VeRA directory to a ``.tl``. What is tied is found; what is not is kept bit for bit.

    Args:
        adapter: The folder with ``adapter_config.json``, and safetensors or ``adapter_model.bin`` (never executed).
        output: The ``.tl`` to write, whole or not at all.
        base: The base model: records its fingerprint, and answers what VeRA leaves open. Only headers and targeted
            weights are read.
        rename: Leading parts of module names, and what they are in the base.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        keep_equal: Keep whole tensors that are the base's own, which are left out with ``base``.
        zstd: Compress the tensors; the root stays the same.
        projection_rounding: How torch rounded VeRA projections that are not stored.
        projection_dtype: The base's dtype in training, for them: ``"f32"``, ``"f16"``, ``"bf16"``.
        force: Replace an existing file.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for what a ``.tl`` cannot say (DoRA: ``"TL0401"``); ``"malformed"``,
            ``"io"``.
    """
    return call("convert peft-to-tied", locals(), reports.PeftToTied, without=("adapter",), adapters=adapter)


def tied_to_peft(
    file: StrPath,
    output: StrPath,
    *,
    portable: bool = False,
    as_: Literal["lora", "vera"] = "lora",
    dtype: str = "f32",
    base: StrPath | None = None,
    base_name: str | None = None,
    rename: Mapping[str, str] | None = None,
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.TiedToPeft:
    """Convert a ``.tl`` to a PEFT directory, which merges to the same bytes.

    Args:
        file: The ``.tl``.
        output: The folder to write.
        portable: The form that PEFT, vLLM, SGLang and llama.cpp load alike: alpha = r, one rank, the scale in B; with
            ``base``, zeros for what SGLang does not do without.
        as_: ``"vera"`` where one A and one B serve every module.
        dtype: Of the factors: ``"f32"``, ``"f16"``, ``"bf16"``.
        base: The base model, so that modules are named by suffix only where that is exact.
        base_name: What the config calls the base, such as the name that a server has for it.
        rename: Leading parts of module names, and what they are in the base.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out.
        force: Replace a PEFT directory without other files.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` where that form cannot say it; ``"malformed"``, ``"integrity"``, ``"io"``.
    """
    return call("convert tied-to-peft", locals(), reports.TiedToPeft)


def tied_to_gguf(
    adapter: StrPath,
    output: StrPath,
    *,
    base: StrPath,
    rename: Mapping[str, str] | None = None,
    dtype: str = "f32",
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.TiedToGguf:
    """Convert a ``.tl`` or a PEFT directory to llama.cpp's adapter format: Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3.

    Args:
        adapter: The ``.tl`` or the folder.
        output: The GGUF file to write.
        base: The base model's folder; of its files only ``config.json`` is needed.
        rename: Leading parts of module names, and what they are in the base.
        dtype: Of the factors: ``"f32"``, ``"f16"``, ``"bf16"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out.
        force: Replace an existing file.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for what llama.cpp does not hold (DoRA, biases, saved modules);
            ``"incompatible"`` where adapter and base do not fit; ``"malformed"``, ``"io"``.
    """
    return call("convert tied-to-gguf", locals(), reports.TiedToGguf)


def mlx_to_tied(
    adapter: StrPath,
    output: StrPath,
    *,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    keep_equal: bool = False,
    zstd: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.PeftToTied:
    """Convert an MLX adapter, as ``mlx_lm.lora`` writes it, to a ``.tl``: LoRA, or layers that were trained whole.

    Args:
        adapter: The folder with ``adapter_config.json`` and ``adapters.safetensors``.
        output: The ``.tl`` to write, whole or not at all.
        base: The base model: records its fingerprint, and tells what its modules are called. Only headers and targeted
            weights are read.
        rename: Leading parts of module names, and what they are in the base.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        keep_equal: Keep whole tensors that are the base's own, which are left out with ``base``.
        zstd: Compress the tensors; the root stays the same.
        force: Replace an existing file.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for what a ``.tl`` cannot say (DoRA: ``"TL0401"``); ``"usage"`` where
            experts need ``base`` (``"TL0316"``); ``"malformed"``, ``"incompatible"``, ``"io"``.
    """
    return call("convert mlx-to-tied", locals(), reports.PeftToTied)


def nemo_to_tied(
    adapter: StrPath,
    output: StrPath,
    *,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    keep_equal: bool = False,
    zstd: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.PeftToTied:
    """Convert a ``.nemo`` of NeMo 1.x to a ``.tl``: LoRA, tied LoRA (TL5), the paper's own. Nothing in it is executed.

    Args:
        adapter: The ``.nemo`` file.
        output: The ``.tl`` to write, whole or not at all.
        base: The base model: records its fingerprint, and tells what its modules are called. Only headers and targeted
            weights are read.
        rename: Leading parts of module names, and what they are in the base.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        keep_equal: Keep whole tensors that are the base's own, which are left out with ``base``.
        zstd: Compress the tensors; the root stays the same.
        force: Replace an existing file.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for what is no low-rank update (a position embedding: ``"TL0423"``);
            ``"usage"`` where modules have no names without ``base`` (``"TL0316"``); ``"malformed"``, ``"io"``.
    """
    return call("convert nemo-to-tied", locals(), reports.PeftToTied)


def tied_to_mlx(
    adapter: StrPath,
    output: StrPath,
    *,
    base: StrPath,
    rename: Mapping[str, str] | None = None,
    dtype: str = "f32",
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.TiedToMlx:
    """Convert a ``.tl``, or another tool's adapter, to a folder that mlx-lm loads with ``adapter_path``.

    ``lora_a`` is (in, r) and ``lora_b`` (r, out), at the largest rank of any module.

    Args:
        adapter: The ``.tl``, folder or file.
        output: The folder to write.
        base: The base model's folder; of its files only ``config.json`` is needed.
        rename: Leading parts of module names, and what they are in the base.
        dtype: Of the factors: ``"f32"``, ``"f16"``, ``"bf16"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out.
        force: Replace an adapter's folder without other files.
        progress: Called with ``(done, total, what)`` from this thread.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"`` for what mlx-lm does not hold, and for models whose names it is not known to
            share; ``"incompatible"`` where adapter and base do not fit; ``"malformed"``, ``"io"``.
    """
    return call("convert tied-to-mlx", locals(), reports.TiedToMlx)
