"""Makes fixtures/quant: small bases quantised by their own libraries, with the numbers that these give back.

    pip install -r tests/quant/requirements.txt --target DIR
    PYTHONPATH=DIR python tests/quant/make.py fixtures/quant [bnb|fp8|compressed|mxfp4|gptq|awq|mlx ...]

Each fixture is a folder: `model.safetensors`, `config.json`, and `expected.safetensors`, which has every quantised
weight under its name and dtype (`l.weight.bf16`): what the library gives, cast into that dtype. GPTQ and AWQ are
packed and unpacked here by the definition of their layouts: integers of so many bits one after the other, the lowest
bits first; that is what AutoGPTQ's, GPTQModel's and AutoAWQ's own formulas give for the same tensors.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def write(out, name, tensors, config, expected):
    folder = Path(out) / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    values = {f"{n}.{d}": t.contiguous() for n, by in expected.items() for d, t in by.items()}
    save_file(values, folder / "expected.safetensors")


def cast(value):
    return {name: value.to(dtype) for name, dtype in DTYPES.items()}


def plain(dtype=torch.bfloat16):
    """What is not quantised, and stays as it is."""
    return {"norm.weight": torch.linspace(0.5, 1.5, 8).to(dtype)}


def llama(dtype, quantization):
    return {"model_type": "llama", "torch_dtype": dtype, "quantization_config": quantization}


def bnb(out):
    import bitsandbytes.functional as F
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    for name, kind, nested, dtype, storage, shapes in [
        ("bnb-nf4", "nf4", False, torch.bfloat16, torch.uint8, [(16, 64), (12, 48)]),
        ("bnb-nf4-nested", "nf4", True, torch.float16, torch.uint8, [(16, 64), (9, 40)]),
        ("bnb-fp4", "fp4", False, torch.float32, torch.uint8, [(16, 64), (7, 5)]),
        ("bnb-nf4-stored-bf16", "nf4", True, torch.bfloat16, torch.bfloat16, [(16, 64), (12, 48)]),
    ]:
        tensors, expected = plain(), {}
        for i, shape in enumerate(shapes):
            weight = (torch.randn(shape) * 0.05).to(dtype)
            codes, state = F.quantize_4bit(
                weight, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=storage
            )
            if shape[1] % 64 == 0:
                value = F.dequantize_4bit(codes, state)
            else:
                # The CPU's AVX-512 kernel takes a wrong scale where rows are no whole blocks; the library's own
                # torch implementation does not, nor do its CUDA kernels.
                absmax = state.absmax
                if nested:
                    absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
                table = F.get_4bit_type(kind, device="cpu")
                flat = codes.view(torch.uint8).reshape(-1)
                compute = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)
                value = compute(flat, absmax, table, 64, shape, dtype)
            weight_name = f"layers.{i}.q_proj.weight"
            tensors[weight_name] = codes
            for key, part in state.as_dict(packed=True).items():
                tensors[f"{weight_name}.{key}"] = part
            expected[weight_name] = cast(value)
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        write(out, name, tensors, llama("float16", config), expected)

    weight = torch.randn(12, 48) * 0.05
    codes, scales, _ = F.int8_vectorwise_quant(weight.half())
    tensors = plain(torch.float16) | {
        "layers.0.q_proj.weight": codes,
        "layers.0.q_proj.SCB": scales,
        "layers.0.q_proj.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    value = F.int8_vectorwise_dequant(codes, scales)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    write(out, "bnb-int8", tensors, llama("float16", config), {"layers.0.q_proj.weight": cast(value)})


def fp8(out):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dequantize = Fp8Dequantize(None)._dequantize_one
    tensors, expected = plain(), {}
    for i, (shape, grid, dtype) in enumerate(
        [
            ((16, 32), (2, 4), torch.float8_e4m3fn),
            ((16, 32), (2, 4), torch.float8_e5m2),
            ((8, 16), (1, 2), torch.float8_e4m3fn),
        ]
    ):
        name = f"layers.{i}.q_proj.weight"
        codes = torch.randint(0, 256, shape, dtype=torch.uint8).view(dtype)
        codes = torch.where(codes.float().isfinite(), codes.float(), 1.0).to(dtype)
        scales = torch.rand(grid) * 0.01
        tensors[name], tensors[f"{name}_scale_inv"] = codes, scales
        expected[name] = {d: dequantize(codes, scales, output_dtype=t) for d, t in DTYPES.items()}
    config = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    write(out, "fp8-blocks", tensors, llama("bfloat16", config), expected)

    # Edges that are no whole blocks: what each element's block scales, as DeepSeek's own kernel has it.
    codes = torch.randn(20, 13).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2)
    full = scales.repeat_interleave(8, 0)[:20].repeat_interleave(8, 1)[:, :13]
    tensors = plain() | {"layers.0.q_proj.weight": codes, "layers.0.q_proj.weight_scale_inv": scales}
    tensors |= {"layers.0.q_proj.activation_scale": torch.tensor(1.0)}
    write(out, "fp8-edges", tensors, llama("bfloat16", config), {"layers.0.q_proj.weight": cast(codes.float() * full)})

    # A row's scale, one for all, and none of a config's words.
    tensors, expected = plain(), {}
    for i, scales in enumerate([torch.rand(16, 1), torch.rand(1), torch.tensor(0.125)]):
        name = f"layers.{i}.q_proj.weight"
        codes = torch.randn(16, 24).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale"] = codes, scales
        expected[name] = cast(codes.float() * scales)
    write(out, "fp8-fbgemm", tensors, llama("bfloat16", {"quant_method": "fbgemm_fp8"}), expected)

    # ModelOpt: codes and scale in the dtype that is asked for, then their product in it.
    codes, scale = torch.randn(8, 16).to(torch.float8_e4m3fn), torch.tensor(0.0123)
    tensors = plain() | {
        "layers.0.q_proj.weight": codes,
        "layers.0.q_proj.weight_scale": scale,
        "layers.0.q_proj.input_scale": torch.tensor(0.5),
        "layers.0.k_scale": torch.tensor(0.5),
    }
    value = {d: codes.to(t) * scale.to(t) for d, t in DTYPES.items()}
    config = {"quant_method": "modelopt", "quant_algo": "FP8"}
    write(out, "fp8-modelopt", tensors, llama("bfloat16", config), {"layers.0.q_proj.weight": value})


def compressed(out):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def scheme(**weights):
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))

    def one(name, format, args, state, groups=None):
        made = scheme(**args)
        compressor = BaseCompressor.get_value_from_registry(format)
        packed = compressor.compress(state, made)
        value = compressor.decompress(dict(packed), made)["weight"]
        tensors = plain() | {f"layers.0.q_proj.{k}": v for k, v in packed.items()}
        config = {
            "quant_method": "compressed-tensors",
            "format": format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": made.weights.model_dump(mode="json")}},
        }
        write(out, name, tensors, llama("bfloat16", config), {"layers.0.q_proj.weight": cast(value)})

    weight = torch.randn(16, 64)
    f8 = dict(num_bits=8, type="float", symmetric=True)
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    one("ct-fp8-channel", "float-quantized", f8 | dict(strategy="channel"), {"weight": weight.bfloat16(), "weight_scale": scale})
    scale = weight.abs().reshape(2, 8, 4, 16).amax((1, 3)) / 448
    one("ct-fp8-block", "float-quantized", f8 | dict(strategy="block", block_structure=[8, 16]), {"weight": weight, "weight_scale": scale})
    scale = (weight.abs().amax(1, keepdim=True) / 100).bfloat16()
    zero = torch.randint(-20, 20, (16, 1), dtype=torch.int8)
    one("ct-int8-asymmetric", "int-quantized", dict(num_bits=8, type="int", symmetric=False, strategy="channel"),
        {"weight": weight.bfloat16(), "weight_scale": scale, "weight_zero_point": zero})
    for bits, symmetric in [(4, True), (4, False), (3, True), (8, True), (3, False)]:
        scale = (weight.abs().reshape(16, 4, 16).amax(2) / 2 ** (bits - 1)).bfloat16()
        state = {"weight": weight.bfloat16(), "weight_scale": scale}
        if not symmetric:
            state["weight_zero_point"] = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (16, 4), dtype=torch.int8)
        args = dict(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=16)
        kind = "" if symmetric else "-asymmetric"
        one(f"ct-int{bits}-packed{kind}", "pack-quantized", args, state)
    scale = (weight.abs().reshape(16, 4, 16).amax(2) / 6).clamp(max=1).to(torch.float8_e4m3fn)
    state = {"weight": weight.bfloat16(), "weight_scale": scale.float(), "weight_global_scale": torch.tensor([1.5])}
    args = dict(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    one("ct-nvfp4", "nvfp4-pack-quantized", args, state)
    scale = 2.0 ** torch.randint(-8, 2, (16, 2)).float()
    args = dict(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32)
    one("ct-mxfp4", "mxfp4-pack-quantized", args, {"weight": weight.bfloat16(), "weight_scale": scale})


def mxfp4(out):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, expected = plain(), {}
    for name, outputs, along in [("gate_up_proj", 12, 2), ("down_proj", 7, 1)]:
        blocks = torch.randint(0, 256, (3, outputs, along, 16), dtype=torch.uint8)
        scales = torch.randint(110, 131, (3, outputs, along), dtype=torch.uint8)
        name = f"layers.0.mlp.experts.{name}"
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        tensors[f"{name}_bias"] = torch.randn(3, outputs).bfloat16()
        expected[name] = {d: convert_moe_packed_tensors(blocks, scales, dtype=t) for d, t in DTYPES.items()}
    config = llama("bfloat16", {"quant_method": "mxfp4"}) | {"model_type": "gpt_oss"}
    write(out, "mxfp4", tensors, config, expected)


def pack(values, bits, axis):
    """Integers of `bits` bits one after the other along `axis`, in 32-bit words."""
    values = np.moveaxis(np.asarray(values, dtype=np.uint64), axis, 0)
    words = np.zeros((values.shape[0] * bits // 32, *values.shape[1:]), dtype=np.uint64)
    for i, value in enumerate(values):
        at, shift = divmod(i * bits, 32)
        words[at] |= (value << np.uint64(shift)) & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[at + 1] |= value >> np.uint64(32 - shift)
    return torch.from_numpy(np.moveaxis(words, 0, axis).astype(np.uint32).view(np.int32).copy())


def gptq(out):
    rng = np.random.default_rng(5)
    for name, bits, v2, act, dtype in [
        ("gptq-4bit", 4, False, False, torch.float16),
        ("gptq-4bit-act-v2", 4, True, True, torch.float16),
        ("gptq-2bit", 2, False, False, torch.float16),
        ("gptq-3bit", 3, False, True, torch.float16),
        ("gptq-8bit", 8, False, False, torch.bfloat16),
    ]:
        inputs, outputs, group = 64, 32, 16
        q = rng.integers(0, 2**bits, (inputs, outputs))
        zeros = rng.integers(1, 2**bits, (inputs // group, outputs))
        scales = torch.rand(inputs // group, outputs).mul(0.01).to(dtype)
        groups = np.repeat(np.arange(inputs // group), group)
        if act:
            groups = rng.permutation(groups)
        stored = zeros if v2 else zeros - 1
        tensors = plain(torch.float16) | {
            "layers.0.q_proj.qweight": pack(q, bits, 0),
            "layers.0.q_proj.qzeros": pack(stored, bits, 1),
            "layers.0.q_proj.scales": scales,
            "layers.0.q_proj.g_idx": torch.from_numpy(groups.astype(np.int32)),
            "layers.0.q_proj.bias": torch.randn(outputs).to(torch.float16),
        }
        value = scales[groups] * (torch.from_numpy(q) - torch.from_numpy(zeros)[groups])
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": False}
        config["checkpoint_format"] = "gptq_v2" if v2 else "gptq"
        write(out, name, tensors, llama("float16", config), {"layers.0.q_proj.weight": cast(value.T)})


def awq(out):
    rng = np.random.default_rng(7)
    inputs, outputs, group = 64, 32, 16
    q, zeros = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (inputs // group, outputs))
    scales = torch.rand(inputs // group, outputs).mul(0.01).to(torch.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(values):
        return pack(values.reshape(len(values), -1, 8)[:, :, order].reshape(len(values), -1), 4, 1)

    tensors = plain(torch.float16) | {
        "layers.0.q_proj.qweight": packed(q),
        "layers.0.q_proj.qzeros": packed(zeros),
        "layers.0.q_proj.scales": scales,
    }
    groups = np.repeat(np.arange(inputs // group), group)
    value = scales[groups] * (torch.from_numpy(q) - torch.from_numpy(zeros)[groups])
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    write(out, "awq", tensors, llama("float16", config), {"layers.0.q_proj.weight": cast(value.T)})


def mlx(out):
    import mlx.core as mx

    mx.set_default_device(mx.cpu)

    def torched(array):
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        tensor = torch.from_numpy(np.array(bits))
        return tensor.view(torch.bfloat16) if array.dtype == mx.bfloat16 else tensor

    def one(name, dtype, group, bits, modules):
        torch_dtype = str(dtype).rsplit(".", 1)[1]
        tensors, expected = plain(getattr(torch, torch_dtype)), {}
        said = {"group_size": group, "bits": bits, "mode": "affine"}
        for module, (shape, own) in modules.items():
            own = {"group_size": group, "bits": bits} | own
            weight = (mx.random.normal(shape) * 0.05).astype(dtype)
            parts = mx.quantize(weight, **own)
            for end, part in zip(("weight", "scales", "biases"), parts):
                tensors[f"{module}.{end}"] = torched(part)
            expected[f"{module}.weight"] = cast(torched(mx.dequantize(*parts, **own)))
            if own != {"group_size": group, "bits": bits}:
                said[module] = own
        config = llama(torch_dtype, said) | {"quantization": said}
        write(out, name, tensors, config, expected)

    mx.random.seed(11)
    one("mlx-4bit", mx.bfloat16, 64, 4, {"embed_tokens": ((9, 64), {}), "layers.0.q_proj": ((5, 128), {})})
    one("mlx-mixed", mx.float16, 32, 4, {
        "layers.0.q_proj": ((7, 64), dict(bits=2)), "layers.0.k_proj": ((3, 64), dict(bits=3)),
        "layers.0.v_proj": ((3, 128), dict(bits=5, group_size=64)), "layers.0.o_proj": ((3, 64), dict(bits=6)),
        "layers.0.down_proj": ((3, 128), dict(bits=8, group_size=128)), "layers.0.switch_mlp.up_proj": ((2, 3, 32), {}),
    })
    one("mlx-6bit-f32", mx.float32, 32, 6, {"layers.0.q_proj": ((5, 64), {}), "layers.0.k_proj": ((3, 32), dict(bits=4))})


if __name__ == "__main__":
    torch.manual_seed(3)
    for make in (bnb, fp8, compressed, mxfp4, gptq, awq, mlx):
        if len(sys.argv) < 3 or make.__name__ in sys.argv[2:]:
            make(sys.argv[1])
