"""The configuration of a Tied-LoRA adapter in PEFT."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType

from .layout import Group, Spec
from .presets import METHODS, trained_factors


@dataclass
class TiedLoraConfig(PeftConfig):
    """Configuration of a [`TiedLoraModel`]: ΔW = s · diag(v) · B · diag(u) · A, A and B shared by all layers.

    Names and defaults are those of `tlkit train`, and of PEFT where PEFT has the thing.

    Args:
        method (`str`): `lora`, `vera`, `tl1` … `tl6`: preset of `train` and `tie`.
        r (`int`): Rank.
        alpha (`float`, *optional*): The update is scaled by alpha / r; r where it is not given, so by one.
        use_rslora (`bool`): Scale by alpha / sqrt(r).
        train (`str` or `list[str]`, *optional*): Which of A, B, C, u, v train, as `"A,B,u,v"` or a list; the
            method's where not given. A and B that do not train stay at their random start, made from `seed`.
            C, a full r × r matrix for each layer, takes the place of u.
        tie (`bool` or `list[str]`, *optional*): Whether all layers share A and B, or which of the two they
            share; the method's where not given.
        joint (`bool` or `list[list[str]]`): Whether modules that read one input (q, k, v; gate, up) share one
            A and one u; or sets of names of modules that shall.
        seed (`int`): Seeds the random start. The start is that of `tlkit train` with this seed.
        dropout (`float`): Dropout on the input of A.
        target_modules (`list[str]` or `str`): Names of the modules to adapt, a regular expression, or
            `all-linear`. `torch.nn.Linear` and transformers' `Conv1D` can be adapted.
        exclude_modules (`list[str]` or `str`, *optional*): Names of modules to leave out, or a regular expression.
        layers_to_transform (`list[int]` or `int`, *optional*): Layers to adapt; all where not given.
        layers_pattern (`list[str]` or `str`, *optional*): What stands before the layer's number in a path.
        modules_to_save (`list[str]`, *optional*): Modules to train whole and save with the adapter.
        bias (`str`): `none`, `all` or `tied_lora_only`: which biases train.
        init_weights (`bool`): Start as tlkit does, at the base model. False starts with an update, for tests.
        save_tl (`bool`): Write `adapter.tl` beside the files that PEFT reads.
        layout (`list[dict]`, *optional*): The tie groups; found from the modules where not given. Saved with
            the adapter, so that a loaded one has the groups that it was trained with.
    """

    method: str = field(default="tl6", metadata={"help": "lora, vera, tl1 … tl6: preset of `train` and `tie`"})
    r: int = field(default=8, metadata={"help": "Rank"})
    alpha: float | None = field(default=None, metadata={"help": "The update is scaled by alpha / r; default: r"})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r)"})
    train: list[str] | str | None = field(
        default=None, metadata={"help": "Which of A, B, C, u, v train; default: the method's"}
    )
    tie: bool | list[str] | None = field(
        default=None, metadata={"help": "Whether all layers share A and B; default: the method's"}
    )
    joint: bool | list[list[str]] = field(
        default=True, metadata={"help": "Whether modules that read one input share one A; or sets of names that do"}
    )
    seed: int = field(default=0, metadata={"help": "Seeds the random start, as in `tlkit train`"})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of A"})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the modules to adapt, a regular expression, or `all-linear`"}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of modules to leave out, or a regular expression"}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Layers to adapt; default: all"}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "What stands before the layer's number in a module's path"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train whole and save with the adapter"}
    )
    bias: str = field(default="none", metadata={"help": "Which biases train: none, all or tied_lora_only"})
    init_weights: bool = field(default=True, metadata={"help": "Start at the base model"})
    save_tl: bool = field(default=True, metadata={"help": "Write adapter.tl beside the files that PEFT reads"})
    layout: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "The tie groups; default: found from the modules"}
    )

    def __post_init__(self) -> None:
        """Check the values; ValueError where they make no sense."""
        super().__post_init__()
        self.peft_type = PeftType["TIED_LORA"]
        # The groups found when the adapter was put into a model; they are saved as `layout`.
        self._found: list[dict[str, Any]] | None = None
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` is one of {', '.join(METHODS)}: {self.method!r}")
        if self.r <= 0:
            raise ValueError(f"`r` should be a positive integer value but the value passed is {self.r}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"`alpha` is above zero and finite: {self.alpha}")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if self.bias not in ("none", "all", "tied_lora_only"):
            raise ValueError(f"`bias` is none, all or tied_lora_only: {self.bias!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is at least 0 and below 1: {self.dropout}")
        self.spec()

    def spec(self) -> Spec:
        """What the tie groups have in common; ValueError where `train`, `tie` or `joint` make no sense."""
        trained, tied = METHODS[self.method]
        if self.train is not None:
            trained = trained_factors(self.train)
        shared = (
            self.tie
            if isinstance(self.tie, (list, tuple, set))
            else ["A", "B"] * (tied if self.tie is None else self.tie)
        )
        if not set(shared) <= {"A", "B"}:
            raise ValueError(f"`tie` is a bool, or names A, B or both: {self.tie!r}")
        if not isinstance(self.joint, bool):
            names = [name for group in self.joint for name in group]
            if (
                isinstance(self.joint, str)
                or any(isinstance(g, str) for g in self.joint)
                or len(set(names)) != len(names)
            ):
                raise ValueError(f"`joint` is a bool, or a list of lists of names, each once: {self.joint!r}")
        pattern = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or []
        return Spec(
            trained=trained,
            tied=tuple(name for name in ("A", "B") if name in shared),
            joint=self.joint,
            rank=self.r,
            alpha=float(self.r if self.alpha is None else self.alpha),
            scaling="alpha/sqrt(rank)" if self.use_rslora else "alpha/rank",
            layers_pattern=tuple(pattern),
        )

    def groups(self) -> list[Group] | None:
        """The tie groups: those given, else those found; None before the adapter was put into a model."""
        layout = self.layout if self.layout is not None else self._found
        return None if layout is None else [Group.from_json(group) for group in layout]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a dictionary, with the tie groups that were found."""
        return {**super().to_dict(), "layout": self.layout if self.layout is not None else self._found}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the configuration, and `adapter.tl` of the weights that `PeftModel.save_pretrained` put beside it."""
        super().save_pretrained(os.fspath(save_directory), **kwargs)
        if self.save_tl:
            from .save import write_beside

            write_beside(save_directory)
