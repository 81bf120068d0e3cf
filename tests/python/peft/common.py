"""Helpers of the tests of ``tlkit.peft``."""

import torch
from peft import get_peft_model

from tlkit.peft import TiedLoraConfig

METHODS = ("lora", "vera", "tl1", "tl2", "tl3", "tl4", "tl5", "tl6")
TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(24).reshape(3, 8) + 40


def adapted(model, **choice):
    """The model with an adapter that changes it."""
    torch.manual_seed(0)
    return get_peft_model(
        model, TiedLoraConfig(**{"r": 4, "target_modules": TARGETS, "init_weights": False, **choice})
    ).eval()


def trained(model, steps=3, **choice):
    """The model with an adapter that was trained for some steps, and the losses."""
    torch.manual_seed(0)
    model = get_peft_model(model, TiedLoraConfig(**{"r": 4, "target_modules": TARGETS, **choice}))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


@torch.no_grad()
def logits(model, tokens=TOKENS, **options):
    """The logits of a model."""
    return model(tokens, **options).logits
