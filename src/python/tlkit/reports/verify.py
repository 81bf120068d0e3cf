"""What proofs tell."""

from typing import Literal, NotRequired, TypedDict


class CheckedTensor(TypedDict):
    """One checked tensor."""

    name: str
    """Name in the manifest."""

    stored: str
    """`raw`, `packed`, `seeded` or `external`."""

    dtype: str
    """Element type."""

    shape: list[int]
    """Extents."""

    bytes: int
    """Bytes of the raw tensor."""

    sha256: str
    """SHA-256 of them."""


class File(TypedDict):
    """A `.tl` whose every rule and digest was checked."""

    root: str
    """The adapter's identity."""

    bytes: int
    """Bytes of the file."""

    overhead: int
    """Bytes of the file that are not tensor bytes."""

    canonical: bool
    """Whether it is the canonical pack: fat and raw, the same bytes from any writer."""

    tensors: list[CheckedTensor]
    """Every tensor of the manifest."""


class TargetDifference(TypedDict):
    """The difference of one target over its layers."""

    target: str
    """Module name with `{}` for the layer."""

    modules: int
    """Modules compared."""

    norm: float
    """‖ΔW₁‖ over all of them."""

    relative: float
    """‖ΔW₁ − ΔW₂‖ over ‖ΔW₁‖, all layers together."""

    max_relative: float
    """Largest relative error of one module; NaN where one is."""

    worst: str
    """The module that has it."""

    max_abs: float
    """Largest |ΔW₁ − ΔW₂| of one element; NaN where one is."""

    not_finite: int
    """Modules of which a value, a norm or the error is not finite."""


class ExtraDifference(TypedDict):
    """The difference of one full tensor, or that it has values that are not finite."""

    name: str
    """The base tensor's name."""

    max_abs: float
    """Largest difference of one element; infinite where dtype-independent comparison is impossible, NaN where a value
    is not finite."""

    relative: float
    """‖difference‖ over ‖first‖; as `max_abs`."""


class _Adapters(TypedDict):
    """What two adapters do differently."""

    targets: list[TargetDifference]
    """One line for each target: the modules of one name in all layers."""

    extras: list[ExtraDifference]
    """Full tensors (biases, saved modules, magnitudes) that differ."""

    only_in_one: list[str]
    """Modules and full tensors that only the first adapter has."""

    only_in_two: list[str]
    """Modules and full tensors that only the second adapter has."""

    modules: int
    """Modules compared."""

    max_relative: float
    """Largest relative error of any module, and of the full tensors; NaN where one is."""

    worst: str
    """The module or full tensor that has it; empty where nothing was compared."""

    not_finite: int
    """Modules and full tensors of which a value, a norm or the error is not finite, in either adapter. Such adapters
    are not equal, whatever the tolerance."""


UlpClass = TypedDict("UlpClass", {"from": int, "to": int | None, "elements": int})
"""A class of the histogram."""


class TensorDifference(TypedDict):
    """An adapted tensor that differs."""

    name: str
    """Name."""

    differing: int
    """Elements with other bits."""

    max_ulp: int
    """Largest distance in units in the last place."""


class FileNote(TypedDict):
    """Something about one file."""

    file: str
    """Its path within the folder."""

    what: str
    """How it compares."""


class FilesCompared(TypedDict):
    """How a merged model compares with what a merge writes, its tensors aside."""

    compared: int
    """Files compared besides the weights."""

    differing: list[FileNote]
    """Files that are not what a merge writes, or that it does not write, or writes and are not there."""

    layout: list[FileNote]
    """Files that say the same otherwise: other shards, another order, JSON in another form."""

    not_compared: list[str]
    """What was not looked at."""


class _Merged(TypedDict):
    """What a merged model turned out to be."""

    obeys: str | None
    """The rounding that the file obeys in every bit; none where neither is."""

    device: str
    """What computed: `cpu`, or a GPU with its name."""

    closest: str
    """The rounding that it comes closest to, to which the counts below refer."""

    tensors_merged: int
    """Adapted tensors compared."""

    elements: int
    """Elements of them."""

    differing: int
    """Elements with other bits than recomputed."""

    max_ulp: int
    """Largest distance in units in the last place; the largest number there is for an element that is not finite."""

    not_finite: int
    """Elements that are NaN or infinite, where the recomputed one is a number."""

    histogram: list[UlpClass]
    """Elements by distance."""

    tensors: list[TensorDifference]
    """Adapted tensors that differ."""

    tensors_untouched: int
    """Other tensors compared byte by byte."""

    untouched_differing: list[str]
    """Those of them that are not byte-equal to the base."""

    missing: list[str]
    """Tensors that only the recomputed model has, or with another dtype or shape."""

    unexpected: list[str]
    """Tensors that only the merged model has."""

    files: FilesCompared
    """The other files, the metadata of the weights, and what was not looked at."""


class _Logits(TypedDict):
    """How far two models are apart on some texts. Sums are in f64."""

    texts: int
    """Number of texts."""

    tokens: int
    """Number of positions whose logits were compared."""

    max_abs_diff: float
    """Largest absolute difference of two logits."""

    max_abs_logit: float
    """Largest absolute logit of the base with the adapter."""

    mean_kl: float
    """Mean of KL(base with adapter ‖ merged), in nats per token."""

    top1_agreement: float
    """Share of positions with the same likeliest token, from 0 to 1."""


class Logits(_Logits):
    """Whether a merged model predicts what base and adapter do."""

    equal: bool

    max_diff: float

    max_kl: float | None


class Adapters(_Adapters):
    """Whether two adapters do the same to every module."""

    equal: bool
    """Whether no module's error is beyond the tolerance."""


class Merged(_Merged):
    """Whether a merged model is what a merge makes."""

    equal: bool
    """Whether it is, within ``max_ulp``."""


class Problem(TypedDict):
    """Why an adapter does not fit."""

    code: str
    """The code of what is wrong."""

    message: str
    """What is wrong."""

    tensor: str | None
    """The tensor or module that it is about."""

    hint: str | None
    """What to do about it."""


class Engine(TypedDict):
    """What one program does with an adapter."""

    engine: str
    """`vLLM`, `SGLang` or `llama.cpp`."""

    verdict: Literal["serves", "refuses", "wrong"]
    """With the PEFT directory itself, or the faithful one of a `.tl`; `wrong` silently computes another update."""

    why: list[str]
    """Why it is not served."""

    portable: bool
    """With the portable form, where there is one."""

    max_lora_rank: NotRequired[int]
    """The smallest `max_lora_rank` that vLLM has for it."""


class Fit(TypedDict):
    """Whether an adapter fits a base."""

    fits: bool
    """Whether it does."""

    problem: Problem | None
    """Why it does not."""

    method: str
    """The preset that the adapter follows."""

    modules: int
    """Number of adapted modules, experts counted each."""

    targets: list[str]
    """Adapted modules, with `{}` for the layer."""

    ranks: dict[str, int]
    """Ranks, and how many modules have each."""

    tensors: int
    """Tensors of the base that would change; 0 where it does not fit."""

    trained_over: str | None
    """What the adapter calls the base that it was trained over."""

    fingerprint: Literal["equal", "different", "absent", "unread"]
    """Whether that is this base."""

    missing: list[str]
    """Modules that should have tensors, and have none."""

    notes: list[str]
    """What was noticed."""

    engines: list[Engine]
    """What programs that serve adapters would do with it."""


class Signed(TypedDict):
    """What was signed."""

    signature: str
    """The signature's file."""

    files: int
    """How many files it is of."""

    key: str
    """The key, by the SHA-256 of its PEM."""

    name: str | None
    """The name that it binds."""


class Signature(TypedDict):
    """What was verified."""

    files: int
    """How many files are as they were signed."""

    name: str | None
    """The name that the signature binds."""
