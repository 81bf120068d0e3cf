"""What an audit and plans tell."""

from typing import Literal, NotRequired, TypedDict


class Prices(TypedDict):
    """What an object store charges."""

    gb_month: float
    """Of a gigabyte (10⁹ bytes) for a month, in USD."""

    thousand_requests: float
    """Of a thousand requests, in USD."""

    requests: int
    """Requests a month."""


class Bill(TypedDict):
    """A bill for a month, in USD."""

    storage: float
    """For the bytes."""

    requests: float
    """For the requests."""

    total: float
    """For both."""


class Problem(TypedDict):
    """Why something could not be read."""

    code: str
    """The stable code, such as `TL0102`."""

    message: str
    """One line: what is wrong, and in which file."""


class Waste(TypedDict):
    """Bytes that could go, by reason. The reasons are looked at in the order of the fields, and a byte counts for the
    first that fits: the fields add up.
    """

    full_weights: int
    """Whole models in an adapter's folder (`model*.safetensors`, `*.gguf`, …)."""

    optimizer: int
    """What training left (`optimizer.pt`, `rng_state*.pth`, `global_step*/`, …)."""

    projections: int
    """Frozen random tensors that are stored though their seed is stored too."""

    duplicates: int
    """Tensors equal, byte for byte, to one counted before, in this or another adapter."""

    dtype: int
    """What remains of floats beyond 16 bits a number."""

    presumed: int
    """Of `projections`, what rests on the presumption that they are what their seed makes."""

    projection_copies: int
    """Of `projections`, copies beyond the first of an equal seed, shape and dtype."""


class Quality(TypedDict):
    """What a form does to the adapter."""

    kind: Literal["exact", "rounded", "measured", "fitted", "retrain"]
    """Every number as it is; rounded to nearest; other numbers, whose updates were compared; the closest tied adapter;
    trained anew."""

    bound: NotRequired[float]
    """Of ``"rounded"``: the largest relative error of a number."""

    error: NotRequired[float | None]
    """Of ``"measured"`` and ``"fitted"`` the relative error of ΔW; of ``"retrain"`` as far as it was measured."""


class Scenario(TypedDict):
    """What one adapter takes in one form."""

    name: str
    """The form, by its name."""

    joint: bool
    """Whether q, k and v share one A, as in the paper."""

    bytes: int
    """Bytes of the adapter and of what stays beside it."""

    saving: int
    """Bytes that it takes less than now; negative where it takes more."""

    presumed: int
    """Of the saving, what rests on the presumption that projections are what their seed makes."""

    parameters: int | None
    """Numbers trained (retraining only)."""

    bound_bytes: int | None
    """Bytes that no code of Gaussian components needs less than at this error, and of what stays beside it (coded forms
    only)."""

    quality: Quality
    """What it does to the adapter's quality."""


class AuditRow(TypedDict):
    """One adapter. What is not known is `None`; a broken adapter has an `error` and its bytes."""

    path: str
    """Where it is, as reached from the path that was audited."""

    format: Literal["peft", "mlx", "nemo", "tl", "store"]
    """In which form."""

    kind: str | None
    """What kind of adapter it is."""

    user: str | None
    """Whose it is."""

    task: str | None
    """What it is for."""

    base: str | None
    """Name of the base model."""

    base_kind: NotRequired[str]
    """How the base that it was trained over is quantised, as far as the base's name says so."""

    base_stored: NotRequired[str]
    """How the base's weights are stored, where it is one of those given: `plain`, or how they are quantised."""

    base_fingerprint: str | None
    """Fingerprint of the base's weights (`.tl` only)."""

    rank: int | None
    """Largest rank."""

    alpha: float | None
    """Alpha of the config, or of the first tie group."""

    dtype: str | None
    """Element types, the one with most bytes first: `F32`, `F32+BF16`."""

    modules: int | None
    """Adapted modules."""

    layers: int | None
    """Layers with an adapted module."""

    parameters: int | None
    """Numbers stored."""

    trained_parameters: int | None
    """Of those, and of what is left out, the numbers that were trained."""

    files: int
    """Files that belong to it."""

    bytes: int
    """Bytes of these files (`st_size`), each inode once in the whole audit."""

    disk_bytes: int
    """What they take on the disk (`st_blocks` × 512)."""

    linked_bytes: int
    """Bytes of its files that are counted elsewhere, being links to the same inode."""

    adapter_bytes: int
    """Bytes of the file with the weights."""

    waste: Waste
    """What of `bytes` could go."""

    what_if: list[Scenario]
    """What the adapter would take in other forms."""

    error: Problem | None
    """Why it could not be read, or not whole."""


class AuditTotal(TypedDict):
    """Sums over rows."""

    adapters: int
    """Rows."""

    broken: int
    """Rows with an error."""

    parameters: int
    """Numbers stored."""

    trained_parameters: int
    """Numbers trained."""

    files: int
    """Files."""

    bytes: int
    """Bytes of the files, each inode once."""

    disk_bytes: int
    """What they take on the disk."""

    adapter_bytes: int
    """Bytes of the files with weights."""

    waste: Waste
    """What of `bytes` could go."""


class AuditGroup(AuditTotal):
    """The rows that have one thing in common."""

    name: str | None
    """The user, task, base or kind; `None` for rows of which it is not known."""


class Marginal(TypedDict):
    """What one more adapter of the mean size adds."""

    next_task_bytes: int
    """Bytes of the next task of a user: the mean adapter."""

    next_task_month: float
    """USD a month for them."""

    next_user_bytes: int | None
    """Bytes of the next user, with as many adapters as users have in the mean; `None` where no user is known."""

    next_user_month: float | None
    """USD a month for them."""


class FleetScenario(TypedDict):
    """One form, for all adapters that it applies to."""

    name: str
    """The form, by its name."""

    joint: bool
    """As in Scenario.joint."""

    adapters: int
    """Adapters that have this form; all others stay as they are."""

    bytes_now: int
    """Bytes of these adapters now."""

    bytes: int
    """Bytes of these adapters in this form."""

    saving: int
    """`bytes_now − bytes`."""

    presumed: int
    """Of the saving, what rests on a presumption, see Scenario.presumed."""

    parameters: int | None
    """Numbers trained (retraining only)."""

    bound_bytes: int | None
    """As in Scenario.bound_bytes, of these adapters."""

    quality: Quality
    """What it does to the adapters' quality."""

    fleet_bytes: int
    """Bytes of everything that was audited, with these adapters in this form."""

    bill: Bill
    """The bill for `fleet_bytes`, in USD a month."""

    marginal: Marginal
    """What one more adapter of this form adds."""


class OtherItem(TypedDict):
    """Files that belong to no adapter."""

    files: int
    """How many."""

    bytes: int
    """Their bytes."""

    disk_bytes: int
    """What they take on the disk."""


class Audit(TypedDict):
    """Everything an audit found out."""

    schema: str
    """`tlkit-audit/1`; changes where a field changes its meaning."""

    roots: list[str]
    """The paths that were audited."""

    hashed: bool
    """Whether PEFT tensors were read and hashed, so that equal ones were found."""

    bytes: int
    """Bytes of everything: adapters and other files."""

    total: AuditTotal
    """Sums over all rows."""

    other: OtherItem
    """Files that belong to no adapter."""

    folder_links: int
    """Links to folders, which were not followed."""

    by_user: list[AuditGroup]
    """By user, most bytes first."""

    by_task: list[AuditGroup]
    """By task, most bytes first."""

    by_base: list[AuditGroup]
    """By base model, most bytes first."""

    by_kind: list[AuditGroup]
    """By kind, most bytes first."""

    prices: Prices
    """What the prices were."""

    bill: Bill
    """The bill for `bytes`."""

    marginal: Marginal
    """What one more adapter of the present mean adds."""

    scenarios: list[FleetScenario]
    """Other forms."""

    unmeasured: int
    """Adapters of which the forms that are made in memory (coded, int8, truncated, fit) were not asked for: these
    forms leave them as they are."""

    unfitted: list[Problem]
    """Adapters of which such a form was asked for and could not be made: it leaves them as they are."""

    problems: list[Problem]
    """What could not be listed."""

    rows: list[AuditRow]
    """Every adapter, by path."""


class PlannedMethod(TypedDict):
    """One method in a plan."""

    method: str
    """The method."""

    parameters: int
    """Numbers trained, as `tlkit params` counts them."""

    weight_bytes: int
    """Bytes of these numbers."""

    adapter_bytes: int
    """Bytes of one adapter: numbers and header. Frozen A and B are kept as seeds."""

    shared_bytes: int
    """Bytes of the frozen A and B that all adapters of the model share, if they were kept as tensors, once, instead of
    as seeds; not part of any other number."""

    fleet_bytes: int
    """Bytes of all adapters."""

    share_of_lora: float
    """`fleet_bytes` over those of LoRA."""

    next_task_bytes: int
    """Bytes of one more task of one user."""

    next_user_bytes: int
    """Bytes of one more user with all tasks."""

    bill: Bill
    """The bill for the fleet, in USD a month."""


class PlannedCode(TypedDict):
    """A fleet of LoRAs that are coded, each number in as many bits as one of a typical adapter takes."""

    name: str
    """`coded-1`, `coded-5`, `coded-10`."""

    error: float
    """The relative error of the typical adapter's ΔW."""

    bits: float
    """Bits of its file for each number."""

    bound: float
    """Bits that no code of Gaussian components needs less than."""

    adapter_bytes: int
    """Bytes of one adapter."""

    fleet_bytes: int
    """Bytes of all adapters."""

    share_of_lora: float
    """`fleet_bytes` over those of LoRA as it is."""

    next_task_bytes: int
    """Bytes of one more task of one user."""

    next_user_bytes: int
    """Bytes of one more user with all tasks."""

    bill: Bill
    """The bill for the fleet, in USD a month."""


class Plan(TypedDict):
    """A fleet in every form."""

    schema: str
    """`tlkit-plan/1`."""

    users: int
    """Users."""

    tasks: int
    """Adapters of each."""

    adapters: int
    """All adapters."""

    rank: int
    """Rank."""

    dtype: str
    """Type of the stored numbers."""

    prices: Prices
    """The prices."""

    coded: list[PlannedCode]
    """LoRAs coded at an error, where ``like`` gives a typical one."""

    forms: list[PlannedMethod]
    """One for each method, LoRA first."""


class _Outs(TypedDict):
    """Widths of q, k and v."""

    q: int

    k: int

    v: int


class ParamsRow(TypedDict):
    """One method at one rank."""

    rank: int

    method: str

    trains: list[str]

    tied: bool

    parameters: int

    percent_of_lora: float

    lora_rank: int

    bytes: int


Params = TypedDict("Params", {"layers": int, "in": int, "out": _Outs, "dtype": str, "methods": list[ParamsRow]})
"""What each method would train."""
