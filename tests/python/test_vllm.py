"""The plug-in for vLLM, without vLLM: only its abstract class and registry, as its sources have them."""

import abc
import asyncio
import dataclasses
import json
import os
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tlkit
from tlkit import vllm


@dataclasses.dataclass
class Request:
    """What a resolver gives back."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class AbstractResolver(abc.ABC):
    """What a resolver is."""

    @abc.abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Request | None:
        """Resolve a name."""


class Registry:
    """Where resolvers are registered."""

    def __init__(self) -> None:
        """Begin without any."""
        self.resolvers: dict[str, Any] = {}

    def get_supported_resolvers(self) -> set[str]:
        """Names."""
        return set(self.resolvers)

    def register_resolver(self, name: str, resolver: Any) -> None:
        """Take a resolver in."""
        self.resolvers[name] = resolver


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """VLLM's modules, as far as the plug-in imports them."""
    registry = Registry()
    package, lora = types.ModuleType("vllm"), types.ModuleType("vllm.lora")
    request, resolver = types.ModuleType("vllm.lora.request"), types.ModuleType("vllm.lora.resolver")
    request.LoRARequest = Request  # type: ignore[attr-defined]
    resolver.LoRAResolver = AbstractResolver  # type: ignore[attr-defined]
    resolver.LoRAResolverRegistry = registry  # type: ignore[attr-defined]
    for module in (package, lora, request, resolver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield registry


@pytest.fixture
def store(tmp_path: Path, tied: Path) -> tlkit.Store:
    """A store with ``alice/style``."""
    store = tlkit.Store.init(tmp_path / "store")
    store.put("alice/style", tied)
    return store


@pytest.fixture
def resolver(registry: Registry, store: tlkit.Store, tmp_path: Path) -> vllm.Resolver:
    """A resolver over it."""
    return vllm.Resolver(store.url, tmp_path / "cache")


def resolve(resolver: vllm.Resolver, base: Path | str, name: str) -> Any:
    """What a request for a name gets."""
    return asyncio.run(resolver.resolve_lora(str(base), name))


def test_a_name_is_its_adapter(resolver: vllm.Resolver, base: Path, store: tlkit.Store, lora: Path) -> None:
    """Breaks where a name leads to another adapter, a version to an old folder, or one root to two folders."""
    first = resolve(resolver, base, "alice/style")
    config = json.loads(Path(first.lora_path, "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and "alpha_pattern" not in config
    assert resolve(resolver, base, "alice/style@1").lora_path == first.lora_path
    store.put("alice/style", lora)
    second = resolve(resolver, base, "alice/style")
    assert second.lora_path != first.lora_path == resolve(resolver, base, "alice/style@1").lora_path
    store.tag("alice/style@1", "prod")
    assert resolve(resolver, base, "alice/style:prod").lora_path == first.lora_path
    assert sorted(p.name for p in resolver.cache.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    "name",
    ["alice/none", "none/style", "alice/style@9", "alice/style:none", "alice", "-x/y", "../a/b", "a/../b", "a..b/c"],
)
def test_what_is_not_there_is_none(resolver: vllm.Resolver, base: Path, name: str) -> None:
    """Breaks where a client's name is an error of the server, or leads out of the store."""
    assert resolve(resolver, base, name) is None


def test_what_cannot_be_served_says_no_more_than_its_name(
    resolver: vllm.Resolver, base: Path, store: tlkit.Store, fixtures: Path, tmp_path: Path
) -> None:
    """Breaks where an adapter of another base is served, or a client learns paths of the server."""
    for other in ["qwen2", "llama-gqa-tied"]:
        with pytest.raises(vllm.NotServed) as e:
            resolve(resolver, fixtures / "models" / other, "alice/style")
        assert str(tmp_path) not in str(e.value) and "alice/style" in str(e.value)
        assert e.value.__context__ is None
    fitted = tmp_path / "fitted.tl"
    tlkit.convert.peft_to_tied(fixtures / "adapters" / "lora", fitted, base=base)
    store.put("bob/own", fitted)
    assert resolve(resolver, base, "bob/own") is not None
    resolver.cache = tmp_path / "other"
    resolver.cache.mkdir()
    for shard in base.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        shard.write_bytes(data[:header] + bytes(len(data) - header))
    with pytest.raises(vllm.NotServed, match="TL0505"):
        resolve(resolver, base, "bob/own")
    shapes = vllm.Resolver(store.url, resolver.cache, check="shapes")
    assert resolve(shapes, base, "bob/own") is not None
    for blob in Path(store.url).rglob("*"):
        if blob.is_file() and blob.stat().st_size > 1000:
            blob.write_bytes(b"\0" * blob.stat().st_size)
    with pytest.raises(vllm.NotServed) as e:
        resolve(resolver, fixtures / "llama-tiny", "alice/style")
    assert str(tmp_path) not in str(e.value)


def test_many_at_once_make_one_folder(resolver: vllm.Resolver, base: Path) -> None:
    """Breaks where two requests disturb each other, or leave something behind."""
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: resolver.bring(str(base), "alice/style"), range(16)))
    assert len(paths) == 1 and [*resolver.cache.iterdir()] == [*paths]


def test_it_is_registered_once(registry: Registry, store: tlkit.Store, tmp_path: Path, monkeypatch: Any) -> None:
    """Breaks where vLLM, which loads plug-ins several times, gets several resolvers, or one without a store."""
    monkeypatch.delenv("TLKIT_STORE", raising=False)
    vllm.register()
    assert not registry.resolvers
    monkeypatch.setenv("TLKIT_STORE", store.url)
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "made" / "cache"))
    vllm.register()
    resolver = registry.resolvers["tlkit"]
    vllm.register()
    assert registry.resolvers["tlkit"] is resolver and isinstance(resolver, AbstractResolver)
    assert os.path.isdir(tmp_path / "made" / "cache")
    monkeypatch.setenv("TLKIT_CHECK", "everything")
    registry.resolvers.clear()
    with pytest.raises(ValueError, match="TLKIT_CHECK"):
        vllm.register()


def test_signatures_are_asked_for(registry: Registry, store: tlkit.Store, base: Path, tmp_path: Path) -> None:
    """Breaks where an unsigned version is served although keys are trusted."""
    key = tmp_path / "public.pem"
    key.write_text(
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
        "-----END PUBLIC KEY-----\n"
    )
    resolver = vllm.Resolver(store.url, tmp_path / "cache", keys=[key])
    with pytest.raises(vllm.NotServed, match="TL0711"):
        resolve(resolver, base, "alice/style")
