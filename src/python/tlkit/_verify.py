"""Proofs: of a file, of two adapters, of a merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tlkit._call import Progress, StrPath, call
from tlkit._merge import Method
from tlkit.reports import verify as reports


def verify_file(
    file: StrPath,
    *,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.File:
    """Check every rule and digest of a ``.tl``.

    Args:
        file: The ``.tl``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"malformed"`` or ``"integrity"`` where one does not hold.
    """
    return call("verify file", locals(), reports.File)


def verify_adapters(
    one: StrPath,
    two: StrPath,
    *,
    tolerance: float = 1e-6,
    base: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Adapters:
    """Compare what two adapters do to each module. ``equal`` of the report is the answer; a difference raises nothing.

    Args:
        one: A ``.tl`` or a PEFT directory.
        two: Another one.
        tolerance: Largest relative error (Frobenius norm, of any module) that counts as equal.
        base: The base model, where a VeRA directory needs it.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted; needs ``base``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` is ``"io"``, ``"malformed"``, ``"integrity"``, ``"unsupported"``.
    """
    return call("verify adapters", locals(), reports.Adapters)


def verify_merged(
    base: StrPath,
    adapter: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
    merged: StrPath,
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
    weights_only: bool = False,
    max_ulp: int = 0,
    tokenizer: Literal["base", "adapter"] = "base",
    tied: Literal["refuse", "untie", "shared"] | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    device: str = "cpu",
    device_memory: int | str | None = None,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Merged:
    """Recompute a merged model bit by bit, and name the rounding it obeys. ``equal`` of the report is the answer; a
    difference raises nothing.

    Args:
        base: The base model: a safetensors file or a model directory.
        adapter: One adapter, several, or several with weights: ``{"a.tl": 0.5}``. Each a ``.tl`` or a PEFT directory.
        merged: The merged model; of a folder every file is compared with what a merge writes.
        method: As in :func:`merge`.
        density: As in :func:`merge`.
        seed: As in :func:`merge`.
        rescale: As in :func:`merge`.
        sign_method: As in :func:`merge`.
        normalize: As in :func:`merge`.
        lambda_: As in :func:`merge`.
        gamma: As in :func:`merge`.
        epsilon: As in :func:`merge`.
        weights_only: Compare the tensors alone: for models that another tool merged.
        max_ulp: Largest distance in units in the last place that counts as equal.
        tokenizer: As in :func:`merge`.
        tied: As in :func:`merge`.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        device_memory: Most device memory to take: bytes, or text such as ``"2GB"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` is ``"io"``, ``"malformed"``, ``"integrity"``, ``"unsupported"``, ``"incompatible"``.
    """
    return call("verify merged", locals(), reports.Merged)


def verify_logits(
    base: StrPath,
    adapter: StrPath,
    merged: StrPath,
    *,
    data: StrPath | None = None,
    text: str | None = None,
    limit: int | None = None,
    seq_len: int = 512,
    max_diff: float | None = None,
    max_kl: float | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    device: str = "cpu",
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Logits:
    """Compare what a merged model and base plus adapter predict. ``equal`` of the report is the answer; a difference
    raises nothing.

    Args:
        base: The folder of the base.
        adapter: The adapter that was merged.
        merged: The merged model's folder.
        data: Texts to compare on, JSONL as for training.
        text: One text to compare on.
        limit: Most texts of the file.
        seq_len: Most tokens of a text; memory grows with it.
        max_diff: Largest difference of logits that counts as equal; a share of the largest logit by the merged model's
            dtype where it is None.
        max_kl: Largest mean KL divergence, in nats per token, that counts as equal.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` is ``"io"``, ``"malformed"``, ``"integrity"``, ``"unsupported"``, ``"incompatible"``.
    """
    return call("verify logits", locals(), reports.Logits)


def check(
    base: StrPath,
    adapter: StrPath,
    *,
    shapes_only: bool = False,
    strict: bool = False,
    rename: Mapping[str, str] | None = None,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Fit:
    """Say whether an adapter fits a base. ``fits`` of the report is the answer; that it does not raises nothing.

    Args:
        base: The base model: a safetensors file or a folder.
        adapter: A ``.tl`` or a PEFT directory.
        shapes_only: Look at names and shapes alone; do not read the base to compare its fingerprint.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        rename: Leading parts of module names, and what they are in the base.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"malformed"``, ``"integrity"``, ``"io"``.
    """
    return call("check", locals(), reports.Fit)


def sign(
    path: StrPath,
    key: StrPath,
    output: StrPath,
    *,
    name: str | None = None,
    force: bool = False,
) -> reports.Signed:
    """Sign a file, or all files in a folder but what git has there, as OpenSSF Model Signing does.

    Args:
        path: The file or folder.
        key: The private key: Ed25519 or P-256, in PEM. Of P-256, the package ``model_signing`` verifies it too.
        output: The signature to write.
        name: Bind the adapter to this ``USER/TASK`` or ``USER/TASK@N`` of a store too.
        force: Replace an existing signature.

    Raises:
        Error: ``.kind`` ``"malformed"`` where it is no key, ``"integrity"`` for links, ``"io"``.
    """
    return call("sign", locals(), reports.Signed)


def verify_signature(
    path: StrPath,
    signature: StrPath,
    key: StrPath | Sequence[StrPath],
    *,
    name: str | None = None,
) -> reports.Signature:
    """Compare a file or folder with what a key signed.

    Args:
        path: The file or folder.
        signature: The signature: a sigstore bundle, by :func:`sign` or ``model_signing``.
        key: A public key, Ed25519 or P-256, in PEM; of several one has to have signed.
        name: Ask for a signature that binds this name.

    Raises:
        Error: ``.kind`` ``"integrity"`` where another key signed, or the files are others; ``"malformed"``, ``"io"``.
    """
    return call("verify signature", locals(), reports.Signature)
