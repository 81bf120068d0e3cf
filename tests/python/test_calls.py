"""What functions do and give back; every report is of the type that it says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shapes import returned

import tlkit


def test_combine(fixtures: Path, tmp_path: Path) -> None:
    """Breaks where a combination is another one than the command's, or its report of another type."""
    adapters = {fixtures / "adapters" / "lora": 0.7, fixtures / "adapters" / "style-peft": -0.3}
    exact = returned(tlkit.combine, tlkit.combine(adapters, tmp_path / "cat.tl"))
    assert (exact["rank"], exact["bound"], exact["error"] < 1e-6) == (8, None, True)
    cut = returned(tlkit.combine, tlkit.combine(adapters, tmp_path / "svd.tl", method="svd", rank=3))
    assert cut["rank"] == 3 and cut["bound"] is not None and cut["error"] >= cut["bound"] * (1 - 1e-6)
    drawn = tlkit.combine(adapters, tmp_path / "dare.tl", method="dare-svd", density=0.5, seed=3)
    assert returned(tlkit.combine, drawn)["cut"] is not None
    with pytest.raises(tlkit.Error):
        tlkit.combine(adapters, tmp_path / "ties.tl", method="ties")


def test_convert_both_ways(fixtures: Path, tmp_path: Path) -> None:
    """Breaks where a conversion is another one than the command's."""
    there = returned(
        tlkit.convert.peft_to_tied,
        tlkit.convert.peft_to_tied(fixtures / "adapters" / "style-peft", tmp_path / "a.tl"),
    )
    assert (there["found"], there["method"], there["parameters_after"]) == ("tied", "tl6", 1296)
    assert there["root"] == tlkit.Adapter.open(tmp_path / "a.tl").root
    back = returned(
        tlkit.convert.tied_to_peft, tlkit.convert.tied_to_peft(tmp_path / "a.tl", tmp_path / "peft", dtype="bf16")
    )
    assert back["form"] == "lora" and (tmp_path / "peft" / "adapter_config.json").exists()
    with pytest.raises(tlkit.Error):
        tlkit.convert.tied_to_peft(tmp_path / "a.tl", tmp_path / "vera", portable=True, as_="vera")


def test_fits(lora: Path, tmp_path: Path) -> None:
    """Breaks where a fit's report has another shape than its type, or a budget is not passed on."""
    tied = returned(tlkit.fit, tlkit.fit(lora, tmp_path / "fit.tl", rank=3, dtype="int8"))
    assert tied["rank"] == 3 and 0 < tied["bound"] <= tied["error"]
    small = returned(tlkit.fit_untied, tlkit.fit_untied(lora, tmp_path / "small.tl", tolerance=0.5))
    assert small["error"] <= 0.5
    curve = returned(tlkit.fit_curve, tlkit.fit_curve(lora, curve=tmp_path / "curve.svg"))
    assert len(curve["points"]) > 1 and (tmp_path / "curve.svg").exists()
    assert returned(tlkit.fit_curve, tlkit.fit_curve(lora))["points"] == curve["points"]
    two = [lora, shutil.copytree(lora, tmp_path / "other")]
    shared = returned(tlkit.fit_shared, tlkit.fit_shared(two, tmp_path / "shared", rank=4, apart=1.0))
    assert len(list((tmp_path / "shared").glob("*.tl"))) == 2, shared
    onto = returned(tlkit.fit_onto, tlkit.fit_onto(lora, tmp_path / "onto.tl", tmp_path / "fit.tl"))
    assert onto["output"] == str(tmp_path / "onto.tl")


def test_merge_by_a_method(base: Path, tied: Path, lora: Path, tmp_path: Path) -> None:
    """Breaks where a method's parameters are not those of the command, or a proof does not know its result again."""
    both, out = {tied: 0.5, lora: -1}, tmp_path / "out"
    by = returned(
        tlkit.merge,
        tlkit.merge(base, both, out, method="dare-ties", density=[0.5, 0.8], seed=3, normalize=True, lambda_=1.5),
    )
    assert [a["density"] for a in by["adapters"]] == [0.5, 0.8]
    assert by["method"]["name"] == "dare-ties" and by["method"]["lambda"] == 1.5 and by["method"]["normalize"]
    same = tlkit.verify_merged(
        base, both, out, method="dare-ties", density=[0.5, 0.8], seed=3, normalize=True, lambda_=1.5
    )
    assert returned(tlkit.verify_merged, same)["equal"]
    other = tlkit.verify_merged(base, both, out, method="della", density=0.5, epsilon=0.1, rescale="l1")
    assert not other["equal"]
    with pytest.raises(tlkit.Error, match="density"):
        tlkit.plan_merge(base, both, method="ties")


def test_merge_verify_and_back(base: Path, tied: Path, lora: Path, tmp_path: Path) -> None:
    """Breaks where merges, proofs or weights are not those of the command."""
    plan = returned(tlkit.plan_merge, tlkit.plan_merge(base, tied))
    assert plan["tensors_merged"] == 12 and not (tmp_path / "out").exists()
    merged = returned(tlkit.merge, tlkit.merge(base, tied, tmp_path / "out", threads=1))
    assert merged["total"]["tensors"] == 12 and merged["adapters"][0]["weight"] == 1.0
    assert returned(tlkit.verify_merged, tlkit.verify_merged(base, tied, tmp_path / "out"))["equal"]
    assert not tlkit.verify_merged(base, lora, tmp_path / "out", weights_only=True)["equal"]
    logits = tlkit.verify_logits(base, tied, tmp_path / "out", text="a b c")
    assert returned(tlkit.verify_logits, logits)["equal"]
    weighted = tlkit.merge(base, {tied: 0.5, lora: -1}, tmp_path / "two")
    assert [a["weight"] for a in weighted["adapters"]] == [0.5, -1.0]
    each = returned(tlkit.merge_each, tlkit.merge_each(base, [tied, lora], tmp_path / "each"))
    assert sorted(p.name for p in (tmp_path / "each").iterdir()) == ["lora", "style-tl6"], each
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    assert returned(tlkit.merge, tlkit.merge(base, tied, in_place=True))["undo"] == f"{base}.tlkit-undo"
    assert before != {p.name: p.read_bytes() for p in base.iterdir()}
    returned(tlkit.unmerge, tlkit.unmerge(base))
    assert before == {p.name: p.read_bytes() for p in base.iterdir()}


def test_files_and_adapters(fixtures: Path, tied: Path, lora: Path, tmp_path: Path) -> None:
    """Breaks where a proof raises for a difference, or says nothing of one."""
    assert returned(tlkit.verify_file, tlkit.verify_file(tied))["canonical"]
    assert returned(tlkit.verify_adapters, tlkit.verify_adapters(tied, tied))["equal"]
    assert not tlkit.verify_adapters(tied, lora)["equal"]
    packed = returned(tlkit.pack, tlkit.pack(tied, tmp_path / "z.tl", zstd=True))
    assert packed["root"] == tlkit.Adapter.open(tied).root
    assert returned(tlkit.pack, tlkit.pack(tied, tmp_path / "h.tl", dtype="bf16"))["dtype"] == "BF16"
    for path in (tied, lora, fixtures / "llama-tiny"):
        assert returned(tlkit.inspect, tlkit.inspect(path, tensors=True))["kind"]
    merged = tlkit.merge(fixtures / "llama-tiny", lora, tmp_path / "tuned")["output"]
    got = tlkit.extract(fixtures / "llama-tiny", merged, tmp_path / "e.tl", rank=8, exclude=["lm_head"])
    assert returned(tlkit.extract, got)["bound"] <= got["error"] < 0.5
    full = tlkit.dequantise(fixtures / "quant" / "awq" / "model.safetensors", tmp_path / "full", dry_run=True)
    assert returned(tlkit.dequantise, full)["bytes_out"] > full["bytes_in"]


def test_train_score_and_generate(base: Path, fixtures: Path, tmp_path: Path) -> None:
    """Breaks where a setting does not reach the trainer, or a run is another one than the command's."""
    run = tlkit.train(
        base,
        fixtures / "task" / "train.jsonl",
        tmp_path / "a.tl",
        method="tl5",
        rank=2,
        max_steps=2,
        layers=[0, 2],
        targets=["q", "o"],
        joint=False,
        lr=1e-3,
        global_batch=4,
    )
    returned(tlkit.train, run)
    adapter = tlkit.Adapter.open(run["output"])
    assert (run["steps"], adapter.root, adapter.method, adapter.rank) == (2, run["root"], "tl5", 2)
    assert list(adapter.modules) == [f"model.layers.{i}.self_attn.{m}_proj" for m in "oq" for i in (0, 2)]
    said = returned(tlkit.generate, tlkit.generate(base, "a b", adapter=tmp_path / "a.tl", max_tokens=3))
    assert len(said["generations"]) == 1
    data = tmp_path / "choice.jsonl"
    data.write_text(json.dumps({"prompt": "a", "choices": [" b", " c"], "label": 1}) + "\n")
    scored = returned(tlkit.evaluate, tlkit.evaluate(base, data, "choice"))
    assert scored["items"] == 1 and scored["scores"]["accuracy"] in (0.0, 100.0)
    assert returned(tlkit.params, tlkit.params(model=base, rank=[2, 4]))["methods"][0]["rank"] == 2
    assert returned(tlkit.plan, tlkit.plan(10, tasks=2, model="llama-2-7b"))["adapters"] == 20


def test_an_audit_is_a_table(fixtures: Path, tmp_path: Path) -> None:
    """Breaks where rows are not all of one shape, so that no table takes them."""
    found = tlkit.audit(fixtures / "adapters", parquet=tmp_path / "a.parquet", measure=True, hash=True)
    rows = returned(tlkit.audit, found)["rows"]
    assert len(rows) == 4
    assert all(list(row) == list(rows[0]) for row in rows)
    assert (tmp_path / "a.parquet").read_bytes()[:4] == b"PAR1"
    (tmp_path / "fleet" / "bad").mkdir(parents=True)
    (tmp_path / "fleet" / "bad" / "adapter_config.json").write_text("{")
    assert tlkit.audit(tmp_path / "fleet")["total"]["broken"] == 1
    with pytest.raises(tlkit.Error) as caught:
        tlkit.audit([tmp_path / "fleet"], strict=True)
    assert caught.value.report["total"]["broken"] == 1


def test_a_store(fixtures: Path, tied: Path, tmp_path: Path) -> None:
    """Breaks where a method of the store is another thing than its command, or its report of another shape."""
    store = tlkit.Store.init(tmp_path / "store", grace=60)
    assert repr(store) == f"tlkit.Store({str(tmp_path / 'store')!r})"
    put = returned(store.put, store.put("ann/style", tied))
    assert (put["version"], put["root"]) == (1, tlkit.Adapter.open(tied).root)
    assert store.put("ann/style", tied)["unchanged"]
    store.put("ann/style", fixtures / "adapters" / "lora")
    store.put("bob/style", tied)
    assert [entry["version"] for entry in returned(store.history, store.history("ann/style"))] == [1, 2]
    assert returned(store.tag, store.tag("ann/style@1", "good"))["version"] == 1
    got = returned(store.get, store.get("ann/style:good", tmp_path / "got.tl"))
    assert (tmp_path / "got.tl").read_bytes() == tied.read_bytes() and got["version"] == 1
    store.get("ann/style", tmp_path / "peft", peft=True)
    assert [f"{e['user']}/{e['task']}" for e in returned(store.list, store.list())] == ["ann/style", "bob/style"]
    assert len(store.list("bob")) == 1
    assert returned(store.stat, store.stat())["versions"] == 3
    assert returned(store.fsck, store.fsck())["problems"] == []
    returned(store.fsck, store.fsck(repair=True))
    returned(store.publish, store.publish(tied))
    assert store.quota("ann", 10**6) == {"user": "ann", "quota": 10**6, "own": True}
    assert store.quota(default="none")["quotas"] == {"ann": 10**6}
    out = returned(store.export, store.export(tmp_path / "all", thin=True))
    assert out["adapters"] == 2
    assert returned(store.rm, store.rm("bob/style")) == {"removed": "bob/style"}
    returned(store.gc, store.gc(keep=1))
    with pytest.raises(tlkit.Error) as caught:
        store.get("bob/style", tmp_path / "none.tl")
    assert caught.value.kind == "io" and not (tmp_path / "none.tl").exists()


def test_the_command_is_in_the_package(tied: Path, tmp_path: Path) -> None:
    """Breaks where ``python -m tlkit`` has other streams or exit codes than the program."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "tlkit", *map(str, args)]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)

    seen = run("verify", "file", tied, "--json")
    assert (seen.returncode, json.loads(seen.stdout)) == (0, tlkit.verify_file(tied))
    missing = run("verify", "file", "missing", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["error"]["code"]) == (3, "TL0002")
    assert missing.stderr.startswith("error[TL0002]")
    assert run("verify", "adapters", tied).returncode == 2
    assert run("--version").stdout == f"tlkit {tlkit.__version__}\n"
    assert "hint" not in run("--help").stderr
