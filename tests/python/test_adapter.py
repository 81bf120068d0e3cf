"""Adapters as objects."""

import gc
import json
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tlkit


def test_import_brings_numpy_alone() -> None:
    """Breaks where importing the package imports what only some users have."""
    assert "torch" not in sys.modules


def test_what_an_adapter_is(tied: Path) -> None:
    """Breaks where a property says another thing than the command."""
    adapter = tlkit.Adapter.open(tied)
    seen = tlkit.inspect(tied)
    assert (adapter.root, adapter.method, adapter.source) == (seen["identity"], "tl6", ".tl")
    assert adapter.parameters == seen["parameters"] == adapter.trained_parameters
    assert adapter.rank == 4
    assert adapter.targets == [f"model.layers.{{}}.self_attn.{m}_proj" for m in "kqv"]
    assert adapter.modules["model.layers.0.self_attn.q_proj"] == (64, 64)
    assert adapter.modules["model.layers.3.self_attn.v_proj"] == (32, 64)
    assert adapter.notes == []
    assert repr(adapter).startswith("<tlkit.Adapter tl6 rank=4 modules=12 root=sha256:05d6")


def test_tensors_are_not_copied(tied: Path) -> None:
    """Breaks where tensors are copied, can be written, or go away with their adapter."""
    adapter = tlkit.Adapter.open(tied)
    tensors, again = adapter.tensors(), adapter.tensors()
    del adapter
    gc.collect()
    assert {name: (a.dtype.name, a.shape) for name, a in tensors.items()} == {
        "g0.A": ("float32", (4, 64)),
        "g0.B": ("float32", (128, 4)),
        "g0.u": ("float32", (4, 4)),
        "g0.v": ("float32", (4, 128)),
    }
    for name, array in tensors.items():
        assert not array.flags.writeable and not array.flags.owndata, name
        assert array.__array_interface__["data"] == again[name].__array_interface__["data"], name
    before = {name: array.copy() for name, array in tensors.items()}
    for _ in range(3):
        tlkit.Adapter.open(tied).delta("model.layers.0.self_attn.q_proj")
    assert all((tensors[name] == before[name]).all() for name in tensors)


def test_delta_is_the_product(tied: Path) -> None:
    """Breaks where the update is transposed, not scaled, or of another layer."""
    adapter = tlkit.Adapter.open(tied)
    t, group = adapter.tensors(), adapter.manifest["groups"][0]
    first = 0
    for target in group["targets"]:
        rows = slice(first, first + target["out"])
        first += target["out"]
        for i, layer in enumerate(group["layers"]):
            delta = adapter.delta(target["module"].replace("{}", str(layer)))
            scale = group["alpha"] / group["rank"]
            expected = scale * (t["g0.v"][i, rows, None] * t["g0.B"][rows]) @ (t["g0.u"][i, :, None] * t["g0.A"])
            assert (delta.dtype, delta.shape) == (np.float32, expected.shape)
            np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-8)
    with pytest.raises(tlkit.Error, match="no module") as caught:
        adapter.delta("model.layers.9.self_attn.q_proj")
    assert caught.value.kind == "usage"


def test_delta_is_what_a_merge_adds(tied: Path, base: Path, tmp_path: Path) -> None:
    """Breaks where the object and the command compute with different numbers."""
    tlkit.merge(base, tied, tmp_path / "merged")
    name = "model.layers.1.self_attn.k_proj"
    before, after = (checkpoint_tensor(folder, f"{name}.weight") for folder in (base, tmp_path / "merged"))
    delta = tlkit.Adapter.open(tied).delta(name)
    assert delta.any() and (bf16(before + delta) == after).all()


def checkpoint_tensor(folder: Path, name: str) -> np.ndarray:
    """A BF16 tensor of a sharded checkpoint as float32, read without any library."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    data = (folder / index["weight_map"][name]).read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    assert entry["dtype"] == "BF16"
    start, end = (8 + length + n for n in entry["data_offsets"])
    bits = np.frombuffer(data[start:end], "<u2").reshape(entry["shape"]).astype(np.uint32)
    return (bits << 16).view(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """Values rounded to bfloat16, to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).view(np.float32)


def test_parts_make_the_same_adapter(fixtures: Path) -> None:
    """Breaks where what an adapter says of itself does not make it again: every golden file, whatever its kind."""
    roots = 0
    for file in sorted((fixtures / "v1").glob("*.tl")):
        if "external" in file.name:
            continue
        blobs = fixtures / "v1" / "blobs" if "thin" in file.name else None
        adapter = tlkit.Adapter.open(file, blobs=blobs)
        again = tlkit.Adapter.from_parts(adapter.manifest, adapter.tensors())
        if any("coded" in tensor for tensor in adapter.manifest["tensors"].values()):
            # They are given, and taken, as the numbers that they stand for.
            for module in adapter.modules:
                assert np.array_equal(again.delta(module), adapter.delta(module)), file.name
            continue
        assert again.root == adapter.root, file.name
        roots += 1
    assert roots > 5


def test_coded_numbers_are_exact(lora: Path, tmp_path: Path) -> None:
    """Breaks where a coded adapter is other numbers in Python than those that are stored in f32."""
    coded, floats = tmp_path / "coded.tl", tmp_path / "floats.tl"
    packed = tlkit.pack(lora, coded, error=0.05)
    assert packed["error"] <= 0.05 and packed["bits"] > packed["bound"]
    tlkit.pack(coded, floats, dtype="f32")
    one, two = tlkit.Adapter.open(coded), tlkit.Adapter.open(floats)
    assert one.root == packed["root"] != two.root
    for name, values in two.tensors().items():
        assert values.dtype == np.float32
        assert np.array_equal(one.tensors()[name], values), name
    for module in two.modules:
        assert np.array_equal(one.delta(module), two.delta(module)), module


def test_parts_of_any_names_and_order(tied: Path, tmp_path: Path) -> None:
    """Breaks where names, digests, order or spelling of what is given matter."""
    adapter = tlkit.Adapter.open(tied)
    group = dict(adapter.manifest["groups"][0])
    for part in "ABuv":
        group[part] = {"A": "down", "B": "up"}.get(part, f"the {part}")
    group["alpha"] = float(group["alpha"])
    tensors = {group[part]: adapter.tensors()[f"g0.{part}"].astype(">f4") for part in "vuBA"}
    more = {k: v for k, v in adapter.manifest.items() if k in ("base", "task", "provenance")}
    again = tlkit.Adapter.from_parts({"groups": [group], **more}, tensors)
    assert again.root == adapter.root
    assert again.save(tmp_path / "again.tl") == adapter.root
    assert (tmp_path / "again.tl").read_bytes() == tied.read_bytes()


def test_a_seed_needs_no_array() -> None:
    """Breaks where a frozen factor has to be given although its seed is, or a lie about it is taken."""
    seed = {"generator": "chacha20-uniform/1", "key": "07" * 32, "step": "33000000"}
    step = np.frombuffer(bytes.fromhex(seed["step"])[::-1], "<f4")[0]
    frozen = tlkit.seeded(seed["key"], step, (2, 6))
    group = {
        "A": "a",
        "B": "b",
        "alpha": 2,
        "in": 6,
        "layers": [0, 1],
        "rank": 2,
        "scaling": "alpha/rank",
        "targets": [{"module": "m.{}.q", "out": 3}],
        "trained": ["B"],
    }
    b = np.ones((3, 2), np.float32)
    tensors = {"a": {"dtype": "F32", "shape": [2, 6], "seed": seed}}
    made = tlkit.Adapter.from_parts({"groups": [group], "tensors": tensors}, {"b": b})
    given = tlkit.Adapter.from_parts({"groups": [group], "tensors": tensors}, {"b": b, "a": frozen})
    assert made.root == given.root and made.method == "tl3"
    assert (made.tensors()["g0.A"] == frozen).all()
    assert (made.delta("m.1.q") == b @ frozen).all()
    with pytest.raises(tlkit.Error) as caught:
        tlkit.Adapter.from_parts({"groups": [group], "tensors": tensors}, {"b": b, "a": frozen * 2})
    assert caught.value.kind == "malformed" and caught.value.tensor == "a"


def test_parts_that_do_not_fit(tied: Path) -> None:
    """Breaks where something given is silently ignored, or something missing made up."""
    adapter = tlkit.Adapter.open(tied)
    manifest, tensors = adapter.manifest, adapter.tensors()
    cases = [
        (manifest, tensors | {"more": tensors["g0.A"]}, "TL0209"),
        (manifest | {"groups": []}, tensors, "TL0209"),
        (manifest, tensors | {"g0.A": tensors["g0.A"].astype(np.float64)}, "TL0006"),
        (manifest, tensors | {"g0.A": tensors["g0.A"][:, :5]}, None),
        (manifest, tensors | {"g0.A": np.full_like(tensors["g0.A"], np.nan)}, None),
        ({"groups": 5}, {}, "TL0205"),
    ]
    for given, arrays, code in cases:
        with pytest.raises(tlkit.Error) as caught:
            tlkit.Adapter.from_parts(given, arrays)
        assert code in (None, caught.value.code), caught.value


def test_peft_directories(fixtures: Path, tmp_path: Path) -> None:
    """Breaks where a folder and its ``.tl`` are different adapters, or what is written does not open."""
    peft = tlkit.Adapter.open(fixtures / "adapters" / "style-peft")
    assert (peft.source, peft.method, peft.rank) == ("lora", "lora", 4)
    root = peft.save(tmp_path / "kept.tl", zstd=True)
    kept = tlkit.Adapter.open(tmp_path / "kept.tl")
    assert kept.root == root
    vera = tlkit.Adapter.open(fixtures / "adapters" / "vera")
    assert (vera.source, vera.method) == ("vera", "vera")
    for module in peft.modules:
        assert (peft.delta(module) == kept.delta(module)).all()
    kept.to_peft(tmp_path / "peft")
    kept.to_peft(tmp_path / "portable", portable=True, dtype="f32")
    assert tlkit.verify_adapters(tmp_path / "peft", tmp_path / "kept.tl", tolerance=0.0)["equal"]
    assert tlkit.verify_adapters(tmp_path / "portable", tmp_path / "kept.tl")["equal"]
    with pytest.raises(tlkit.Error) as caught:
        kept.to_peft(tmp_path / "peft")
    assert caught.value.kind == "io"
    with pytest.raises(tlkit.Error, match="portable"):
        kept.to_peft(tmp_path / "other", portable=True, as_="vera")


def test_half_precision_and_integers(fixtures: Path) -> None:
    """Breaks where bf16 or int8 are other numbers in NumPy than in the file."""
    bf16 = tlkit.Adapter.open(fixtures / "v1" / "lora-rslora-bf16.tl")
    kinds = {array.dtype.name for array in bf16.tensors().values()}
    try:
        import ml_dtypes  # noqa: F401

        assert kinds == {"bfloat16"}
    except ImportError:
        assert kinds == {"uint16"}
    module = next(iter(bf16.modules))
    assert bf16.delta(module).any()
    bits = {name: a.view(np.uint16) for name, a in bf16.tensors().items()}
    assert tlkit.Adapter.from_parts(bf16.manifest, bits).root == bf16.root
    int8 = tlkit.Adapter.open(fixtures / "v1" / "i8-rows.tl")
    assert {"int8", "float32"} <= {array.dtype.name for array in int8.tensors().values()}


def test_seeded_values() -> None:
    """Breaks where a generator in Python and tlkit's are different ones: RFC 8439's first block for a zero key."""
    words = np.array([0xADE0B876, 0x903DF1A0, 0xE56A5D40, 0x28BD8653], np.uint64)
    expected = ((words >> 8).astype(np.int64) - 2**23).astype(np.float32) * np.float32(0.5)
    values = tlkit.seeded(bytes(32), 0.5, (2, 2))
    assert (values.dtype, values.shape) == (np.float32, (2, 2))
    assert (values.ravel() == expected).all()
    with pytest.raises(tlkit.Error):
        tlkit.seeded(bytes(32), -1.0, (2, 2))
    with pytest.raises(tlkit.Error):
        tlkit.seeded(bytes(32), 1.0, (2**40, 2**40))


def test_pickle_keeps_an_adapter(tied: Path) -> None:
    """Breaks where an adapter cannot go to another process."""
    adapter = tlkit.Adapter.open(tied)
    again = pickle.loads(pickle.dumps(adapter))
    assert again.root == adapter.root
    with pytest.raises(TypeError, match="open"):
        tlkit.Adapter()


def test_threads_share_an_adapter(tied: Path) -> None:
    """Breaks where one object cannot serve several threads at a time."""
    adapter = tlkit.Adapter.open(tied)
    expected = {module: adapter.delta(module) for module in adapter.modules}
    wrong: list[str] = []

    def work() -> None:
        for module in expected:
            if not (adapter.delta(module) == expected[module]).all():
                wrong.append(module)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
