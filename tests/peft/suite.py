"""Runs PEFT's own test suite with TiedLora as rows of its parametrised cases, and counts.

    tests/peft/venv/bin/python tests/peft/suite.py [--page spec/peft-suite.md] [FILE …] [-- PYTEST_ARGUMENT …]

Needs tlkit, torch, transformers, PEFT, and `tests/peft/suite.txt` installed (`tests/python/peft.sh` sees to
that), and PyPI for the source of PEFT, which carries the suite. The models that the suite takes from the hub
are made small and local.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = (
    "test_custom_models", "test_decoder_models", "test_encoder_decoder_models", "test_feature_extraction_models",
    "test_seq_classifier", "test_token_classification_qa", "test_config",
)  # fmt: skip


def source(work: Path) -> Path:
    """The unpacked source of the PEFT that is installed."""
    name = f"peft-{version('peft')}"
    if not (work / name / "tests").is_dir():
        work.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps"]
        subprocess.run([*download, name.replace("-", "==")], cwd=work, check=True)
        with tarfile.open(work / f"{name}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    (work / name / "tests" / "__init__.py").touch()
    return work / name


def page(outcomes: dict[str, list[str]]) -> str:
    """What was counted, as Markdown."""
    by_file: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    tests: dict[str, set[str]] = {}
    for name, (outcome, why) in outcomes.items():
        by_file.setdefault(name.split("::")[0].rpartition("/")[2], Counter())[outcome] += 1
        if outcome == "skipped":
            reasons[why] += 1
            tests.setdefault(why.removeprefix("left out: "), set()).add(name.split("::")[-1].split("[")[0])
    rows = [f"| `{name}` | {c['passed']} | {c['failed']} | {c['skipped']} |" for name, c in sorted(by_file.items())]
    total = Counter(outcome for outcome, _ in outcomes.values())
    ours = {why.removeprefix("left out: "): n for why, n in reasons.items() if why.startswith("left out: ")}
    theirs = {why: n for why, n in reasons.items() if not why.startswith("left out: ")}
    table = lambda found: [  # noqa: E731
        f"| {n} | {why} | {', '.join(f'`{t}`' for t in sorted(tests[why]))} |"
        for why, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    return "\n".join([
        "# PEFT's test suite with Tied-LoRA", "",
        f"PEFT {version('peft')}, transformers {version('transformers')}, torch {version('torch')}. Made by",
        "[`tests/peft/suite.py`](../tests/peft/suite.py) `--page`: the suite of PEFT's source, in which every list of cases",
        "has rows of `TiedLoraConfig` in place of its own; rows and models are in `suite_plugin.py` and `suite_models.py`.",
        "Where the suite asks for the class of a method to know what it can do, `TiedLoraConfig` is let in: mixed batches and",
        "beams (LoRA's tests), Conv1D, DeBERTa, merges of Llama and Gemma.",
        "`test_parameters_after_loading_model` has the learning rate 0.01, which the suite has for VBLoRA and RandLoRA, and not 0.5: with that, a product of four trained factors is NaN after three steps.",
        "Tests that are about another method, or about none, are not counted.",
        "", "| file | passed | failed | left out |", "|---|---:|---:|---:|", *rows,
        f"| all | {total['passed']} | {total['failed']} | {total['skipped']} |", "",
        "## Left out by the suite itself", "", "| cases | reason that the suite gives | tests |", "|---:|---|---|", *table(theirs), "",
        "## Left out by `suite_left_out.toml`", "", *(["| cases | reason | tests |", "|---:|---|---|", *table(ours)] if ours else ["None."]), "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="write what was counted here")
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "peft-suite", help="where source and models go")
    parser.add_argument("rest", nargs="*", help="files of the suite; after -- arguments of pytest")
    options = parser.parse_args()
    files = [name for name in options.rest if name.startswith("test_")] or list(FILES)
    rest = [name for name in options.rest if name not in files]
    suite, report = source(options.work), options.work / "report.json"
    cache = options.work.resolve() / "hub"
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    env = {
        **os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path,
        "SUITE_REPORT": str(report.resolve()), "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    if not cache.is_dir():
        subprocess.run([sys.executable, HERE / "suite_models.py"], env=env, check=True)
    arguments = ["-q", "-p", "suite_plugin", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=", *rest]
    command = [sys.executable, "-m", "pytest", *arguments, *(f"tests/{name}.py" for name in files)]
    status = subprocess.run(command, cwd=suite, env=env).returncode
    if options.page:
        options.page.write_text(page(json.loads(report.read_text())))
    return status


if __name__ == "__main__":
    sys.exit(main())
