"""Long work: seen, stopped, and beside other work."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tlkit

SLOW = """
import sys, tlkit
base, data, out = sys.argv[1:]
def say(done, total, what):
    print(done, flush=True)
try:
    tlkit.train(base, data, out, max_steps=100000, global_batch=4, checkpoint_every=1, progress=say)
except KeyboardInterrupt:
    print("stopped", flush=True)
    sys.exit(7)
"""


def small(fixtures: Path, base: Path, out: Path, **more: object) -> object:
    """A run of a few steps."""
    data = fixtures / "task" / "train.jsonl"
    return tlkit.train(base, data, out, **{"max_steps": 4, "global_batch": 4, **more})  # type: ignore[arg-type]


def test_ctrl_c_stops_the_work(base: Path, fixtures: Path, tmp_path: Path) -> None:
    """Breaks where Ctrl-C is not seen while Rust works, or leaves an output that is not whole."""
    out = tmp_path / "a.tl"
    words = [sys.executable, "-c", SLOW, base, fixtures / "task" / "train.jsonl", out]
    child = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while (line := child.stdout.readline()) and int(line) < 1:
        pass
    asked = time.monotonic()
    child.send_signal(signal.SIGINT)
    said = child.stdout.read()
    assert (child.wait(timeout=30), said.split()[-1]) == (7, "stopped")
    assert time.monotonic() - asked < 10
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name not in ("base", "a.tl.run")]


def test_progress_is_told(base: Path, fixtures: Path, tmp_path: Path) -> None:
    """Breaks where a callback is not called, counts back, or is called by another thread."""
    told: list[tuple[int, int | None, str]] = []
    threads = set()

    def progress(done: int, total: int | None, what: str) -> None:
        told.append((done, total, what))
        threads.add(threading.get_ident())

    small(fixtures, base, tmp_path / "a.tl", progress=progress)
    assert told[-1] == (4, 4, "train")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert threads == {threading.get_ident()}
    told.clear()
    tlkit.merge(base, tmp_path / "a.tl", tmp_path / "out", progress=progress)
    assert told[-1][0] == told[-1][1] and told[-1][2] == "merging"


def test_an_exception_of_the_callback_stops_the_work(base: Path, fixtures: Path, tmp_path: Path) -> None:
    """Breaks where work goes on although the callback failed, or its exception is lost."""

    def progress(done: int, total: int | None, what: str) -> None:
        raise LookupError("enough")

    began = time.monotonic()
    with pytest.raises(LookupError, match="enough"):
        small(fixtures, base, tmp_path / "a.tl", progress=progress, max_steps=100000)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "a.tl").exists()


def test_other_threads_go_on(base: Path, fixtures: Path, tmp_path: Path) -> None:
    """Breaks where the interpreter's lock is held while Rust works."""
    ended = threading.Event()
    ticks = 0

    def work() -> None:
        small(fixtures, base, tmp_path / "a.tl", max_steps=8)
        ended.set()

    worker = threading.Thread(target=work)
    began = time.monotonic()
    worker.start()
    while not ended.wait(0.001):
        ticks += 1
    worker.join()
    took = time.monotonic() - began
    # Each tick takes a millisecond and what the system adds to it.
    assert ticks > took * 50, (ticks, took)


def test_calls_at_the_same_time(base: Path, fixtures: Path, tied: Path, tmp_path: Path) -> None:
    """Breaks where two calls share what is one call's own: progress, an end, permissions."""
    private = tmp_path / "private.tl"
    private.write_bytes(tied.read_bytes())
    private.chmod(0o600)
    before = os.umask(0o022)
    os.umask(0o022)
    failed: list[BaseException] = []

    def pack(i: int) -> None:
        try:
            tlkit.pack(private, tmp_path / f"{i}.tl", zstd=True)
            tlkit.convert.tied_to_peft(private, tmp_path / f"{i}.peft")
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=pack, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.umask(before)
    assert not failed
    # What was closed to others is so in another form, and what Python writes is as it was.
    assert after == 0o022
    weights = [tmp_path / f"{i}.peft" / "adapter_model.safetensors" for i in range(8)]
    assert {p.stat().st_mode & 0o777 for p in weights} == {0o600}


def test_results_do_not_depend_on_threads(base: Path, fixtures: Path, lora: Path, tmp_path: Path) -> None:
    """Breaks where a pool of its own changes bytes, or waits for itself."""
    for threads in (1, 3):
        out = tmp_path / str(threads)
        out.mkdir()
        small(fixtures, base, out / "a.tl", threads=threads)
        tlkit.fit(lora, out / "fit.tl", rank=2, threads=threads)
        tlkit.merge(base, out / "a.tl", out / "merged", threads=threads)
        tlkit.verify_merged(base, out / "a.tl", out / "merged", threads=threads)
        tlkit.audit(fixtures / "adapters", threads=threads)
    for name in ("a.tl", "fit.tl", "merged/model-00001-of-00002.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


def test_nothing_is_printed(
    base: Path, fixtures: Path, tied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Breaks where a call writes to the streams of its program."""
    small(fixtures, base, tmp_path / "a.tl")
    tlkit.merge(base, tied, tmp_path / "out")
    tlkit.audit(fixtures)
    with pytest.raises(tlkit.Error):
        tlkit.verify_file(base)
    assert capfd.readouterr() == ("", "")
