"""What extractions tell."""

from typing import TypedDict


class ExtractedModule(TypedDict):
    """One module of an extracted adapter."""

    module: str
    """Its path in the base; of a parameter of experts, its name."""

    rank: int
    """Rank of what is written; 0 for one that the budget leaves nothing."""

    error: float
    """‖ΔW − ΔW'‖_F / ‖ΔW‖_F, in f64, of the factors as they are stored."""

    bound: float
    """What no factors of this rank are below."""

    norm: float
    """‖ΔW‖_F."""


class ExtractReport(TypedDict):
    """What was extracted. Errors are ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules together."""

    error: float
    """Error of what is written, in the type it is written in."""

    bound: float
    """What no adapter of these ranks is below; with a tied form, what no untied one is."""

    norm: float
    """‖ΔW‖_F of the modules."""

    rank: int
    """The highest rank of a module."""

    bytes: int
    """Bytes of the modules' factors."""

    summary: str
    """The result in one sentence for people."""

    modules: list[ExtractedModule]
    """The modules that changed, by name."""

    extras: list[str]
    """Tensors that changed and go along whole."""

    unchanged: int
    """Number of tensors that are the same in both."""

    left_out: list[str]
    """Tensors that changed, or that only one checkpoint has, and are left out."""

    notes: list[str]
    """What is to be known of the adapter, for people."""


class Extracted(ExtractReport):
    """Report of extract_to."""

    file_bytes: int
    """Bytes of the `.tl`."""

    root: str
    """The adapter's identity."""

    output: str
    """The file written."""
