"""What training, scoring and generating tell."""

from typing import Literal, TypedDict

from tlkit.reports.convert import TextCounts


class Train(TypedDict):
    """What came of a run."""

    method: str
    """The preset that was trained, or `custom`."""

    rank: int
    """Rank."""

    parameters: int
    """Number of trained values."""

    compute_dtype: str
    """The dtype of what is multiplied with the frozen weights."""

    steps: int
    """Optimiser steps taken."""

    best_step: int | None
    """The step whose values were kept, where there was validation."""

    stopped: str
    """Why the run ended: `max-steps` or `patience`."""

    train_loss: float | None
    """Loss of the last step, in nats per target token."""

    initial_valid_loss: float | None
    """Validation loss of the base model, in nats per target token."""

    valid_loss: float | None
    """Validation loss of the adapter that was written."""

    tokens: int
    """Positions that went through the model in training."""

    seconds: float
    """Seconds, in all sessions."""

    data: TextCounts
    """What the training data held."""

    valid_data: TextCounts | None
    """What the validation data held."""

    root: str
    """The adapter's root."""

    bytes: int
    """Bytes of the `.tl`."""

    output: str
    """The `.tl`."""

    peft: str | None
    """The PEFT directory, where one was asked for."""

    peft_form: str | None
    """Its form: `lora` or `vera`."""

    run_dir: str
    """Where state, metrics and curve are."""


class Eval(TypedDict):
    """The scores of a task."""

    task: Literal["summarization", "qa", "translation", "math", "choice"]
    """What was asked."""

    items: int
    """Number of questions."""

    scores: dict[str, float]
    """Each score by its name, from 0 to 100; see Task."""

    truncated_prompts: int
    """Prompts that lost their beginning, for want of positions."""

    unfinished: int
    """Answers that were cut before the model ended them."""


class Generation(TypedDict):
    """One prompt and its continuation."""

    prompt: str

    text: str

    tokens: int

    prompt_tokens: int

    stopped: Literal["eos", "max_tokens", "max_positions"]


class Generations(TypedDict):
    """Continuations, in the order of the prompts."""

    generations: list[Generation]
