"""Shrinks a LoRA to another rank with PEFT's `convert_to_lora`: a dense SVD for each module.

    PYTHON benches/convert/peft_shrink.py ADAPTER_DIR RANK THREADS

Prints JSON: seconds and CPU seconds of the conversion alone, bytes of the safetensors file of its f32 factors, and the
relative error of all updates. The model is a skeleton of the adapter's modules, whose weights are never touched.
"""

import json
import re
import sys
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file, save

PREFIX = "base_model.model."


def skeleton(tensors):
    model = torch.nn.Module()
    for name, a in tensors.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.*)\.lora_A\.weight", name)
        if not found:
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        *path, last = found[1].split(".")
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        linear = torch.nn.utils.skip_init(torch.nn.Linear, a.shape[1], b.shape[0], bias=False)
        place.add_module(last, linear)
    return model


def main():
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[3]))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    config = LoraConfig.from_pretrained(folder)
    config.task_type, config.inference_mode = None, True
    model = PeftModel(skeleton(tensors), config)
    missing = set_peft_model_state_dict(model, tensors).unexpected_keys
    assert not missing, missing
    started, used = time.perf_counter(), time.process_time()
    _, small = convert_to_lora(model, rank)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    off = norm = 0.0
    for name, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        delta = module.get_delta_weight("default").double()
        name = name if f"{name}.lora_A.weight" in small else name.removeprefix("base_model.model.")
        a, b = small[f"{name}.lora_A.weight"].double(), small[f"{name}.lora_B.weight"].double()
        off += float((delta - b @ a).norm() ** 2)
        norm += float(delta.norm() ** 2)
    size = len(save({name: tensor.float().contiguous() for name, tensor in small.items()}))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": size, "error": (off / norm) ** 0.5}))


if __name__ == "__main__":
    main()
