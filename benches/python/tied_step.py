"""Time and memory of a training step: TL6 in PEFT against PEFT's own LoRA, on the same model.

    OMP_NUM_THREADS=1 tests/peft/venv/bin/python benches/python/tied_step.py [--rounds N] [--device cpu]

Both adapters are made once; rounds alternate between them, so that other load on the machine meets both.
Prints medians, their ratio, and the memory that a step adds at its peak (each in a process of its own).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tlkit.peft import TiedLoraConfig

# hidden, intermediate, layers, heads, batch, length
SIZES = {"small": (256, 688, 6, 8, 4, 128), "large": (1024, 2752, 8, 16, 2, 256)}
TARGETS = ["q_proj", "k_proj", "v_proj"]


def adapted(size: str, method: str, device: str) -> tuple[Any, torch.optim.Optimizer, torch.Tensor]:
    """A model with an adapter, its optimiser, and tokens."""
    hidden, inner, layers, heads, batch, length = SIZES[size]
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vocab_size=2048,
        )
    )
    config = (
        LoraConfig(r=8, lora_alpha=8, target_modules=TARGETS)
        if method == "lora"
        else TiedLoraConfig(method=method, r=8, target_modules=TARGETS)
    )
    model = get_peft_model(base.to(device), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return model, optimizer, torch.randint(0, 2048, (batch, length), device=device)


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    """One training step."""
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if tokens.is_cuda:
        torch.cuda.synchronize()


def memory(size: str, method: str, device: str) -> int:
    """Peak memory of three steps in bytes: of the process, or of the GPU."""
    made = adapted(size, method, device)
    for _ in range(3):
        step(*made)
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure both sizes, or in a child the memory of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--memory", nargs=2, metavar=("SIZE", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory(*options.memory, options.device))
        return
    for size in options.size or SIZES:
        made = {method: adapted(size, method, options.device) for method in ("lora", "tl6")}
        times: dict[str, list[float]] = {method: [] for method in made}
        for turn in range(options.rounds + 2):
            for method in sorted(made, reverse=turn % 2 == 1):
                start = time.perf_counter()
                step(*made[method])
                if turn > 1:
                    times[method].append(time.perf_counter() - start)
        pairs = [tied / lora for tied, lora in zip(times["tl6"], times["lora"], strict=True)]
        del made
        peak = {}
        for method in ("lora", "tl6"):
            command = [sys.executable, __file__, "--memory", size, method, "--device", options.device]
            peak[method] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        line = {
            "size": size, "lora_ms": round(statistics.median(times["lora"]) * 1e3, 1),
            "tl6_ms": round(statistics.median(times["tl6"]) * 1e3, 1), "time_ratio": round(statistics.median(pairs), 3),
            "lora_peak_mb": round(peak["lora"] / 1e6, 1), "tl6_peak_mb": round(peak["tl6"] / 1e6, 1),
            "memory_ratio": round(peak["tl6"] / peak["lora"], 3),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
