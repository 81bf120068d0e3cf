#!/usr/bin/env python3
"""Holds vLLM with tlkit's plug-in against PEFT: tests/serve/vllm.sh runs both parts, each in its own environment.

    make WORK     a small model (its heads are 32 wide, as vLLM wants), six adapters of PEFT, the tokens that PEFT generates
                  with each, and a store with them under twelve names of two tenants
    serve WORK    starts vLLM's server over that store; asks for all names in parallel; puts a new version and asks for it
                  without a restart; asks for what is not there and for what does not fit

The exit status is 1 when a check failed.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

USERS = ["alice", "bob"]
PROMPTS = [[1, 5, 9, 33, 17, 60, 7, 7, 21], [1, 44, 3, 12]]
STEPS = 24
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run(*args: str | Path) -> None:
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stderr}"


def make(work: Path, tlkit: str) -> None:
    """Model, adapters, store, and what PEFT generates."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=32, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
                         pad_token_id=0, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    base = work / "base"
    model.save_pretrained(base)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, 64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(base)
    configs: dict[str, Any] = {
        "all": LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR),
        "patterns": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LINEAR, rank_pattern={"q_proj": 7},
                               alpha_pattern={"k_proj": 9}),
        "qv": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
        "q": LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"]),
        "vera": VeraConfig(r=6, target_modules=["q_proj"], save_projection=True),
        "new": LoraConfig(r=4, lora_alpha=9, target_modules=["o_proj", "down_proj"]),
    }
    store = work / "store"
    run(tlkit, "store", "init", store)
    tokens: dict[str, Any] = {}

    def generate(name: str, folder: Path | None) -> None:
        plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        served = PeftModel.from_pretrained(plain, folder) if folder else plain
        tokens[name] = []
        for prompt in PROMPTS:
            x = torch.tensor([prompt])
            out = served.eval().generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=STEPS, do_sample=False)
            tokens[name].append(out[0, len(prompt):].tolist())

    for name, kind in configs.items():
        wrapped = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), kind)
        with torch.no_grad():
            for key, weight in wrapped.named_parameters():
                if "lora_" in key or "vera_lambda" in key:
                    weight.copy_(torch.randn_like(weight) * (1.0 if "vera" in key else 0.2))
        wrapped.save_pretrained(work / name)
        generate(name, work / name)
    generate("base", None)
    # A tied adapter, as PEFT has its export.
    run(tlkit, "convert", "peft-to-tied", work / "all", "-o", work / "tied.tl", "--base", base, "--fit", "--rank", "3")
    run(tlkit, "convert", "tied-to-peft", work / "tied.tl", "-o", work / "tied", "--base", base)
    generate("tied", work / "tied")
    for user in USERS:
        for name in tokens:
            if name not in ("base", "new"):
                source = work / ("tied.tl" if name == "tied" else name)
                run(tlkit, "store", "put", store, f"{user}/{name}", source, "--base", base)
        # One of them is bob's alone, so that names lead to their own tenant's.
        run(tlkit, "store", "put", store, f"{user}/own", work / ("qv" if user == "alice" else "all"), "--base", base)
    tokens["own"] = [tokens["qv"], tokens["all"]]
    wrong = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "hidden_size": 32}))
    get_peft_model(wrong, configs["qv"]).save_pretrained(work / "wrong")
    run(tlkit, "store", "put", store, "bob/wrong", work / "wrong")
    (work / "tokens.json").write_text(json.dumps(tokens))


class Server:
    """vLLM's server on a free port."""

    def __init__(self, work: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = work / "server.log"
        env = os.environ | dict(
            TLKIT_STORE=str(work / "store"), TLKIT_CACHE=str(work / "cache"), VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
            VLLM_NO_USAGE_STATS="1", VLLM_ALLOW_RUNTIME_LORA_UPDATING="1", VLLM_PLUGINS="tlkit")
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(work / "base"), "--dtype", "float32",
                   "--max-model-len", "128", "--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "4",
                   "--max-cpu-loras", "16", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=env, stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
                return
            except OSError:
                time.sleep(1)
        raise AssertionError(self.log.read_text()[-3000:])

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def tokens(self, name: str, prompt: list[int]) -> Any:
        status, text = self.post("/v1/completions", dict(model=name, prompt=prompt, max_tokens=STEPS, temperature=0,
                                                         return_token_ids=True))
        return json.loads(text)["choices"][0]["token_ids"] if status == 200 else (status, text)


def serve(work: Path, tlkit: str) -> int:
    """The checks."""
    want = json.loads((work / "tokens.json").read_text())
    failed = 0

    def check(name: str, good: bool, what: object = "") -> None:
        nonlocal failed
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name} {what}", flush=True)

    server = Server(work)
    try:
        server.wait()
        kinds = ["all", "patterns", "qv", "q", "vera", "tied"]
        jobs = [(f"{user}/{kind}", want[kind][i], i) for i in range(len(PROMPTS)) for user in USERS for kind in kinds]
        start = time.time()
        with ThreadPoolExecutor(24) as pool:
            got = list(pool.map(lambda job: server.tokens(job[0], PROMPTS[job[2]]) == job[1], jobs))
        check("12 names of 2 tenants", all(got), f"{sum(got)} of {len(got)} answers are PEFT's tokens, {time.time() - start:.1f} s")
        for user, own in zip(USERS, want["own"], strict=True):
            check(f"{user}'s own", server.tokens(f"{user}/own", PROMPTS[0]) == own[0])
        folders = [p for p in (work / "cache").iterdir() if not p.name.startswith(".")]
        check("a folder for each root", len(folders) == len(kinds), len(folders))
        differ = {json.dumps(want[kind]) for kind in [*kinds, "base", "new"]}
        check("the adapters differ", len(differ) == len(kinds) + 2)
        run(tlkit, "store", "put", work / "store", "alice/qv", work / "new", "--base", work / "base")
        check("the name is kept", server.tokens("alice/qv", PROMPTS[0]) == want["qv"][0])
        check("a new version by its number", server.tokens("alice/qv@2", PROMPTS[0]) == want["new"][0])
        check("an old version by its number", server.tokens("alice/qv@1", PROMPTS[0]) == want["qv"][0])
        status, _ = server.post("/v1/unload_lora_adapter", dict(lora_name="alice/qv"))
        check("a new version after an unload", status == 200 and server.tokens("alice/qv", PROMPTS[0]) == want["new"][0], status)
        for name, code in [("alice/none", 404), ("../x/y", 404), ("bob/wrong", 500)]:
            status, text = server.post("/v1/completions", dict(model=name, prompt=PROMPTS[0], max_tokens=1))
            secret = re.search(re.escape(str(work)), text) is not None
            check(f"{name} is {code}", status == code and not secret, f"{status} {text[:120]}")
    finally:
        server.process.terminate()
        server.process.wait(30)
        if failed:
            print(server.log.read_text()[-6000:])
    return int(failed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["make", "serve"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--tlkit", required=True)
    args = parser.parse_args()
    if args.part == "serve":
        return serve(args.work, args.tlkit)
    make(args.work, args.tlkit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
