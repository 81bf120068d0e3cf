"""What adapters, models and fleets are and take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlkit._call import Progress, StrPath, call
from tlkit.reports import audit as reports
from tlkit.reports import convert


def audit(
    paths: StrPath | Sequence[StrPath],
    *,
    template: str | None = None,
    owners: StrPath | None = None,
    base: StrPath | Sequence[StrPath] | None = None,
    hash: bool = False,
    measure: int | bool | None = None,
    fit: int | bool | None = None,
    csv: StrPath | None = None,
    parquet: StrPath | None = None,
    html: StrPath | None = None,
    strict: bool = False,
    price_gb: float = 0.023,
    price_requests: float = 0.0,
    requests: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Audit:
    """Say what a fleet of adapters takes, what of that is waste, and what other forms would take. Only headers are
    read, unless ``hash``, ``measure`` or ``fit`` is asked for.

    Args:
        paths: Folders with adapters, ``.tl`` files, or stores by their URL.
        template: Where user and task stand in a path: ``"{user}/{task}"``.
        owners: CSV with the columns path, user and task.
        base: Folders of base models: adapters trained over one of them say how it is quantised.
        hash: Read every tensor, so that equal ones are found and VeRA projections proven.
        measure: Compress the weights of the first so many adapters; True for all.
        fit: Make other forms of the first so many in memory, and tell bytes and error: coded at 1, 5 and 10 %, int8,
            truncated, the closest tied adapter; True for all.
        csv: Write one line for each adapter.
        parquet: The same as Parquet.
        html: The whole report as one page.
        strict: Raise where an adapter is broken.
        price_gb: USD for a GB (10^9 bytes) and month.
        price_requests: USD for 1000 requests.
        requests: Requests a month.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Returns:
        A dictionary whose ``rows`` are one dictionary for each adapter: ``pandas.json_normalize(report["rows"])``,
        ``polars.DataFrame(report["rows"])``, ``pyarrow.Table.from_pylist(report["rows"])``; ``parquet`` writes them
        flat, for DuckDB or Spark.

    Raises:
        Error: ``.kind`` ``"io"`` where an output cannot be written; with ``strict`` where an adapter is broken,
            and then ``.report`` has everything.
    """
    return call("audit", locals(), reports.Audit)


def plan(
    users: int,
    *,
    tasks: int = 1,
    model: StrPath | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    kv_dim: int | None = None,
    rank: int = 8,
    dtype: str = "bf16",
    like: StrPath | None = None,
    price_gb: float = 0.023,
    price_requests: float = 0.0,
    requests: int = 0,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Plan:
    """Project what a fleet would take in every form, by the paper's formulas; no files are needed.

    Args:
        users: Number of users.
        tasks: Adapters of each user.
        model: A model by name (``"llama-2-7b"``), or its folder, for its config.json; or give the sizes.
        layers: Number of layers.
        hidden: Hidden size.
        kv_dim: Width of k and of v; the hidden size where it is None.
        rank: Rank.
        dtype: Of the trained tensors.
        like: A typical adapter: coded in memory at 1, 5 and 10 %, so that the plan has bytes of LoRAs that take as many
            bits a number.
        price_gb: USD for a GB (10^9 bytes) and month.
        price_requests: USD for 1000 requests.
        requests: Requests a month.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without a model or its sizes.
    """
    return call("plan", locals(), reports.Plan)


def params(
    *,
    model: StrPath | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    kv_dim: int | None = None,
    rank: int | Sequence[int] = 8,
    lora_rank: int | None = None,
    dtype: str = "f32",
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Params:
    """Count what each method would train on a model, without its weights.

    Args:
        model: A model by name (``"llama-2-7b"``), or its folder, for its config.json; or give the sizes.
        layers: Number of layers.
        hidden: Hidden size.
        kv_dim: Width of k and of v; the hidden size where it is None.
        rank: One rank, or several.
        lora_rank: Compare with the LoRA of this rank; of the same where it is None.
        dtype: Of the trained tensors, for their bytes.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without a model or its sizes.
    """
    return call("params", locals(), reports.Params)


def inspect(
    path: StrPath,
    *,
    tensors: bool = False,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Show what a ``.tl``, a PEFT directory or a checkpoint holds; what is refused is told under ``refused``.

    Args:
        path: A ``.tl``, a PEFT directory, a safetensors file or a model directory.
        tensors: List every tensor.
        base: The base model, where a VeRA directory needs it.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Returns:
        What ``tlkit inspect --json`` prints; its keys depend on ``kind``.

    Raises:
        Error: ``.kind`` is ``"io"``, ``"malformed"``, ``"integrity"``, ``"unsupported"``.
    """
    return call("inspect", locals(), dict[str, Any])


def pack(
    file: StrPath,
    output: StrPath,
    *,
    thin: bool = False,
    zstd: bool = False,
    exact: bool = False,
    dtype: str | None = None,
    error: float | None = None,
    max_bytes: int | str | None = None,
    bits: float | None = None,
    calibrate: StrPath | None = None,
    model: StrPath | None = None,
    valid: StrPath | None = None,
    seq_len: int = 512,
    limit: int | None = None,
    device: str = "cpu",
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> convert.Packed:
    """Rewrite a ``.tl`` fat, thin or compressed; the root stays, unless ``dtype`` rounds or the factors are coded.

    Args:
        file: The ``.tl`` to read; with ``error``, ``max_bytes`` or ``bits``, also a PEFT directory.
        output: The ``.tl`` to write.
        thin: Leave out seeded tensors, and with ``blobs`` every A and B.
        zstd: Compress tensors; the root stays the same.
        exact: Compress tensors as exactly as ``zstd`` does, and further: their exponents are coded.
        dtype: Store the factors as ``"f32"``, ``"bf16"``, ``"f16"`` or ``"int8"``: another adapter, with another root.
        error: Code the factors in the fewest bytes with which all updates together have at most this relative error.
        max_bytes: Code them at the smallest error with a file of at most so many bytes; also ``"64k"``, ``"8M"``.
        bits: Code them at the smallest error within so many bits for each of their numbers.
        calibrate: JSONL with texts: the error of what is coded is that of the outputs on them, not of the updates.
        model: The base model to run on texts.
        valid: Texts to compare on; every tenth of ``calibrate`` where there is none.
        seq_len: Most tokens of a text.
        limit: Most texts to read of each file.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        blobs: Where left-out tensors are read from, and with ``thin`` written to.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` is ``"usage"``, ``"io"``, ``"malformed"``, ``"integrity"``, ``"unsupported"``.
    """
    return call("pack", locals(), convert.Packed)
