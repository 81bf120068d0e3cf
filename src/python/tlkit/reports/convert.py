"""What conversions and fits tell."""

from typing import Literal, NotRequired, TypedDict


class PeftToTied(TypedDict):
    """Report of peft_to_tied."""

    found: Literal["vera", "vera-regenerated", "tied", "partly-tied", "untied"]
    """What was found."""

    method: str
    """The preset that the result follows."""

    modules: int
    """Number of adapted modules."""

    groups: int
    """Number of tie groups."""

    max_relative_error: float
    """Largest ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of any module."""

    worst_module: str
    """The module that has it."""

    parameters_before: int
    """Numbers in the adapter before."""

    parameters_after: int
    """Numbers in the `.tl`."""

    left_out: NotRequired[list["LeftOut"]]
    """Whole tensors that are the base's own, and are not in the `.tl`."""

    bytes_before: int
    """Bytes of the adapter's files."""

    bytes_after: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The file written."""


class LeftOut(TypedDict):
    """A tensor that was left out."""

    name: str
    """What the adapter called it."""

    bytes: int
    """Its bytes."""


class TiedToMlx(TypedDict):
    """Report of tied_to_mlx."""

    fine_tune_type: Literal["lora", "dora", "full"]
    """What mlx-lm calls it."""

    method: str
    """The preset that the adapter follows."""

    modules: int
    """Number of adapted modules."""

    num_layers: int
    """How many of the last layers mlx-lm adapts."""

    tensors: int
    """Number of tensors written."""

    bytes_before: int
    """Bytes of the adapter."""

    bytes_after: int
    """Bytes of the folder's files."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was noticed about the adapter."""

    output: str
    """The folder written."""


class TiedToPeft(TypedDict):
    """Report of tied_to_peft."""

    form: str
    """What was written."""

    method: str
    """The preset that the `.tl` follows."""

    modules: int
    """Number of adapted modules."""

    tensors: int
    """Number of tensors written."""

    bytes_before: int
    """Bytes of the `.tl`."""

    bytes_after: int
    """Bytes of the PEFT files."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What whoever uses the folder should know, such as that some programs misread it."""

    output: str
    """The folder written."""


class TiedToGguf(TypedDict):
    """Report of tied_to_gguf."""

    architecture: str
    """What llama.cpp calls the architecture."""

    method: str
    """The preset that the adapter follows."""

    modules: int
    """Number of adapted modules."""

    tensors: int
    """Number of tensors written."""

    bytes_before: int
    """Bytes of the adapter."""

    bytes_after: int
    """Bytes of the file."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was noticed about the adapter."""

    output: str
    """The file written."""


class LayerFit(TypedDict):
    """One layer of a fitted tie group."""

    layer: int
    """Layer number."""

    error: float
    """‖ΔW_l − ΔW_l'‖_F / ‖ΔW_l‖_F over the group's targets; 0 where the layer's update is zero."""


class GroupFit(TypedDict):
    """One fitted tie group. Errors are relative: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all its layers."""

    targets: list[str]
    """Module paths with `{}` for the layer number, in the order of B's rows."""

    rank: int
    """Rank of A and B."""

    with_core: bool
    """Whether it has a core for each layer in place of u."""

    with_v: bool
    """Whether it has a v: where one was affordable, and no fit without v of the same bytes is as close."""

    error: float
    """Error of what is written, in the type it is written in."""

    bound: float
    """What no tied adapter of this rank and form is below. Without v, the spans of A and B have `rank` dimensions for
    all layers together, whatever u; with v, `bound_with_v`."""

    bound_with_v: float
    """What no tied adapter of this rank is below, with any u and v: only the span of A is common."""

    baseline: float
    """Error of the `rank` largest singular triplets over all layers, the fit to beat."""

    untied: float
    """Error of an untied LoRA of the same bytes and type, without what rounding to it costs: the largest triplets, as
    many as they buy without u and v, each layer (and where that is better, each target) at the rank it needs."""

    norm: float
    """‖ΔW‖_F over all layers."""

    bytes_before: int
    """Bytes of the factors before."""

    bytes: int
    """Bytes of A, B, u or the cores, and v."""

    start: Literal["triplets", "subspace", "pencil", "outputs"]
    """Where the best fit started."""

    sweeps: int
    """Rounds of alternating least squares from there."""

    worst_layer: int
    """The layer with the largest error."""

    layers: list[LayerFit]
    """Every layer, ascending."""


class FitErrors(TypedDict):
    """Totals of a fit, and its groups. Errors are over all fitted groups together."""

    error: float
    """As GroupFit.error."""

    bound: float
    """As GroupFit.bound."""

    bound_with_v: float
    """As GroupFit.bound_with_v."""

    baseline: float
    """As GroupFit.baseline."""

    untied: float
    """As GroupFit.untied."""

    rank: int
    """The highest rank of a group."""

    bytes_before: int
    """Bytes of the fitted modules' factors before."""

    bytes: int
    """Bytes of the tie groups."""

    summary: str
    """The result in one sentence for people."""

    groups: list[GroupFit]
    """The fitted tie groups."""

    kept: list[str]
    """Modules kept as they were: tied already, in one layer only, or with an update of zero."""


class Nearness(TypedDict):
    """How near a student is to its teacher on texts neither was fitted on. Everything is a mean over target tokens, in
    nats.
    """

    kl: float
    """KL(teacher ‖ student)."""

    loss: float
    """Cross entropy of the student."""


class CalibrationStage(Nearness):
    """One adapter of a calibration, compared with the LoRA on texts that none was fitted on."""

    error: float
    """Relative Frobenius error of the updates."""

    output_error: float | None
    """Relative error of the outputs on the calibration texts; none for a distilled adapter."""

    loss_change: float
    """The loss less that of the LoRA."""


class TextCounts(TypedDict):
    """What became of the lines."""

    lines: int
    """Lines that were read, blank ones not counted."""

    examples: int
    """Examples made of them."""

    truncated: int
    """Examples that lost their end to the length limit."""

    dropped: int
    """Lines that gave no example, as no target was left of them."""

    tokens: int
    """Tokens of all examples."""

    targets: int
    """Tokens to be predicted."""


class Calibration(TypedDict):
    """What came of a calibration. Losses and divergences are nats per target token of the held-out texts."""

    text: TextCounts
    """What the file of texts held."""

    fitted_on: int
    """Texts that were fitted on."""

    held_out: int
    """Texts held out."""

    held_out_targets: int
    """Their target tokens."""

    lora_loss: float
    """Loss of the LoRA."""

    base: Nearness
    """The base model without an adapter."""

    plain: CalibrationStage
    """The fit to the updates."""

    calibrated: CalibrationStage
    """The fit to the outputs."""

    output_bound: float
    """No tied adapter of these ranks, without v, has a lower output error."""

    output_untied: float
    """Output error of the best untied LoRA of the same bytes."""

    distilled: CalibrationStage | None
    """What was trained from the better one."""

    coded: NotRequired[CalibrationStage]
    """What is written, where the factors of the one that is kept were coded."""

    kept: Literal["plain", "calibrated", "distilled"]
    """The one with the lowest divergence."""

    summary: str
    """What that one is worth, in one sentence for people."""


class CodedModule(TypedDict):
    """One module of a coded adapter."""

    module: str
    """Its path in the base."""

    rank_before: int

    rank: int
    """Terms that are coded; 0 for one that is left out."""

    error: float
    """Relative error of the update that a reader gets."""

    norm: float
    """Frobenius norm of the update."""

    output_error: NotRequired[float]
    """Relative error of its outputs on the texts, where it was coded to them."""


class CodedTexts(TypedDict):
    """A coded adapter beside its source on texts held out. Losses and divergences are nats per target token."""

    text: TextCounts
    """What the file of texts held."""

    fitted_on: int
    """Texts that it was coded to; none where it was coded to the updates."""

    held_out: int
    """Texts held out."""

    held_out_targets: int
    """Their target tokens."""

    lora_loss: float
    """Loss of the adapter before."""

    base: Nearness
    """The base model without an adapter."""

    plain: CalibrationStage
    """Coded to the updates; beside one that is coded to the outputs, in no more bytes."""

    calibrated: NotRequired[CalibrationStage]
    """Coded to the outputs."""

    kept: Literal["plain", "calibrated"]
    """The one that is written."""

    summary: str
    """What that one is worth, in one sentence for people."""


class _Coded(TypedDict, total=False):
    """What coding lost and saved; bits are for each number of the factors as they were."""

    error: float
    """Relative error of all coded updates together."""

    output_error: float
    """Relative error of their outputs on the texts, where they were coded to them; then `bound` is for this error."""

    calibration: CodedTexts
    """What texts held out say, where there are any."""

    numbers: int
    """Numbers of the coded modules' factors before."""

    file_bytes: int

    coded_bytes: int

    bits: float
    """Bits of the whole file a number."""

    bound: float
    """Bits that no code of Gaussian components of these energies needs less than at this error."""

    gap: float
    """`bits` less `bound`."""

    summary: str

    modules: list[CodedModule]

    kept: list[str]
    """Modules kept as they were."""


class Coded(_Coded):
    """Report of peft_to_coded."""

    file_bytes_before: int
    """Bytes of the PEFT files."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The file written."""


class CodedAdapter(TypedDict):
    """One adapter of several that are coded together."""

    error: float
    """Relative error of its coded updates together."""

    file_bytes: int
    """Bytes of its file, without what it shares."""

    modules: list[CodedModule]

    kept: list[str]
    """Modules kept as they were."""


class CodedFleet(TypedDict):
    """What coding several adapters together lost and saved; bits are for each number of the factors as they were."""

    error: float

    numbers: int
    """Numbers of the factors before; shared ones count once."""

    file_bytes: int
    """Bytes of all files, and of what they share."""

    shared_bytes: int
    """Of these, what several of them share."""

    coded_bytes: int

    bits: float

    bound: float

    gap: float

    summary: str

    adapters: list[CodedAdapter]
    """In the order given."""


class Fitted(FitErrors):
    """Report of peft_to_tied_fit."""

    modules: int
    """Number of adapted modules."""

    file_bytes_before: int
    """Bytes of the PEFT files."""

    file_bytes: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The file written."""

    calibration: NotRequired[Calibration]
    """The fit to texts, where one was asked for."""

    coded: NotRequired[_Coded]
    """What coding the fit added, where its factors are coded."""


class ShrunkModule(TypedDict):
    """One module of a shrunk LoRA."""

    module: str
    """Its path in the base."""

    rank_before: int
    """Rank before."""

    rank: int
    """Rank of what is written; 0 for one that is left out."""

    error: float
    """‖ΔW − ΔW'‖_F / ‖ΔW‖_F of what is written; 0 where the update is zero."""

    norm: float
    """‖ΔW‖_F."""


class ShrinkErrors(TypedDict):
    """What shrinking lost. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all shrunk modules together."""

    error: float
    """Error of what is written, in the type it is written in."""

    bound: float
    """What no LoRA with these ranks is below."""

    uniform: float | None
    """Error of the largest triplets of one rank for all modules, in no more bytes; `None` where their bytes do not
    hold rank 1."""

    uniform_rank: int
    """That rank, or 0."""

    rank: int
    """The highest rank of a module."""

    bytes_before: int
    """Bytes of the modules' factors before."""

    bytes: int
    """Bytes of their factors now."""

    summary: str
    """The result in one sentence for people."""

    modules: list[ShrunkModule]
    """The shrunk modules, in the order of the adapter."""

    kept: list[str]
    """Modules kept as they were: tied, or with a u or v."""


class Shrunk(ShrinkErrors):
    """Report of peft_to_untied."""

    file_bytes_before: int
    """Bytes of the PEFT files."""

    file_bytes: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The file written."""


_Global = TypedDict("_Global", {"global": float})
"""Error of the LoRA of no more bytes that keeps the largest rank-one terms of all modules."""


class CurvePoint(_Global):
    """One rank of a Curve. Errors are relative, of all fitted modules together; bytes are those of f32 factors."""

    rank: int
    """Rank of every tie group."""

    bytes: int
    """Bytes of the tie groups."""

    error: float
    """Error of the tied fit."""

    bound: float
    """As super.FitReport.bound."""

    bound_with_v: float
    """As super.FitReport.bound_with_v."""

    baseline: float
    """As super.FitReport.baseline."""

    core: float
    """Error of the fit with a core for each layer, of no more bytes."""

    core_rank: int
    """The highest rank of its tie groups; 0 where the bytes buy none of them one."""

    truncated: float
    """Error of the LoRA in 16-bit floats, of the same bytes, that keeps the largest terms of all modules."""

    per_module: float
    """Error of the LoRA of no more bytes that keeps the best terms of each module, all at one rank."""

    per_module_rank: int
    """That rank; 0 where the bytes do not buy one."""


class CurveForm(TypedDict):
    """A form of the LoRA."""

    bytes: int
    """Bytes of the factors in this form."""

    error: float


class CurveCoded(CurveForm):
    """The LoRA coded at an error."""

    bound_bytes: int
    """Bytes that no code of Gaussian components of these energies needs less than at this error."""


class Curve(TypedDict):
    """Error against bytes."""

    bytes_before: int
    """Bytes of the fitted modules' factors before."""

    points: list[CurvePoint]
    """By ascending rank, up to the bytes of the LoRA itself."""

    f16: CurveForm
    """The LoRA's factors in 16-bit floats."""

    int8: CurveForm
    """In 8-bit integers with a scale for each row."""

    coded: list[CurveCoded]
    """The LoRA coded, by ascending bytes."""

    summary: str
    """Where tying pays, in one sentence for people."""

    kept: list[str]
    """Modules that cannot be tied, and those that are."""


class PairFit(TypedDict):
    """One shared pair of A and B. Errors are relative, over all adapters that share it."""

    targets: list[str]
    """Module paths with `{}` for the layer number, in the order of B's rows."""

    rank: int
    """Rank of A and B."""

    adapters: int
    """Adapters that share it."""

    bytes: int
    """Bytes of A and B."""

    error: float
    """Error of what is written, in f32."""

    bound: float
    """No A and B of this rank, whatever the adapters' u, are below."""

    baseline: float
    """Error of the largest singular triplets over all layers of all adapters."""


class SharedFile(TypedDict):
    """One adapter of peft_to_tied_shared."""

    name: str
    """What it is called in the output folder."""

    error: float
    """Relative error of its ΔW."""

    apart: bool
    """Whether it was left as it is."""

    modules: int
    """Number of adapted modules."""

    bytes_before: int
    """Bytes of the PEFT files."""

    bytes: int
    """Bytes of its `.tl`."""

    root: str
    """The adapter's identity."""


class SharedFactors(TypedDict):
    """Report of peft_to_tied_shared."""

    adapters: list[SharedFile]
    """In the order given."""

    pairs: list[PairFit]
    """The shared pairs, as they were fitted."""

    coded: NotRequired[CodedFleet]
    """What coding added, where the factors are coded."""

    blob_bytes: int
    """Bytes of the blobs."""

    bytes_before: int
    """Bytes of all PEFT files."""

    bytes: int
    """Bytes of all `.tl` and the blobs."""

    summary: str
    """The result in one sentence for people."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The folder written."""


class FittedOnto(TypedDict):
    """Report of peft_to_tied_with_factors_of."""

    error: float
    """‖ΔW − ΔW'‖_F / ‖ΔW‖_F over the modules that take A and B from the pair."""

    modules: int
    """Number of these modules."""

    kept: int
    """Modules that the pair does not have; they stay as they are."""

    bytes_before: int
    """Bytes of the PEFT files."""

    bytes: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    notes: list[str]
    """What was ignored, guessed or approximated on the way, for people."""

    output: str
    """The file written."""


class _Restored(TypedDict, total=False):
    """What rounding did."""

    dtype: str

    root_before: str

    max_relative_error: float


class Packed(_Restored, _Coded):
    """What packing did; `dtype`, `root_before` and `max_relative_error` where factors were rounded."""

    root: str

    bytes_before: int

    bytes_after: int

    blobs_written: int

    output: str
