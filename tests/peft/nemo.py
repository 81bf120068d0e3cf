#!/usr/bin/env python3
"""Makes the adapters in fixtures/nemo as NeMo 1.x saves them, or says whether those that are there still hold.

    tests/peft/setup.sh
    tests/peft/venv/bin/python tests/peft/nemo.py

An archive that is missing is written; one that is there is never changed: what NeMo computes with it has to be what
fixtures/nemo/expected.safetensors has. The exit status is 1 where it is not.

NeMo and Megatron are not installed: what is known of them is here, from their published classes. `ParallelLinearAdapter` is
`linear_in` and `linear_out` without biases and `alpha / dim`, `VeraAdapter` of the paper's branch has u and v besides,
`tie_weights` makes later layers' tensors those of the first. Under tensor parallelism a column-parallel weight is divided by rows,
a row-parallel one by columns. Megatron views what its fused weights put out: query, key and value as (query groups, heads, size),
gate and up as two halves of what each rank has. Here the same is done in float64 with one input; a module of transformers has
to give what its part of that is.
"""

import gzip
import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

try:
    import torch
    import yaml
    from safetensors.torch import load_file, save_file
except ImportError as e:
    print(f"{e}: run tests/peft/setup.sh, then this with tests/peft/venv/bin/python", file=sys.stderr)
    sys.exit(2)

OUT = Path(__file__).resolve().parents[2] / "fixtures" / "nemo"
# fixtures/llama-tiny and fixtures/models/megatron-gpt.
LLAMA = dict(num_layers=4, hidden_size=64, ffn_hidden_size=128, num_attention_heads=8, num_query_groups=4, kv_channels=8,
             activation="fast-swiglu", normalization="rmsnorm", position_embedding_type="rope", bias=False)
MEGATRON = dict(num_layers=2, hidden_size=32, ffn_hidden_size=24, num_attention_heads=4, num_query_groups=None, kv_channels=None,
                activation="fast-swiglu", normalization="layernorm1p", position_embedding_type="rope", bias=False)
MCORE, LEGACY = "model.decoder.layers", "model.language_model.encoder.layers"
Tensors = dict[str, torch.Tensor]


class Model:
    """A base's sizes, and one adapter over it in `ranks` parts."""

    def __init__(self, base: dict[str, Any], layers: str, ranks: int, rank: int, alpha: float | None) -> None:
        self.base, self.prefix, self.ranks, self.rank = base, layers, ranks, rank
        self.scale = 1.0 if alpha is None else alpha / rank
        self.states: list[Tensors] = [{} for _ in range(ranks)]
        self.expected: Tensors = {}

    def heads(self) -> tuple[int, int, int]:
        n, h = self.base["num_attention_heads"], self.base["hidden_size"]
        return n, self.base["num_query_groups"] or n, self.base["kv_channels"] or h // n

    def put(self, name: str, parts: list[torch.Tensor]) -> None:
        for state, part in zip(self.states, parts, strict=True):
            state[name] = part

    def adapter(self, layer: int, site: str, weights: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
        a, b = weights
        self.put(f"{self.prefix}.{layer}.{site}.linear_in.weight", a)
        self.put(f"{self.prefix}.{layer}.{site}.linear_out.weight", b)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape) * 0.3).to(dtype)


def split(weight: torch.Tensor, ranks: int, axis: int = 0) -> list[torch.Tensor]:
    return [part.contiguous().clone() for part in weight.chunk(ranks, axis)]


def x_of(width: int) -> torch.Tensor:
    return torch.sin(torch.arange(1, width + 1, dtype=torch.float64))


def column_in(x: torch.Tensor, a: list[torch.Tensor]) -> torch.Tensor:
    """ColumnParallelLinear with gather_output: each rank has some of the rows."""
    return torch.cat([part.double() @ x for part in a])


def row_in(x: torch.Tensor, a: list[torch.Tensor]) -> torch.Tensor:
    """RowParallelLinear over an input that is in parts: partial sums."""
    return sum(part.double() @ own for part, own in zip(a, x.chunk(len(a)), strict=True))


def qkv(model: Model, layer: int, outs: list[torch.Tensor]) -> Tensors:
    """As Megatron's attention splits what each rank has: (groups, heads of a group + 2, size)."""
    n, groups, size = model.heads()
    parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
    for out in outs:
        view = out.view(groups // model.ranks, n // groups + 2, size)
        for name, part in zip("qkv", view.split([n // groups, 1, 1], dim=1), strict=True):
            parts[name].append(part.reshape(-1))
    return {f"model.layers.{layer}.self_attn.{name}_proj": torch.cat(own) for name, own in parts.items()}


def gate_up(layer: int, outs: list[torch.Tensor]) -> Tensors:
    """As Megatron's MLP chunks what each rank has."""
    halves = [out.chunk(2) for out in outs]
    names = ("gate_proj", "up_proj")
    return {f"model.layers.{layer}.mlp.{name}": torch.cat([h[i] for h in halves]) for i, name in enumerate(names)}


def lora(model: Model, full: dict[str, tuple[torch.Tensor, torch.Tensor]], layer: int) -> None:
    """All four adapters of a layer, divided and computed with."""
    h, f, ranks = model.base["hidden_size"], model.base["ffn_hidden_size"], model.ranks
    x, s = x_of(h), model.scale
    for site, (a, b) in full.items():
        name = site.split(".")[-1]
        if name == "lora_hto4h_adapter":
            # Each rank has a gate and an up of its own.
            gate, up = b.chunk(2)
            out_parts = [torch.cat(pair) for pair in zip(split(gate, ranks), split(up, ranks), strict=True)]
        else:
            out_parts = split(b, ranks)
        parallel = name in ("lora_dense_attention_adapter", "lora_4htoh_adapter")
        in_parts = split(a, ranks, axis=1 if parallel else 0)
        model.adapter(layer, site, (in_parts, out_parts))
        wide = x_of(f) if name == "lora_4htoh_adapter" else x
        mid = row_in(wide, in_parts) if parallel else column_in(x, in_parts)
        outs = [s * (part.double() @ mid) for part in out_parts]
        if name == "lora_kqv_adapter":
            model.expected |= qkv(model, layer, outs)
        elif name == "lora_hto4h_adapter":
            model.expected |= gate_up(layer, outs)
        else:
            module = "self_attn.o_proj" if name == "lora_dense_attention_adapter" else "mlp.down_proj"
            model.expected[f"model.layers.{layer}.{module}"] = torch.cat(outs)


def full_weights(base: dict[str, Any], rank: int, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    h, f, n = base["hidden_size"], base["ffn_hidden_size"], base["num_attention_heads"]
    groups, size = base["num_query_groups"] or n, base["kv_channels"] or h // n
    rows = (n + 2 * groups) * size
    sizes = {"self_attention.adapter_layer.lora_kqv_adapter": (h, rows),
             "self_attention.adapter_layer.lora_dense_attention_adapter": (h, h),
             "mlp.adapter_layer.lora_hto4h_adapter": (h, 2 * f), "mlp.adapter_layer.lora_4htoh_adapter": (f, h)}
    return {site: (normal(rank, i, dtype=dtype), normal(o, rank, dtype=dtype)) for site, (i, o) in sizes.items()}


def plain(ranks: int) -> tuple[Model, dict[str, Any]]:
    torch.manual_seed(1)
    model = Model(LLAMA, MCORE, ranks, 2, 5)
    for layer in range(4):
        lora(model, full_weights(LLAMA, 2, torch.bfloat16), layer)
    targets = ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]
    tuning = dict(adapter_dim=2, alpha=5, adapter_dropout=0.0, weight_tying=False, layer_selection=None, target_modules=targets,
                  position_embedding_strategy=None)
    return model, dict(peft_scheme="lora", lora_tuning=tuning)


def canonical() -> tuple[Model, dict[str, Any]]:
    """`variant: canonical`: nothing is fused. On the second and the last layer."""
    torch.manual_seed(2)
    model, h = Model(LLAMA, MCORE, 1, 3, None), 64
    names = {"q_adapter": ("self_attention.adapter_layer.lora_unfused_kqv_adapter", "self_attn.q_proj", 64),
             "k_adapter": ("self_attention.adapter_layer.lora_unfused_kqv_adapter", "self_attn.k_proj", 32),
             "v_adapter": ("self_attention.adapter_layer.lora_unfused_kqv_adapter", "self_attn.v_proj", 32),
             "gate_adapter": ("mlp.adapter_layer.lora_unfused_hto4h_adapter", "mlp.gate_proj", 128),
             "up_adapter": ("mlp.adapter_layer.lora_unfused_hto4h_adapter", "mlp.up_proj", 128)}
    for layer in (1, 3):
        for part, (site, module, out) in names.items():
            a, b = normal(3, h), normal(out, 3)
            model.adapter(layer, f"{site}.{part}", ([a], [b]))
            model.expected[f"model.layers.{layer}.{module}"] = b.double() @ (a.double() @ x_of(h))
    tuning = dict(adapter_dim=3, adapter_dropout=0.1, weight_tying=False, layer_selection=[2, 4], variant="canonical",
                  target_modules=["attention_qkv", "mlp_fc1"])
    return model, dict(peft_scheme="lora", lora_tuning=tuning)


def tied(strategy: str | None) -> tuple[Model, dict[str, Any]]:
    """`weight_tying`: every layer's tensors are the first one's, in one storage."""
    torch.manual_seed(3)
    model = Model(LLAMA, LEGACY, 1, 4, None)
    a, b = normal(4, 64), normal(128, 4)
    positions = torch.zeros(4, 64)
    site = "self_attention.adapter_layer.lora_kqv_adapter"
    for layer in range(4):
        model.adapter(layer, site, ([a], [b]))
        if strategy is not None:
            model.put(f"{LEGACY}.{layer}.{site}.position_embeddings.weight", [positions])
        model.expected |= qkv(model, layer, [b.double() @ (a.double() @ x_of(64))])
    tuning = dict(adapter_dim=4, adapter_dropout=0.0, weight_tying=True, layer_selection=None, position_embedding_strategy=strategy,
                  column_init_method="xavier", row_init_method="zero")
    return model, dict(peft_scheme="lora", lora_tuning=tuning)


def vera(base: dict[str, Any], frozen: list[str] | None, rank: int) -> tuple[Model, dict[str, Any]]:
    """The paper's own adapter: A and B of the first layer, u and v of each."""
    torch.manual_seed(4)
    model = Model(base, LEGACY, 1, rank, None)
    h, (n, groups, size) = base["hidden_size"], model.heads()
    a, b = normal(rank, h), normal((n + 2 * groups) * size, rank)
    site = "self_attention.adapter_layer.vera_kqv_adapter"
    for layer in range(base["num_layers"]):
        u, v = normal(rank, 1), normal(b.shape[0], 1)
        model.adapter(layer, site, ([a], [b]))
        model.put(f"{LEGACY}.{layer}.{site}.dim_scalar.weight", [u])
        model.put(f"{LEGACY}.{layer}.{site}.out_scalar.weight", [v])
        out = v.double().squeeze() * (b.double() @ (u.double().squeeze() * (a.double() @ x_of(h))))
        if base is MEGATRON:
            model.expected[f"{LEGACY}.{layer}.self_attention.query_key_value"] = out
        else:
            model.expected |= qkv(model, layer, [out])
    tuning: dict[str, Any] = dict(adapter_dim=rank, linear_in_init="normal", linear_out_init="normal")
    if frozen is not None:
        tuning["keep_frozen"] = frozen
    return model, dict(peft_scheme="vera", vera_tuning=tuning)


# Name -> what is in it, and whether with gzip, as older releases wrote them.
ARCHIVES: dict[str, tuple[tuple[Model, dict[str, Any]], bool]] = {
    "lora": (plain(1), False),
    "lora-tp2": (plain(2), True),
    "canonical": (canonical(), True),
    "tied": (tied(None), True),
    "tied-add": (tied("add"), False),
    "no-rank": ((plain(1)[0], dict(peft_scheme="lora", lora_tuning={})), True),
    "vera": (vera(LLAMA, [], 3), False),
    "vera-megatron": (vera(MEGATRON, None, 5), False),
}


def write(path: Path, model: Model, peft: dict[str, Any], packed: bool) -> None:
    """As NeMo's SaveRestoreConnector: the config, the state dict of each rank in a folder of its own, all in a tar."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        config = dict(mcore_gpt=model.prefix == MCORE, **model.base, megatron_amp_O2=True, tensor_model_parallel_size=model.ranks,
                      pipeline_model_parallel_size=1, precision="bf16", peft=dict(restore_from_path=None, **peft),
                      target="nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model.MegatronGPTSFTModel",
                      nemo_version="1.22.0")
        (top / "model_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        for rank, state in enumerate(model.states):
            own = top if model.ranks == 1 else top / f"mp_rank_{rank:02d}"
            own.mkdir(exist_ok=True)
            torch.save(state, own / "model_weights.ckpt")

        def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            return info

        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w:") as tar:
            tar.add(folder, arcname=".", filter=anonymous)
        data = memory.getvalue()
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)


def main() -> int:
    OUT.mkdir(exist_ok=True)
    made, expected = [], {}
    for name, ((model, peft), packed) in ARCHIVES.items():
        path = OUT / f"{name}.nemo"
        if not path.exists():
            write(path, model, peft, packed)
            made.append(path.name)
        if name not in ("tied-add", "lora-tp2", "no-rank"):
            expected |= {f"{name}/{module}": y.float() for module, y in model.expected.items()}
    one, two = (ARCHIVES[n][0][0].expected for n in ("lora", "lora-tp2"))
    assert all(torch.allclose(one[k], two[k], atol=1e-12) for k in one), "two ranks compute something else than one"
    path = OUT / "expected.safetensors"
    if not path.exists():
        save_file(expected, path)
        made.append(path.name)
    stored = load_file(path)
    both = expected.keys() & stored.keys()
    wrong = (expected.keys() | stored.keys()) - {k for k in both if torch.allclose(stored[k], expected[k])}
    print(f"made {', '.join(made) or 'nothing'}; {len(stored) - len(wrong)} of {len(stored)} outputs hold")
    shutil.rmtree(OUT / "__pycache__", ignore_errors=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
