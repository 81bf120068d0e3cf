"""What a store tells."""

from typing import Literal, NotRequired, TypedDict


class StoreInfo(TypedDict):
    """A store that was made."""

    store: str

    version: int

    grace: int


class Coded(TypedDict):
    """What coding an adapter came to, where that was asked for and it was not coded already."""

    error: NotRequired[float]
    """Relative error of ΔW over all coded modules together, of the F32 values that a reader gets."""

    coded_bytes: NotRequired[int]
    """Bytes of the adapter as a ``.tl``, all of them."""

    bits: NotRequired[float]
    """Bits of that file for each number of the factors as they were."""

    bound: NotRequired[float]
    """Bits that no code of Gaussian components of these energies needs less than at this error."""


class Put(Coded):
    """What came of a put."""

    adapter: str
    """The tenant and task."""

    version: int
    """The number of the version."""

    root: str
    """The adapter's root."""

    unchanged: bool
    """Whether the last version was this adapter already, and nothing new was written."""

    bytes: int
    """Logical bytes."""

    written: int
    """Bytes of the objects that were written."""

    known_blobs: int
    """Blobs that the store had, the tenant's own or published."""

    mended: int
    """Blobs that were damaged or missing, and are good again."""


class Pulled(Put):
    """What came of a pull."""

    artifact: str
    """The artefact's address, by the digest of its manifest."""


class Pushed(TypedDict):
    """What was pushed."""

    adapter: str
    """``USER/TASK``."""

    version: int
    """The number of the version."""

    root: str
    """The adapter's root."""

    artifact: str
    """The artefact's address."""

    digest: str
    """SHA-256 of its manifest."""

    layers: int
    """Its layers."""

    sent: int
    """Blobs that were sent, the artefact's config among them."""

    known: int
    """Blobs that the registry had."""

    bytes_sent: int
    """Bytes that were sent."""


class Got(Coded):
    """What was written."""

    adapter: str
    """`USER/TASK`."""

    version: int
    """The number of the version."""

    root: str
    """The adapter's root: of a coded one, that of what was written."""

    bytes: int
    """Bytes written, without blobs."""

    left_out: int
    """Published blobs that the file leaves out."""

    blobs_written: int
    """How many of them were written into the folder of blobs."""

    notes: NotRequired[list[str]]
    """What whoever uses a PEFT directory should know, such as that some programs misread it."""

    output: str
    """The file or folder."""


class Version(TypedDict):
    """A version of an adapter."""

    version: int
    """Its number."""

    time: int
    """Seconds of Unix time when it was put."""

    root: str | None
    """The adapter's root; `None` where the adapter was removed with this version."""

    method: str | None
    """The method's name."""

    base: str | None
    """The base model's name."""

    bytes: int
    """Logical bytes."""

    record_bytes: int
    """Bytes of the record as an object, with the small tensors in it."""

    signed: bool
    """Whether it is signed."""

    signature: NotRequired[Literal["root", "version"]]
    """What its signature binds."""

    tags: list[str]
    """The tags that name it."""

    error: NotRequired[str]
    """What is wrong with its record, which says nothing else then."""


class Listed(TypedDict):
    """An adapter in a listing: its last version."""

    user: str
    """The tenant."""

    task: str
    """The task."""

    version: int
    """The number of the last version."""

    entry: Version | None
    """What the last version is; `None` where its record is damaged."""

    error: str | None
    """What is wrong with the record."""


class Tagged(TypedDict):
    """A tag, and the version that it names; None where it is gone."""

    adapter: str

    tag: str

    version: int | None
    """The version that the tag names now."""


class SkippedTenant(TypedDict):
    """A tenant that a walk over all of them left out."""

    user: str
    """The tenant."""

    code: str
    """The code of why."""

    message: str
    """Why."""

    damaged: bool
    """Whether something is damaged; else another writer was at work."""


class TenantStat(TypedDict):
    """Totals of a tenant."""

    user: str
    """The tenant."""

    adapters: int
    """Number of adapters."""

    versions: int
    """Number of versions."""

    logical_bytes: int
    """Logical bytes of the last versions."""

    kept_bytes: int
    """Logical bytes of all versions that were not collected: what the quota counts."""

    stored_bytes: int
    """Bytes of the tenant's objects."""

    quota: int | None
    """Most logical bytes, where there is a quota."""

    damaged: int
    """Records that could not be read."""


class StoreStat(TypedDict):
    """Totals of a store."""

    tenants: int
    """Number of tenants."""

    adapters: int
    """Number of adapters."""

    versions: int
    """Number of versions."""

    logical_bytes: int
    """Logical bytes of the last versions."""

    kept_bytes: int
    """Logical bytes of all versions that were not collected."""

    stored_bytes: int
    """Bytes of all objects."""

    public_blobs: int
    """Number of published blobs."""

    public_bytes: int
    """Their bytes as objects."""

    damaged: int
    """Records that could not be read."""

    by_tenant: list[TenantStat]
    """Each tenant."""

    skipped: NotRequired[list[SkippedTenant]]
    """Tenants that could not be counted."""


class StoreProblem(TypedDict):
    """Something that is not as it should be."""

    user: str | None
    """The tenant that it concerns; none for what is of no tenant."""

    adapter: str | None
    """The adapter, as `TASK@VERSION`."""

    key: str
    """The object."""

    code: str
    """The code of what is wrong with it."""

    message: str
    """What is wrong with it."""


class Repair(TypedDict):
    """One thing that a repair does."""

    key: str
    """The object that is wrong."""

    why: str
    """What is wrong with it."""

    action: str
    """What is done about it."""

    moved_to: str | None
    """Where the object is moved to."""


class Repaired(TypedDict):
    """What a repair did, or would do."""

    repairs: list[Repair]
    """What was done, in this order."""

    left: list[Repair]
    """What is wrong and was left, with what the operator can do about it."""


class Checked(TypedDict):
    """What a check found."""

    tenants: int
    """Number of tenants."""

    versions: int
    """Number of versions read."""

    blobs: int
    """Number of blobs read, published ones too."""

    bytes: int
    """Bytes of all objects read."""

    unnamed: int
    """Blobs that nothing names; no problem, since garbage collection deletes them."""

    set_aside: int
    """Objects that a repair set aside; no problem either."""

    problems: list[StoreProblem]
    """What is not as it should be, by tenant and adapter."""


class Collected(TypedDict):
    """What came of a collection."""

    versions: int
    """Versions that were deleted: of removed adapters, or beyond those to keep."""

    records: int
    """Old records of tags and of collections that were deleted."""

    blobs: int
    """Blobs that were deleted."""

    bytes: int
    """Bytes of the objects deleted."""

    condemned: int
    """Blobs that nothing names, condemned now or before; a collection after the grace period deletes them."""

    condemned_bytes: int
    """Their bytes."""

    temporary: int
    """Temporary files of killed writers that were deleted from a folder."""

    skipped: list[SkippedTenant]
    """Tenants whose garbage could not be told, and why; nothing of theirs was deleted."""


class Published(TypedDict):
    """A published blob."""

    digest: str
    """Its digest."""

    bytes: int
    """Its raw bytes."""

    known: bool
    """Whether it was there already."""


class Quotas(TypedDict):
    """The settings of a store, all of which its operator may change."""

    quota: int | None
    """Most logical bytes of a tenant that has no quota of its own."""

    quotas: dict[str, int]
    """Most logical bytes of these tenants."""


class NotExported(TypedDict):
    """An adapter that could not be exported."""

    adapter: str
    """`USER/TASK`, or `USER` whose adapters could not be listed."""

    code: str
    """The code of what is wrong."""

    message: str
    """What is wrong."""


class Exported(TypedDict):
    """What was exported."""

    tenants: int
    """Number of tenants."""

    adapters: int
    """Number of adapters written."""

    bytes: int
    """Their bytes, without blobs."""

    blobs: int
    """Number of published blobs written."""

    failed: list[NotExported]
    """The adapters that could not be written."""

    output: str
    """The folder."""


class ImportedRow(Coded):
    """What came of one adapter."""

    path: str
    """Where it was."""

    adapter: str | None
    """`USER/TASK`, where its path tells it."""

    version: int | None
    """The number of its version; none in a dry run."""

    root: str | None
    """The root of what is stored."""

    unchanged: bool
    """Whether the last version was this adapter already."""

    bytes: int
    """Logical bytes of what is stored."""

    written: int
    """Bytes of the objects that were written."""

    code: str | None
    """The code of what is wrong, where it could not be put."""

    message: str | None
    """What is wrong."""


class Imported(TypedDict):
    """What was imported."""

    tenants: int
    """Number of tenants that they are of."""

    put: int
    """Adapters that were put, or would be."""

    unchanged: int
    """Adapters that the store had already."""

    failed: int
    """Adapters that could not be put."""

    bytes: int
    """Logical bytes of all that are in the store, or would be."""

    written: int
    """Bytes of the objects that were written."""

    largest_error: float | None
    """The largest error of one that was coded."""

    dry_run: bool
    """Whether nothing was put, since that was asked for."""

    rows: list[ImportedRow]
    """One for each adapter, by path."""


class NotSynced(TypedDict):
    """An adapter that could not be brought over."""

    adapter: str
    """`USER/TASK`, or `USER` whose adapters could not be listed."""

    code: str
    """The code of what is wrong."""

    message: str
    """What is wrong."""


class Synced(TypedDict):
    """What was brought over to another store."""

    tenants: int
    """Number of tenants of the first store that were looked at."""

    adapters: int
    """Number of their adapters, removed ones too."""

    unchanged: int
    """Adapters of which the second store had everything."""

    versions: int
    """Versions that were written, or would be."""

    removals: int
    """Removals that were."""

    tags: int
    """Tags that were set, moved or taken away."""

    published: int
    """Blobs that were published."""

    bytes: int
    """Logical bytes of the versions."""

    sent: int
    """Bytes of the objects that were written; none in a dry run."""

    dry_run: bool
    """Whether nothing was written, since that was asked for."""

    failed: list[NotSynced]
    """Adapters, or tenants, of which not everything could be brought over."""

    notes: NotRequired[list[str]]
    """What whoever uses the second store should know."""


class Change(TypedDict):
    """A change in a store, or what is known when a watch begins."""

    change: Literal["known", "put", "removed", "tagged", "untagged", "damaged"]
    """What it is; `damaged`: a record that cannot be read."""

    user: str
    """The tenant."""

    task: NotRequired[str]
    """The task; none of what is known."""

    tag: NotRequired[str]
    """The tag."""

    version: NotRequired[int]
    """The number of the version or removal, or of the version that the tag names."""

    root: NotRequired[str]
    """The root of a version."""

    bytes: NotRequired[int]
    """Logical bytes of a version."""

    time: NotRequired[int]
    """Seconds of Unix time, by the writer's clock."""

    code: NotRequired[str]
    """The code of what is wrong."""

    message: NotRequired[str]
    """What is wrong."""

    cursor: dict[str, int]
    """The last number of each sequence of the tenant that this says something of: `TASK`, or `TASK:TAG`."""


class ServedVersion(TypedDict):
    """A version that is served from here on."""

    adapter: str
    """`USER/TASK`."""

    version: int
    """The number of the version."""

    root: str
    """The adapter's root."""

    bytes: int
    """Bytes written; 0 where the folder was there, of another adapter with the same root."""


class Served(TypedDict):
    """What was brought up to date in a folder for servers."""

    tenants: int
    """Number of tenants."""

    adapters: int
    """Number of adapters that are served."""

    served: list[ServedVersion]
    """Those that are new, or of another version than before."""

    removed: list[str]
    """Those that are served no more."""

    failed: list[NotExported]
    """Those that could not be written, and tenants that could not be listed."""

    notes: list[str]
    """What whoever serves them should know."""

    output: str
    """The folder."""


class Fsck(Checked):
    """What a check found, and with ``repair`` what was done about it."""

    repairs: NotRequired[list[Repair]]
    """What was repaired."""

    left: NotRequired[list[Repair]]
    """What was left as it is."""


class Quota(TypedDict):
    """What one user may have."""

    user: str
    """The user."""

    quota: int | None
    """Bytes, or None for no bound."""

    own: bool
    """Whether it is the user's own, and not the default."""
