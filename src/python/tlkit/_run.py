"""Models: training, scores, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tlkit._call import Progress, StrPath, call
from tlkit.reports import run as reports


def train(
    model: StrPath | None = None,
    data: StrPath | None = None,
    output: StrPath | None = None,
    *,
    valid: StrPath | None = None,
    config: StrPath | None = None,
    peft: StrPath | None = None,
    run_dir: StrPath | None = None,
    resume: StrPath | None = None,
    force: bool = False,
    method: str | None = None,
    train: Sequence[str] | None = None,
    tie: bool | None = None,
    layers: str | Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
    joint: bool | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    use_rslora: bool = False,
    init: str | None = None,
    lora_dropout: float | None = None,
    dtype: str | None = None,
    max_steps: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    loraplus_lr_ratio: float | None = None,
    min_lr: float | None = None,
    warmup: int | None = None,
    weight_decay: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    clip: float | None = None,
    batch_size: int | None = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    loss_on_prompt: bool = False,
    assistant_only_loss: bool = False,
    eval_every: int | None = None,
    patience: int | None = None,
    min_delta: float | None = None,
    seed: int | None = None,
    checkpoint_every: int | None = None,
    recompute: bool = False,
    device: str | None = None,
    compute_dtype: str | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Train:
    """Train an adapter on a base model. The same settings give the same bytes with any number of threads; a run that
    was stopped goes on with ``resume``.

    Args:
        model: Folder of the base model: config.json, tokenizer.json, safetensors.
        data: Training examples: JSONL of {"prompt","completion"}, {"text"} or {"messages"}.
        output: The .tl file to write.
        valid: Validation examples; the step with the lowest loss on them is kept.
        config: Read options from a TOML file.
        peft: Write a PEFT directory as well.
        run_dir: Where state, metrics.jsonl and curve.svg go; where it is None: OUTPUT.run.
        resume: Go on with the run in this folder; the result is that of an uninterrupted run, to the byte.
        force: Replace an existing output: a file, or a PEFT directory without other files; links, devices and inputs
            never are.
        method: lora, vera, tl1 … tl6: preset of ``train`` and ``tie``; where it is None: tl6.
        train: Which factors train, of A, B, C, u, v; where it is None: the method's.
        tie: Whether all layers share one A and one B; where it is None: the method's.
        layers: Layers to adapt: ``"0-7,12"`` or their numbers; where it is None: all.
        targets: Modules to adapt: q, k, v, o, gate, up, down, full names, or ``["all"]``; where it is None: q, k and v.
        joint: Whether targets that read the same input share one A; where it is None: true.
        rank: Rank r; where it is None: 8.
        alpha: The update is scaled by alpha / r; where it is None: r.
        use_rslora: Scale the update by alpha / √r: rsLoRA.
        init: How A and B start: default, or kaiming, gaussian, orthogonal as PEFT has them.
        lora_dropout: Probability with which an element of what A reads is zero in training; where it is None: 0.
        dtype: Type of the stored values; where it is None: f32.
        max_steps: Most optimiser steps; where it is None: 20000.
        epochs: Most passes over the data; where it is None: no limit.
        lr: Highest learning rate; where it is None: 1e-4.
        loraplus_lr_ratio: Learning rate of B, u and v over that of A and C: LoRA+; where it is None: 1.
        min_lr: Learning rate of the last step; where it is None: 1e-6.
        warmup: Steps of linear warm-up; where it is None: 50, at most a tenth of the run.
        weight_decay: Decoupled weight decay; where it is None: 0.01.
        beta1: AdamW's decay of the first moment; where it is None: 0.9.
        beta2: AdamW's decay of the second moment; where it is None: 0.98.
        clip: Largest norm of the gradient, 0 for no clipping; where it is None: 1.
        batch_size: Examples that go through the model at once; where it is None: 8.
        global_batch: Examples of one optimiser step; where it is None: 128.
        seq_len: Longest example in tokens; longer ones are cut, and counted; where it is None: 2048.
        loss_on_prompt: Learn prompts as well as completions.
        assistant_only_loss: Learn only what the chat template marks as the assistant's: messages only.
        eval_every: Steps between validations; where it is None: 200.
        patience: Validations without improvement after which the run stops, 0 for never; where it is None: 10.
        min_delta: Nats per token that count as improvement; where it is None: 0.001.
        seed: Seed of the start values and of the order of examples; where it is None: 0.
        checkpoint_every: Steps between checkpoints; where it is None: 100.
        recompute: Compute activations again in the backward pass, to save memory.
        device: cpu, auto, or cuda[:N]; where it is None: cpu.
        compute_dtype: Type of products with the weights: f32 or bf16; if None, bf16 where base and device have it.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` for a setting that is missing or makes no sense; ``"unsupported"`` for a model that
            is not run; ``"malformed"``, ``"io"``. KeyboardInterrupt leaves the last checkpoint in ``run_dir``.
    """
    return call("train", locals(), reports.Train)


def generate(
    model: StrPath,
    prompt: str | None = None,
    *,
    adapter: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    prompts: StrPath | None = None,
    chat: bool = False,
    max_tokens: int = 500,
    batch_size: int = 8,
    device: str = "cpu",
    compute_dtype: str | None = None,
    blobs: StrPath | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Generations:
    """Continue prompts with a model, greedily.

    Args:
        model: The folder of the model: config.json, safetensors weights and tokenizer.json.
        prompt: The text to continue.
        adapter: A ``.tl`` or a PEFT directory to run on it.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        prompts: A JSONL file whose lines have a ``prompt``.
        chat: Take each prompt for a user's message, by the model's chat template. A template that takes more memory
            than it may ends the process.
        max_tokens: Most new tokens of an answer.
        batch_size: How many at a time; results do not depend on it.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        compute_dtype: Type of products with the weights: ``"f32"`` or ``"bf16"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"usage"`` without a prompt; ``"unsupported"``, ``"malformed"``, ``"io"``.
    """
    return call("generate", locals(), reports.Generations)


def evaluate(
    model: StrPath,
    data: StrPath,
    task: Literal["summarization", "qa", "translation", "math", "choice"],
    *,
    adapter: StrPath | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
    limit: int | None = None,
    max_tokens: int = 500,
    batch_size: int = 8,
    predictions: StrPath | None = None,
    device: str = "cpu",
    compute_dtype: str | None = None,
    blobs: StrPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> reports.Eval:
    """Score a model on a task, equal to the reference implementations; 0 to 100.

    Args:
        model: The folder of the model: config.json, safetensors weights and tokenizer.json.
        data: The questions, a JSONL file.
        task: How answers are scored.
        adapter: A ``.tl`` or a PEFT directory to run on it.
        rename: Leading parts of module names, and what they are in the base: ``{"backbone": "model"}``.
        strict: Refuse an adapter that lacks tensors of modules which config and base say are adapted.
        limit: Most questions.
        max_tokens: Most new tokens of an answer.
        batch_size: How many at a time; results do not depend on it.
        predictions: Write each answer to this JSONL file.
        device: What computes: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"auto"``.
        compute_dtype: Type of products with the weights: ``"f32"`` or ``"bf16"``.
        blobs: Folder with the tensors that a thin ``.tl`` leaves out, each named by its SHA-256.
        force: Replace an existing output; links, devices and inputs never are.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Raises:
        Error: ``.kind`` ``"unsupported"``, ``"malformed"``, ``"io"``.
    """
    return call("eval", locals(), reports.Eval)


def sweep(
    config: StrPath,
    output: StrPath,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train and score a grid of methods, ranks and learning rates; the same call goes on with a sweep that was stopped.

    Args:
        config: What to train and to compare, a TOML file.
        output: The folder for cells, tables and figure.
        progress: Called with ``(done, total, what)`` from this thread; what it raises stops the work.
        threads: Number of threads; results do not depend on it.

    Returns:
        What ``tlkit sweep --json`` prints; ``table.csv`` and ``figure.svg`` are in the folder.

    Raises:
        Error: ``.kind`` ``"usage"``, ``"malformed"``, ``"io"``.
    """
    return call("sweep", locals(), dict[str, Any])
