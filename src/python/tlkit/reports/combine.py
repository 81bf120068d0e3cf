"""What combining adapters tells."""

from typing import TypedDict


class CombinedPart(TypedDict):
    """One adapter of a combination."""

    adapter: str
    """What it is called: usually the path."""

    weight: float
    """Its weight."""

    identity: str
    """A `.tl`'s root, or a digest over the files of a PEFT directory."""

    modules: int
    """Number of modules it adapts."""

    rank: int
    """Its highest rank."""

    bytes: int
    """Bytes of its files."""


class CombinedModule(TypedDict):
    """One module of a combination."""

    module: str
    """Its path in the base, with the expert where there is one."""

    ranks: list[int]
    """The rank in each adapter that has it."""

    rank: int
    """The rank of the result; 0 where it is left out, being zero."""

    error: float
    """‖ΔW − Σ w_i ΔW_i‖_F / ‖Σ w_i ΔW_i‖_F of what is written."""

    norm: float
    """‖Σ w_i ΔW_i‖_F."""


class Combined(TypedDict):
    """Report of combine. Errors are relative, over all modules together."""

    method: str
    """How."""

    adapters: list[CombinedPart]
    """The adapters, in the order given."""

    error: float
    """‖ΔW − Σ w_i ΔW_i‖_F / ‖Σ w_i ΔW_i‖_F of what is written, in the type it is written in."""

    bound: float | None
    """What a truncation to these ranks cannot be below; None where nothing is cut, or what is cut is not the sum."""

    cut: float | None
    """‖ΔW − D‖_F / ‖D‖_F of what is written, with D what a method on ΔW makes before it is cut."""

    rank: int
    """The highest rank of the result."""

    common: int
    """Modules that more than one adapter has."""

    tied: int
    """Modules of the result that are tied over layers."""

    modules: list[CombinedModule]
    """The modules."""

    tensor_bytes_before: int
    """Bytes of all adapters' factors and extras before."""

    tensor_bytes: int
    """Bytes of those of the result."""

    notes: list[str]
    """What was noticed, for people."""

    bytes_before: int
    """Bytes of the adapters' files."""

    bytes: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    output: str
    """The file written."""
