"""Adapters as objects, their tensors as NumPy arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tlkit import _native
from tlkit._error import Error

StrPath: TypeAlias = str | os.PathLike[str]
Tensor: TypeAlias = NDArray[Any]

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

_SAVED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint16": "BF16", "int8": "I8"}


def _array(native: _native.Array) -> Tensor:
    """The bytes of Rust as an array, without a copy; bfloat16 where ml_dtypes is installed, else uint16."""
    array = np.asarray(native)
    return array.view(_bfloat16) if native.dtype == "BF16" and _bfloat16 is not None else array


def _part(name: str, array: Tensor) -> tuple[str, str, tuple[int, ...], bytes]:
    dtype = _SAVED.get(array.dtype.name)
    if dtype is None:
        raise Error("TL0006", "usage", f"{array.dtype} is not one of float32, float16, bfloat16, int8", None, name)
    array = np.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return name, dtype, array.shape, little.tobytes()


def _renames(rename: Mapping[str, str] | None) -> list[tuple[str, str]]:
    return list((rename or {}).items())


def _path(path: StrPath | None) -> str | None:
    return None if path is None else os.fspath(path)


class Adapter:
    """An adapter: what is added to, or replaced in, the weights of a base model.

    ``ΔW = s · diag(v) · B · diag(u) · A`` for each module, with A ``[rank, in]`` and B ``[out, rank]`` shared by all
    modules of a tie group. Open one with :meth:`open`, or make one with :meth:`from_parts`.
    """

    __slots__ = ("_inner",)
    _inner: _native.Adapter

    def __init__(self) -> None:
        """Refused: use ``Adapter.open`` or ``Adapter.from_parts``."""
        raise TypeError("use Adapter.open(path) or Adapter.from_parts(manifest, tensors)")

    @classmethod
    def _of(cls, native: _native.Adapter) -> Adapter:
        adapter = object.__new__(cls)
        adapter._inner = native
        return adapter

    @classmethod
    def open(
        cls,
        path: StrPath,
        *,
        base: StrPath | None = None,
        blobs: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> Adapter:
        """Open a ``.tl``, or an adapter of PEFT, MLX or NeMo; every digest of a ``.tl`` is verified.

        Args:
            path: A ``.tl`` or ``.nemo``, or a folder with ``adapter_config.json`` and its weights. No pickle is
                executed.
            base: The base model, where a VeRA directory leaves its shapes open, or another tool its names; only its
                headers are read.
            blobs: The folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
            rename: Leading parts of module names and what they are in the base: ``{"backbone": "model"}``.

        Raises:
            Error: ``.kind`` is ``"io"``, ``"malformed"``, ``"integrity"``, ``"limit"`` or ``"unsupported"``.
        """
        return cls._of(_native.Adapter.open(os.fspath(path), _path(base), _path(blobs), _renames(rename)))

    @classmethod
    def from_parts(cls, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
        """Make an adapter of a manifest (``spec/tl-v1.md`` §5) and the tensors that it names.

        Args:
            manifest: ``groups``, and ``base``, ``extras``, ``provenance``, ``task`` where they apply. Names of tensors
                may be any; ``alpha`` any number. ``tensors`` of it is needed only for a ``seed`` or ``scales``; a
                tensor that has ``seed``, ``dtype`` and ``shape`` there need not be given. Digests, method, order and
                canonical names are made anew.
            tensors: float32, float16, bfloat16 (of ml_dtypes, or its bits as uint16), or int8 with scales. What was
                coded is given as the float32 numbers that it stands for: the updates are the same, the root is not.

        Raises:
            Error: ``"TL0201"`` and its like for what the format does not allow; ``"TL0209"`` for an array that nothing
                uses, ``"TL0208"`` for a name without one.
        """
        parts = [_part(name, np.asarray(array)) for name, array in tensors.items()]
        return cls._of(_native.from_parts(json.dumps(dict(manifest)), parts))

    @property
    def root(self) -> str:
        """The identity, ``"sha256:…"``: of a ``.tl`` its root, of a PEFT directory the digest of config and tensors."""
        return self._inner.root

    @property
    def source(self) -> str:
        """Where it came from: ``".tl"``, or PEFT's ``"lora"``, ``"dora"`` or ``"vera"``."""
        return self._inner.source

    @property
    def method(self) -> str:
        """``"lora"``, ``"vera"``, ``"tl1"`` … ``"tl6"``, or ``"custom"``."""
        return self._inner.method

    @property
    def rank(self) -> int:
        """The rank; the largest where tie groups differ."""
        return self._inner.rank

    @property
    def targets(self) -> list[str]:
        """The adapted modules, ``{}`` in place of the layer: ``"model.layers.{}.self_attn.q_proj"``."""
        return self._inner.targets

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Every adapted module with the shape ``(out, in)`` of its update; an expert is ``"name[3]"``."""
        return dict(self._inner.modules)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors, each distinct one once."""
        return self._inner.parameters[0]

    @property
    def trained_parameters(self) -> int:
        """Those of them that were trained."""
        return self._inner.parameters[1]

    @property
    def notes(self) -> list[str]:
        """What was ignored, guessed or approximated when it was opened."""
        return list(self._inner.notes)

    @property
    def manifest(self) -> dict[str, Any]:
        """The canonical manifest; with :meth:`tensors` all that :meth:`from_parts` needs.

        Raises:
            Error: ``"TL0401"`` for DoRA, which a ``.tl`` cannot say.
        """
        manifest: dict[str, Any] = json.loads(self._inner.manifest())
        return manifest

    def tensors(self) -> dict[str, Tensor]:
        """The distinct tensors by the names that the manifest has for them (``"g0.A"``), read-only.

        Each was read and verified once, when the adapter was opened; arrays lie in that memory and copy nothing.
        bfloat16 is of ``ml_dtypes`` where that is installed, else its bits as uint16.

        Raises:
            Error: as :attr:`manifest`.
        """
        return {name: _array(array) for name, array in self._inner.tensors()}

    def delta(self, module: str) -> NDArray[np.float32]:
        """The update of one module, float32 ``[out, in]``, by the arithmetic of a merge.

        Args:
            module: A name of :attr:`modules`, with or without ``.weight``.

        Raises:
            Error: ``.kind`` ``"usage"`` for another name; ``"TL0401"`` for DoRA, whose update depends on the base.
        """
        return _array(self._inner.delta(module))

    def save(self, path: StrPath, *, zstd: bool = False, force: bool = False) -> str:
        """Write a ``.tl`` with everything inside, whole or not at all, and give its root.

        A PEFT directory is written as it is; :func:`tlkit.convert.peft_to_tied` finds what is tied in it.

        Args:
            path: The file.
            zstd: Compress the tensors; the root stays the same.
            force: Replace an existing file.

        Raises:
            Error: ``.kind`` ``"io"`` where it exists or cannot be written; ``"TL0401"`` for DoRA.
        """
        return self._inner.save(os.fspath(path), zstd, force)[0]

    def to_peft(
        self,
        output: StrPath,
        *,
        portable: bool = False,
        as_: Literal["lora", "vera"] = "lora",
        dtype: str = "f32",
        base: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> None:
        """Write a PEFT directory, whole or not at all, which merges to the same bytes.

        Args:
            output: The folder.
            portable: The form that PEFT, vLLM and llama.cpp load alike: alpha = r, one rank, the scale in B.
            as_: ``"vera"`` where one A and one B serve every module.
            dtype: Of the factors: ``"f32"``, ``"f16"``, ``"bf16"``.
            base: The base model, so that modules are named by suffix only where that is exact.
            rename: Leading parts of module names, and what they are in the base.
            force: Replace a PEFT directory without other files.

        Raises:
            Error: ``.kind`` ``"unsupported"`` where that form cannot say it; ``"io"``; ``"TL0401"`` for DoRA.
        """
        if portable and as_ != "lora":
            raise Error("TL0006", "usage", "portable is a form of LoRA, and as_ asks for another")
        form = "lora-portable" if portable else as_
        of = None if base is None else (os.fspath(base), _renames(rename))
        self._inner.to_peft(os.fspath(output), form, dtype, of, force)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as its parts."""
        return Adapter._of_parts, (self.manifest, self.tensors())

    @staticmethod
    def _of_parts(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
        return Adapter.from_parts(manifest, tensors)

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<tlkit.Adapter {self.method} rank={self.rank} modules={len(self.modules)} root={self.root[:19]}>"


def seeded(key: bytes | str, step: float, shape: Sequence[int]) -> NDArray[np.float32]:
    """The values of a seed, as a ``.tl`` has them (``spec/tl-v1.md`` §7), bit for bit; float32 of ``shape``, read-only.

    Value n is ``float32((w >> 8) - 2**23) * step``, w the n-th word of ChaCha20's key stream.

    Args:
        key: 32 bytes, or their 64 hex digits.
        step: The one factor, a positive float32: ``bound / 2**23`` for uniform numbers below ``bound``.
        shape: The extents, slowest first.

    Raises:
        Error: ``"TL0214"`` and its like where ``step`` is not usable or the shape is too large.
    """
    raw = bytes.fromhex(key) if isinstance(key, str) else bytes(key)
    return _array(_native.seeded(raw, step, tuple(shape)))
