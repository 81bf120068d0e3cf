"""Tied-LoRA under transformers' Trainer, TRL's SFTTrainer, Accelerate, and two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import TARGETS, TOKENS, adapted, logits
from peft import PeftModel, get_peft_model

import tlkit
from tlkit.peft import TiedLoraConfig

HERE = Path(__file__).parent
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in TOKENS.repeat(4, 1)]


def config(**choice):
    """A configuration of TL6."""
    return TiedLoraConfig(**{"method": "tl6", "r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **choice})


def run(model, tmp_path, **options):
    """The losses of eight steps of transformers' Trainer, and the trainer."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=3, learning_rate=0.02, logging_steps=1,
        save_steps=4, report_to=[], use_cpu=True, seed=0, lr_scheduler_type="constant", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(model=get_peft_model(model, config()), args=arguments, train_dataset=ROWS)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


def test_trainer_saves_adapters_and_goes_on(model, tmp_path):
    """A checkpoint has the .tl; a run resumed from one ends where the whole run does."""
    losses, trainer = run(model(), tmp_path / "whole")
    assert losses[-1] < losses[0] - 0.5
    last = tmp_path / "whole" / "checkpoint-8"
    assert tlkit.Adapter.open(last / "adapter.tl").method == "tl6"
    whole = logits(trainer.model.eval())
    assert torch.equal(logits(PeftModel.from_pretrained(model(), last)), whole)
    from transformers import Trainer

    fresh = Trainer(model=get_peft_model(model(), config()), args=trainer.args, train_dataset=ROWS)
    fresh.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert torch.allclose(logits(fresh.model.eval()), whole, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(model, tmp_path):
    """The same losses with and without."""
    plain, _ = run(model(), tmp_path / "plain")
    for reentrant in (False, True):
        options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        checkpointed, _ = run(model(), tmp_path / str(reentrant), **options)
        assert checkpointed == pytest.approx(plain, abs=1e-5)


def test_bfloat16_autocast(model, tmp_path):
    """Losses near those of float32; factors stay float32."""
    plain, _ = run(model(), tmp_path / "plain")
    mixed, trainer = run(model("bfloat16"), tmp_path / "mixed", bf16=True)
    assert mixed == pytest.approx(plain, abs=0.1)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_sft_trainer(model, tmp_path):
    """TRL's trainer takes the configuration, and saves what loads again."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE.parents[2] / "fixtures" / "llama-tiny")
    tokenizer.pad_token = tokenizer.eos_token
    # Tokenised here: what is tested is training.
    rows = (HERE.parents[2] / "fixtures" / "task" / "train.jsonl").read_text().splitlines()
    pyarrow = pytest.importorskip("pyarrow")
    texts = [row["prompt"] + row["completion"] for row in map(json.loads, rows)]
    # With a fingerprint of its own: to make one, datasets pickles the table, which not every pyarrow allows.
    table = pyarrow.table({"input_ids": [tokenizer(text).input_ids for text in texts]})
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=0.02, logging_steps=1,
        report_to=[], use_cpu=True, bf16=False, lr_scheduler_type="constant", save_steps=6, disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    data = datasets.Dataset(table, fingerprint="words")
    trainer = trl.SFTTrainer(
        model(), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=config()
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    loaded = PeftModel.from_pretrained(model(), tmp_path / "checkpoint-6")
    assert torch.allclose(logits(loaded), logits(trainer.model.eval()), atol=1e-5)


def test_two_processes_lose_what_one_loses(tmp_path):
    """DDP over gloo, by Accelerate: the same losses and the same adapter as one process."""
    results = []
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out = tmp_path / str(processes)
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        env |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(HERE / "two_processes.py"), str(out)]
        ranks = [subprocess.Popen(command, env={**env, "RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(processes)]
        assert [rank.wait(timeout=150) for rank in ranks] == [0] * processes
        results.append((json.loads((out / "losses.json").read_text()), tlkit.Adapter.open(out / "adapter.tl")))
    (one, first), (two, second) = results
    assert two == pytest.approx(one, abs=1e-5)
    assert one[-1] < one[0] - 0.5
    for module in first.modules:
        assert abs(first.delta(module) - second.delta(module)).max() < 1e-4


def test_frozen_methods_train_under_the_trainer(model):
    """A factor that does not train gets no gradient, in all modules that share it."""
    peft = adapted(model(), method="tl1").train()
    peft(input_ids=TOKENS, labels=TOKENS).loss.backward()
    grads = {name.split("tied_lora_")[1][0] for name, p in peft.named_parameters() if p.grad is not None}
    assert grads == {"A"}
