"""What merges tell."""

from typing import NotRequired, TypedDict


class MergedAdapter(TypedDict):
    """One adapter of a MergeReport."""

    label: str
    """What the caller calls it."""

    identity: str
    """Its root or digest."""

    weight: float
    """Its weight in the sum."""

    density: NotRequired[float]
    """The share of each of its updates that stayed, by a method that drops elements."""

    trained_over: NotRequired[str]
    """What the base that it was trained over is called, where it says so."""

    notes: NotRequired[list[str]]
    """What was noticed when it was opened."""


class MergedTensor(TypedDict):
    """One merged tensor of a MergeReport."""

    name: str
    """Name in the output."""

    dtype: str
    """Element type."""

    shape: list[int]
    """Extents."""

    elements: int
    """Elements."""

    changed: int
    """Elements whose bits changed."""

    changed_share: float
    """Share of them, 0 to 1."""

    delta_norm: float
    """‖ΔW‖, the Frobenius norm of the update before rounding."""

    survived: float | None
    """⟨W′ − W, ΔW⟩ / ‖ΔW‖²: how much of the update survived the rounding; absent where ΔW = 0, and where squares of
    its elements leave the range of f32."""

    max_abs_delta: float
    """Largest |ΔW|."""

    replaced: bool
    """Whether the values were replaced (a tensor that was trained whole)."""


class MergeTotals(TypedDict):
    """Sums of a MergeReport."""

    tensors: int
    """Merged tensors."""

    tensors_unchanged: int
    """Merged tensors of which not one element changed."""

    elements: int
    """Elements of the merged tensors."""

    changed: int
    """Elements that changed."""

    changed_share: float
    """Share of them."""

    delta_norm: float
    """Frobenius norm over all updates."""

    survived: float | None
    """How much of all updates survived the rounding."""

    bytes_out: int
    """Bytes of all output shards."""

    bytes_merged: int
    """Bytes of them that were merged."""

    shards_reused: int
    """Shards that an interrupted merge of the same inputs had finished."""

    seconds: float
    """Wall-clock seconds."""


# A name that Python keeps for itself.
_Lambda = TypedDict("_Lambda", {"lambda": float})


class MergeMethod(_Lambda):
    """The method by which updates became one, with all that was left to it."""

    name: str
    """The method."""

    seed: NotRequired[int]
    """What random drops begin from."""

    rescale: NotRequired[str]
    """How what stays makes up for what is dropped."""

    sign_method: NotRequired[str]
    """Which sign wins."""

    normalize: bool
    """Whether the sum is divided by the weights that take part."""

    gamma: NotRequired[float]
    """Share of outliers that are dropped."""

    epsilon: NotRequired[float]
    """How far odds lie from the density."""


class Merge(TypedDict):
    """What a merge did; serialises for `--json`."""

    output: str
    """The output: a file or a directory, or the base of an in-place merge."""

    undo: NotRequired[str]
    """The undo file of an in-place merge."""

    rounding: str
    """How updates were rounded: `peft` or `peft-safe`."""

    method: NotRequired[MergeMethod]
    """The method by which the updates became one, where they were not added."""

    device: str
    """What computed: `cpu`, or a GPU with its name."""

    adapters: list[MergedAdapter]
    """The adapters, in order."""

    tensors: list[MergedTensor]
    """Every merged tensor, by shard and place."""

    total: MergeTotals
    """Sums over them."""

    skipped: list[str]
    """Files of the base directory that were left out, each with the reason."""

    notes: list[str]
    """Remarks for whoever uses the result, such as that an adapter was trained on a quantised base; also each of
    `skipped`."""


class PlannedShard(TypedDict):
    """One shard of a PlanSummary."""

    name: str
    """File name."""

    bytes_out: int
    """Bytes."""

    bytes_merged: int
    """Bytes that are merged."""

    copies: int
    """Parts that are copied inside the kernel."""

    tensors: list[str]
    """Names of the tensors that are merged."""


class MergePlan(TypedDict):
    """A plan in figures and names, before anything is written."""

    tensors_merged: int
    """Adapted and replaced tensors."""

    tensors_total: int
    """All tensors of the base."""

    bytes_out: int
    """Bytes of the outputs' shards."""

    bytes_merged: int
    """Bytes of them that are merged."""

    bytes_copied: int
    """Bytes of them that are copied."""

    disk_needed: int
    """Free space that the outputs need where the file system cannot share extents."""

    memory: int
    """Estimate of the peak memory in bytes, without the pages of mapped adapters."""

    shards: list[PlannedShard]
    """Per output file."""

    notes: list[str]
    """Remarks for whoever uses the result, such as that an adapter was trained on a quantised base."""


class EachTotals(TypedDict):
    """Sums over all outputs."""

    adapters: int
    """Adapters, and so outputs."""

    passes: int
    """How often the base is read: once for every 64 adapters."""

    bytes_base: int
    """Bytes of the base's shards."""

    bytes_out: int
    """Bytes of all outputs' shards."""

    bytes_merged: int
    """Bytes of them that are merged."""


class MergeEach(TypedDict):
    """What execute_each did; serialises for `--json`."""

    outputs: list[Merge]
    """The report of each merge, in order. Its seconds are those until the output had its name."""

    total: EachTotals
    """Sums over them."""

    seconds: float
    """Wall-clock seconds."""

    seconds_per_adapter: float
    """Wall-clock seconds by the number of adapters."""


class Dequantised(TypedDict):
    """What became of a quantised base."""

    output: NotRequired[str]
    """The file or directory; absent in a dry run."""

    kinds: dict[str, int]
    """How many weights are quantised in each way."""

    dtype: str
    """What they are written as."""

    companions: int
    """Tensors that the output has not: scales, zero points, tables."""

    copied: int
    """Tensors that are copied."""

    bytes_in: int

    bytes_out: int

    shards_reused: NotRequired[int]

    seconds: NotRequired[float]

    notes: list[str]


class Unmerge(TypedDict):
    """What was restored."""

    base: str
    """The base."""

    restored: int
    """Tensors whose original bytes were written back."""

    already_original: int
    """Tensors that had their original bytes already."""

    bytes: int
    """Bytes written."""

    was_interrupted: bool
    """Whether the merge (or an earlier unmerge) had been interrupted. Its undo file is removed."""

    proved: bool
    """Whether the undo file has the digest of what it says, so that every range was compared with its own."""
