"""Adapters of a store in vLLM: a request for ``model="user/task"`` is answered with that adapter.

vLLM finds the plug-in where ``tlkit`` is installed beside it (entry point group ``vllm.general_plugins``), and uses it
where ``TLKIT_STORE`` names a store. It is set up by the environment of the server:

``TLKIT_STORE``
    The store: a folder, ``s3://bucket/prefix``, ``gs://…``, ``az://…``.
``TLKIT_CACHE``
    Folder for adapters as vLLM reads them, one for each root; by default ``~/.cache/tlkit/vllm``.
``TLKIT_KEYS``
    Ed25519 public keys, with ``:`` between them: versions that none of them signed are refused.
``TLKIT_CHECK``
    ``weights`` (default) compares a fingerprint that an adapter carries with the base's weights, once for each root;
    ``shapes`` compares names and shapes alone; ``off`` nothing. A base that is no folder on disk is not compared.

Names are ``user/task`` (the last version), ``user/task@N`` and ``user/task:tag``. vLLM keeps what a name was resolved
to: a new version is served under its own name ``user/task@N``, or after ``POST /v1/unload_lora_adapter`` for the old
name. This module imports vLLM only when the plug-in is registered or a name is resolved.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tlkit._error import Error
from tlkit._store import Store
from tlkit._verify import check

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from tlkit.reports.store import Got

__all__ = ["NotServed", "Resolver", "register"]

Check = Literal["weights", "shapes", "off"]

# vLLM shows loggers below its own alone.
_log = logging.getLogger("vllm.tlkit")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*([@:][a-z0-9][a-z0-9._-]*)?", re.ASCII)
# No such adapter, or no name of one.
_NOT_THERE = ("TL0703", "TL0704")
_FILES = ("adapter_config.json", "adapter_model.safetensors")


class NotServed(RuntimeError):
    """An adapter that is in the store and cannot be served. vLLM sends the text to the client: it names no path."""


class Resolver:
    """Brings adapters from a store into folders that vLLM reads. It has the methods of vLLM's ``LoRAResolver``.

    Attributes:
        store: The store.
        cache: The folder of adapters, one for each root and form; may be shared by any number of processes.
        keys: Public keys, of which one must have signed a version.
        check: What is compared with the base.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        cache: str | os.PathLike[str],
        *,
        keys: Sequence[str | os.PathLike[str]] = (),
        check: Check = "weights",
    ) -> None:
        """Name a store and make the cache's folder; the store is not read.

        Raises:
            ValueError: ``check`` is none of the three.
        """
        if check not in ("weights", "shapes", "off"):
            raise ValueError(f"TLKIT_CHECK is {check!r}: weights, shapes or off")
        self.store = Store(store)
        self.cache = Path(cache)
        self.keys = tuple(keys)
        self.check: Check = check
        self.cache.mkdir(parents=True, exist_ok=True)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Bring an adapter.

        Args:
            base_model_name: What vLLM was told to serve (``--model``).
            lora_name: ``user/task``, ``user/task@N`` or ``user/task:tag``.

        Returns:
            The request with the adapter's folder, or None where the store has no such adapter.

        Raises:
            NotServed: It has one, and it cannot be served: it does not fit the base, is damaged or not signed, or the
                store cannot be read. The server's log says more.
        """
        if _NAME.fullmatch(lora_name) is None:
            return None
        try:
            folder = await asyncio.to_thread(self.bring, base_model_name, lora_name)
        except Error as error:
            if error.code in _NOT_THERE:
                return None
            _log.error("tlkit: %s: %s", lora_name, error)
            raise NotServed(f"adapter {lora_name} cannot be served ({error.code})") from None
        except NotServed:
            raise
        except Exception:
            _log.exception("tlkit: %s", lora_name)
            raise NotServed(f"adapter {lora_name} cannot be served") from None
        from vllm.lora.request import LoRARequest

        # vLLM gives the request a number of its own.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))

    def bring(self, base: str, name: str) -> Path:
        """Bring an adapter into the cache, and give its folder.

        Args:
            base: The served model; a folder on disk is compared with the adapter.
            name: ``user/task``, ``user/task@N`` or ``user/task:tag``.

        Raises:
            Error: Those of :meth:`tlkit.Store.get`.
            NotServed: It does not fit the base.
        """
        model = base if any(Path(base).glob("*.safetensors")) else None
        # The portable form is exact, and all ranks and scales of an adapter are one to vLLM.
        staging = Path(tempfile.mkdtemp(prefix=".get-", dir=self.cache))
        try:
            made = staging / "peft"
            got = self._get(name, made, model)
            folder = self.cache / f"{got['root'].replace(':', '-')}-{self._form(made)}"
            if not _is_whole(folder):
                self._fits(model, made, name, got)
                # Another process may have been faster; a folder that is there is whole.
                with contextlib.suppress(OSError):
                    made.rename(folder)
                if not _is_whole(folder):
                    raise NotServed(f"adapter {name} cannot be kept")
            return folder
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _get(self, name: str, made: Path, model: str | None) -> Got:
        """Write the adapter's folder."""
        try:
            return self.store.get(name, made, portable=True, base=model, require_signature=self.keys)
        except Error as error:
            # Saved modules and the like: vLLM takes those of classifiers in the faithful form.
            if error.code != "TL0420":
                raise
            return self.store.get(name, made, peft=True, base=model, require_signature=self.keys)

    def _form(self, made: Path) -> str:
        """Tell folders of one root apart that were checked otherwise."""
        config = (made / _FILES[0]).read_bytes()
        return hashlib.sha256(config + self.check.encode()).hexdigest()[:16]

    def _fits(self, model: str | None, made: Path, name: str, got: Got) -> None:
        """Refuse an adapter that does not fit; vLLM itself compares no fingerprint, and no shape to a purpose."""
        if model is None or self.check == "off":
            return
        source = made
        if self.check == "weights":
            # A PEFT directory has no place for a fingerprint.
            source = made.parent / "adapter.tl"
            version = f"{got['adapter']}@{got['version']}"
            self.store.get(version, source, require_signature=self.keys)
        fit = check(model, source, shapes_only=self.check == "shapes")
        if not fit["fits"]:
            problem = fit["problem"] or {"code": "", "message": ""}
            _log.error("tlkit: %s does not fit the base: %s", name, problem)
            raise NotServed(f"adapter {name} does not fit the served model ({problem['code']})")


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def register() -> None:
    """Register the resolver with vLLM where ``TLKIT_STORE`` names a store; vLLM calls this at its start."""
    url = os.environ.get("TLKIT_STORE")
    if not url:
        return
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if "tlkit" in LoRAResolverRegistry.get_supported_resolvers():
        return

    class StoreResolver(Resolver, LoRAResolver):  # type: ignore[misc, unused-ignore]
        """The same as one of vLLM's own."""

    cache = os.environ.get("TLKIT_CACHE") or Path.home() / ".cache" / "tlkit" / "vllm"
    keys = [key for key in os.environ.get("TLKIT_KEYS", "").split(":") if key]
    how = os.environ.get("TLKIT_CHECK", "weights")
    resolver = StoreResolver(url, cache, keys=keys, check=how)  # type: ignore[arg-type]
    LoRAResolverRegistry.register_resolver("tlkit", resolver)
    # Nothing of a URL but its scheme: what follows may be a secret.
    _log.info("tlkit: adapters come from a store (%s)", url.split("://", 1)[0] if "://" in url else "a folder")
