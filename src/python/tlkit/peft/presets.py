"""The eight methods, as tlkit's command line has them: presets of which factors train and what is tied."""

from __future__ import annotations

FACTORS = ("A", "B", "C", "u", "v")

# Which factors train, and whether all layers share A and B.
METHODS: dict[str, tuple[tuple[str, ...], bool]] = {
    "lora": (("A", "B"), False),
    "vera": (("u", "v"), True),
    "tl1": (("A",), True),
    "tl2": (("A", "u", "v"), True),
    "tl3": (("B",), True),
    "tl4": (("B", "u"), True),
    "tl5": (("A", "B"), True),
    "tl6": (("A", "B", "u", "v"), True),
}

# Modules of one parent that read one input, in the order of their rows in B.
JOINT: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)

# Parents whose k and v read another input than q.
CROSS: tuple[str, ...] = (
    "encoder_attn",
    "crossattention",
    "cross_attn",
    "cross_attention",
    "EncDecAttention",
    "multihead_attn",
)


def trained_factors(train: object) -> tuple[str, ...]:
    """Factors of a list, or of a text as the command line takes it (`A,B,u,v`), in canonical order."""
    names = [name.strip() for name in train.split(",")] if isinstance(train, str) else list(train)  # type: ignore[call-overload]
    if not names or len(set(names)) != len(names) or not set(names) <= set(FACTORS):
        raise ValueError(f"`train` names some of {', '.join(FACTORS)}, each once: {train!r}")
    if "C" in names and "u" in names:
        raise ValueError("C takes the place of u: one of the two trains")
    return tuple(name for name in FACTORS if name in names)
