"""Trains TL6 by Accelerate for some steps: one process of as many as WORLD_SIZE says."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from tlkit.peft import TiedLoraConfig

out = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
base = AutoModelForCausalLM.from_pretrained(
    Path(__file__).resolve().parents[3] / "fixtures" / "llama-tiny", dtype=torch.float32
)
config = TiedLoraConfig(method="tl6", r=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
peft = get_peft_model(base, config)
optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=0.02)
tokens = torch.arange(64).reshape(8, 8) + 40
data = torch.utils.data.DataLoader(tokens.repeat(8, 1), batch_size=8 // accelerator.num_processes)
model, optimizer, data = accelerator.prepare(peft, optimizer, data)
losses = []
for batch in data:
    loss = model(input_ids=batch, labels=batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(out)
    (out / "losses.json").write_text(json.dumps(losses))
accelerator.end_training()
