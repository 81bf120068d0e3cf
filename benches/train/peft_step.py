#!/usr/bin/env python3
"""Times what `tlkit train` replaces: steps of PEFT's LoRA on torch, on the CPU in float32 or on a GPU in bfloat16.

    tests/peft/setup.sh
    tests/peft/venv/bin/python benches/train/peft_step.py MODEL_DIR DATA.jsonl --batch 4 --length 256 --steps 12
    tests/peft/venv/bin/python benches/train/peft_step.py MODEL_DIR --make

With --make it writes random weights for MODEL_DIR/config.json instead. With --bf16 the model is bfloat16, the adapter
float32, and steps run under autocast, as those of transformers' Trainer with bf16=True. Prints one JSON line: `seconds` of each step
(forward, loss on all tokens, backward, clipping, AdamW; not the reading of data), `loss` of the last, `parameters`
that train, and `peak_rss_bytes`, the kernel's high-water mark of the process (VmHWM), of which `imports_rss_bytes`
were there once torch was imported. Attention is torch's fused one, which transformers chooses by itself.
"""

import argparse
import json
import os
import re
from time import perf_counter

os.environ["HF_HUB_OFFLINE"] = "1"


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", status.read(), re.M).group(1))


def main():
    parser = argparse.ArgumentParser(description="Time training steps of PEFT's LoRA.")
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("data", nargs="?", help='JSONL of {"text": "w1 w2 …"}, each with --length + 1 words')
    parser.add_argument("--make", action="store_true", help="write the model's weights")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="a bfloat16 model, under autocast")
    args = parser.parse_args()

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    imports = peak_rss_bytes()
    if args.make:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model))
        model.to(model.config.dtype).save_pretrained(args.model)
        return

    with open(args.data) as lines:
        words = [[int(word[1:]) for word in json.loads(line)["text"].split()] for line in lines]
    data = torch.tensor(words, device=args.device)
    assert data.shape[1] == args.length + 1, data.shape

    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device)
    model.config.use_cache = False
    lora = LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=args.rank, lora_dropout=0.0,
                      target_modules=["q_proj", "k_proj", "v_proj"])
    model = get_peft_model(model, lora)
    if args.recompute:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    seconds = []
    for step in range(args.steps):
        rows = data[torch.arange(step * args.batch, (step + 1) * args.batch) % len(data)]
        started = perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()
        seconds.append(round(perf_counter() - started, 5))
    report = {"seconds": seconds, "loss": loss, "parameters": sum(p.numel() for p in trained)}
    print(json.dumps(report | {"peak_rss_bytes": peak_rss_bytes(), "imports_rss_bytes": imports}))


if __name__ == "__main__":
    main()
