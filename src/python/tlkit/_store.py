"""Adapters of many users and tasks in a folder, S3, Google Cloud Storage or Azure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from tlkit._call import Progress, StrPath, call
from tlkit.reports import store as reports


class Removed(TypedDict):
    """What was removed."""

    removed: str
    """``USER/TASK``."""


# `list` is a method below.
_Listed: TypeAlias = list[reports.Listed]
_Versions: TypeAlias = list[reports.Version]
_Published: TypeAlias = list[reports.Published]
_Removed: TypeAlias = Removed
_Changes: TypeAlias = list[reports.Change]


class Store:
    """The store at an address; every call opens it anew, so that any number of processes may use it at a time.

    Attributes:
        url: A folder, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``. Credentials, region
            and endpoint come from the environment, never from the URL.
    """

    __slots__ = ("url",)
    url: str

    def __init__(self, url: StrPath) -> None:
        """Name a store; nothing is read."""
        self.url = os.fspath(url)

    @classmethod
    def init(cls, url: StrPath, *, grace: int | str = "24h") -> Store:
        """Make a store.

        Args:
            url: Where; a folder is made.
            grace: How long what nothing names is kept: ``"90m"``, ``"24h"``, ``"7d"``. Uploads take less than half.

        Raises:
            Error: ``.kind`` ``"io"`` where there is one, or it cannot be made.
        """
        given = {"url": os.fspath(url), "grace": f"{grace}s" if isinstance(grace, int) else grace}
        call("store init", given, reports.StoreInfo)
        return cls(url)

    def __repr__(self) -> str:
        """Say where it is."""
        return f"tlkit.Store({self.url!r})"

    def put(
        self,
        name: str,
        adapter: StrPath,
        *,
        base: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
        strict: bool = False,
        code: float | None = None,
        sign: StrPath | None = None,
        blobs: StrPath | None = None,
    ) -> reports.Put:
        """Put an adapter, as a new version; one that is the last version already is not stored again.

        Args:
            name: ``USER/TASK``.
            adapter: A ``.tl``, or a PEFT directory, which is converted.
            base: The base model of a PEFT directory.
            rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
            strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted; needs
                ``base``.
            code: Code its numbers at this error of all updates together: ``0.05``. What is stored is the coded adapter.
            sign: Sign adapter, name and version with this Ed25519 key (PKCS#8 PEM).
            blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.

        Raises:
            Error: ``.kind`` ``"limit"`` beyond the quota; ``"unsupported"``, ``"malformed"``, ``"io"``.
        """
        return call("store put", locals(), reports.Put, url=self.url)

    def get(
        self,
        name: str,
        output: StrPath,
        *,
        thin: bool = False,
        blobs: StrPath | None = None,
        code: float | None = None,
        zstd: bool = False,
        peft: bool = False,
        gguf: bool = False,
        dtype: str = "f32",
        portable: bool = False,
        base_name: str | None = None,
        base: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
        require_signature: Sequence[StrPath] = (),
        allow_root_signature: bool = False,
        force: bool = False,
    ) -> reports.Got:
        """Write an adapter as a ``.tl``, a PEFT directory or a GGUF file, every byte verified.

        Args:
            name: ``USER/TASK``; ``USER/TASK@N`` or ``USER/TASK:TAG`` for another version than the last.
            output: The file or folder to write, whole or not at all.
            thin: Leave out seeded tensors and published blobs.
            blobs: With ``thin``, where published blobs are written.
            code: Code its numbers at this error of all updates together: ``0.05``. What is written has its own root.
            zstd: Compress tensors; the root stays the same.
            peft: Write a PEFT directory.
            gguf: Write llama.cpp's adapter for ``base``, as ``convert.tied_to_gguf`` does.
            dtype: Element type of the factors in a GGUF file: ``"f32"``, ``"f16"`` or ``"bf16"``.
            portable: Write the PEFT form that PEFT, vLLM, SGLang and llama.cpp load alike.
            base_name: What the PEFT config calls the base: the name that the server has for it.
            base: The base model of the PEFT form: names targets by suffix only where that is exact, and gives zeros for
                what SGLang does not do without. Of a GGUF file's, ``config.json`` is needed.
            rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
            require_signature: Refuse a version that none of these Ed25519 public keys signed.
            allow_root_signature: Take signatures of the root alone too.
            force: Replace an existing output; links, devices and inputs never are.

        Raises:
            Error: ``.kind`` ``"io"`` where there is none of that name; ``"integrity"``, ``"malformed"``.
        """
        return call("store get", locals(), reports.Got, url=self.url)

    def list(
        self,
        user: str | None = None,
    ) -> _Listed:
        """List adapters.

        Args:
            user: Only of this user.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        return call("store list", locals(), _Listed, url=self.url)

    def history(
        self,
        name: str,
    ) -> _Versions:
        """List the versions of an adapter, with their tags.

        Args:
            name: ``USER/TASK``.

        Raises:
            Error: ``.kind`` ``"io"`` where there is none of that name; ``"integrity"``, ``"malformed"``.
        """
        return call("store history", locals(), _Versions, url=self.url)

    def tag(
        self,
        name: str,
        tag: str,
        *,
        delete: bool = False,
    ) -> reports.Tagged:
        """Let a tag name a version; one that exists moves.

        Args:
            name: ``USER/TASK``; ``USER/TASK@N`` or ``USER/TASK:TAG`` for another version than the last.
            tag: The tag.
            delete: Take the tag away.

        Raises:
            Error: ``.kind`` ``"io"`` where there is none of that name; ``"integrity"``, ``"malformed"``.
        """
        return call("store tag", locals(), reports.Tagged, url=self.url)

    def rm(
        self,
        name: str,
    ) -> _Removed:
        """Remove an adapter; its versions stay until garbage collection.

        Args:
            name: ``USER/TASK``.

        Raises:
            Error: ``.kind`` ``"io"`` where there is none of that name; ``"integrity"``, ``"malformed"``.
        """
        return call("store rm", locals(), _Removed, url=self.url)

    def stat(
        self,
        user: str | None = None,
    ) -> reports.StoreStat:
        """Count adapters and bytes. With a user, the keys are those of ``TenantStat``.

        Args:
            user: Only of this user.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        return call("store stat", locals(), reports.StoreStat, url=self.url)

    def fsck(
        self,
        user: str | None = None,
        *,
        repair: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> reports.Fsck:
        """Read everything, and compare it with its digests.

        Args:
            user: Only of this user.
            repair: Restore what follows from other bytes, and set damaged records aside.
            dry_run: Show what ``repair`` would do.
            progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.

        Raises:
            Error: ``.kind`` ``"integrity"`` where something is damaged; ``.report`` says what.
        """
        return call("store fsck", locals(), reports.Fsck, url=self.url)

    def gc(
        self,
        user: str | None = None,
        *,
        keep: int | None = None,
        dry_run: bool = False,
    ) -> reports.Collected:
        """Delete what nothing names any more, after the grace period.

        Args:
            user: Only of this user.
            keep: Keep this many versions of each adapter, and those with a tag; all where it is None.
            dry_run: Show what would be done, and write nothing.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        return call("store gc", locals(), reports.Collected, url=self.url)

    def publish(
        self,
        adapters: StrPath | Sequence[StrPath],
        *,
        blobs: StrPath | None = None,
    ) -> _Published:
        """Let all users share the A and B of adapters.

        Args:
            adapters: Each a ``.tl`` or a PEFT directory.
            blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        return call("store publish", locals(), _Published, url=self.url)

    def quota(
        self,
        user: str | None = None,
        limit: int | str | None = None,
        *,
        default: int | str | None = None,
    ) -> dict[str, Any]:
        """Show or set how many bytes users may have: ``Quota`` of a user, else ``Quotas``.

        Args:
            user: Of which user.
            limit: The quota to set: bytes, ``"2GB"``, or ``"none"``.
            default: The quota to set for users that have none of their own.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        return call("store quota", locals(), dict[str, Any], url=self.url)

    def export(
        self,
        output: StrPath,
        *,
        user: str | None = None,
        thin: bool = False,
        code: float | None = None,
        gguf: bool = False,
        dtype: str = "f32",
        peft: bool = False,
        portable: bool = False,
        base_name: str | None = None,
        base: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
        versions: bool = False,
        require_signature: Sequence[StrPath] = (),
        force: bool = False,
        progress: Progress | None = None,
    ) -> reports.Exported | reports.Served:
        """Write the last version of every adapter into a folder.

        With ``peft`` that is one for servers, which is brought up to date: ``USER/TASK`` leads to a PEFT directory of
        the last version, what the store has no more goes, and the report is a ``Served``.

        Args:
            output: The folder to write ``USER/TASK.tl`` or ``.gguf`` into.
            user: Only of this user.
            thin: Leave out seeded tensors, and keep published blobs once, in ``blobs``.
            code: Code each adapter's numbers at this error of all its updates together: ``0.05``.
            gguf: Write llama.cpp's adapters for ``base``.
            dtype: Element type of the factors in GGUF files: ``"f32"``, ``"f16"`` or ``"bf16"``.
            peft: Write PEFT directories for servers.
            portable: Write the PEFT form that PEFT, vLLM, SGLang and llama.cpp load alike.
            base_name: What the PEFT configs call the base: the name that the server has for it.
            base: The base model of the PEFT form, as for :meth:`get`.
            rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
            versions: With ``peft``, ``USER/TASK@N`` too, which names the version.
            require_signature: With ``peft``, leave out versions that none of these Ed25519 public keys signed.
            force: Replace an existing output; links, devices and inputs never are.
            progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"``, ``"integrity"``.
        """
        if not gguf and (peft or portable or base_name is not None or base is not None):
            return call("store export", locals(), reports.Served, url=self.url)
        return call("store export", locals(), reports.Exported, url=self.url)

    def import_(
        self,
        paths: StrPath | Sequence[StrPath],
        *,
        template: str | None = None,
        owners: StrPath | None = None,
        code: float | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> reports.Imported:
        """Put every adapter below some folders, each under the name that its path tells.

        One that is the last version of its name already is not stored again, so a stopped run may be started again.

        Args:
            paths: Folders with adapters, or ``.tl`` files.
            template: Where user and task stand in a path: ``"{user}/{task}"``; or give ``owners``.
            owners: CSV with the columns path, user and task.
            code: Code each adapter's numbers at this error of all its updates together: ``0.05``.
            dry_run: Read and code everything, and put nothing.
            progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.

        Raises:
            Error: Where an adapter could not be put, with the code of the first, after all others were; ``.kind``
                ``"usage"``, ``"io"``.
        """
        return call("store import", locals(), reports.Imported, url=self.url)

    def sync(
        self,
        target: StrPath,
        *,
        user: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> reports.Synced:
        """Bring over to another store what it lacks of this one.

        Versions and removals keep their numbers, and signatures what they bind; tags and published blobs come along.
        Nothing goes from the target. A stopped run may be started again.

        Args:
            target: The address of the store that is brought up to date.
            user: Only of this user.
            dry_run: Say what would be copied, and copy nothing.
            progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.

        Raises:
            Error: Where an adapter could not be copied, with the code of the first, after all others were:
                ``.kind`` ``"incompatible"`` where the target has another history of it; ``"io"``, ``"integrity"``.
        """
        return call("store sync", locals(), reports.Synced, url=self.url)

    def watch(
        self,
        user: str | None = None,
        *,
        since: StrPath | None = None,
    ) -> _Changes:
        """Look once at what changed; a loop of such calls is what the command does.

        Append every line to a file, as JSON, and give the file as ``since`` the next time: nothing is lost, and
        nothing told twice. Without ``since`` the lines say what is known now.

        Args:
            user: Only of this user.
            since: A file with the lines of earlier calls; an empty one for everything from the beginning.

        Raises:
            Error: ``.kind`` ``"malformed"`` where the file has other lines; ``"io"``.
        """
        return call("store watch", locals(), list[reports.Change], url=self.url, once=True)

    def push(
        self,
        name: str,
        artifact: str,
        *,
        require_signature: Sequence[StrPath] = (),
        allow_root_signature: bool = False,
    ) -> reports.Pushed:
        """Push an adapter to a registry, as a ModelPack artefact; credentials are those of ``docker login``.

        Args:
            name: ``USER/TASK``; ``USER/TASK@N`` or ``USER/TASK:TAG`` for another version than the last.
            artifact: ``oci://HOST[:PORT]/REPOSITORY[:TAG]``.
            require_signature: Refuse a version that none of these Ed25519 public keys signed.
            allow_root_signature: Take signatures of the root alone too.

        Raises:
            Error: ``.kind`` ``"io"`` where the registry refuses, ``"usage"``, ``"integrity"``.
        """
        return call("store push", locals(), reports.Pushed, url=self.url)

    def pull(
        self,
        name: str,
        artifact: str,
        *,
        base: StrPath | None = None,
        rename: Mapping[str, str] | None = None,
        strict: bool = False,
        sign: StrPath | None = None,
    ) -> reports.Pulled:
        """Pull an adapter from a registry, as a new version.

        Args:
            name: ``USER/TASK``.
            artifact: ``oci://HOST[:PORT]/REPOSITORY``, with ``:TAG`` or ``@sha256:DIGEST``.
            base: The base model of a PEFT directory.
            rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
            strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted; needs
                ``base``.
            sign: Sign adapter, name and version with this Ed25519 key (PKCS#8 PEM).

        Raises:
            Error: ``.kind`` ``"io"``, ``"malformed"`` where it is no adapter, ``"integrity"``, ``"limit"``.
        """
        return call("store pull", locals(), reports.Pulled, url=self.url)
