"""The cache of optimised graphs: the same numbers with and without it, and nothing taken from it that is not its own."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime

from edge_runtime.errors import InputError
from models.onnx import CACHE_VARIABLE, OnnxBackend
from models.optimised import Key, OptimisedCache, cpu_flags, digest
from models.zoo import path as zoo_path

GRAPH = zoo_path("bearing")
DENSE = Path(__file__).parents[1] / "assets" / "models" / "dense.onnx"
PROVIDERS = ("CPUExecutionProvider",)


def run(backend: OnnxBackend, path: Path = GRAPH) -> list[np.ndarray]:
    model = backend.load(path)
    rng = np.random.default_rng(3)
    feeds = [rng.normal(size=[max(size, 1) for size in tensor.shape]).astype(tensor.dtype) for tensor in model.inputs]
    results = [np.array(output) for output in model.run(feeds)]
    model.close()
    return results


def same_bits(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def key(graph: str = "a" * 64, level: str = "all") -> Key:
    return Key(graph, "runtime 1", "cpu", level, PROVIDERS)


def keep(cache: OptimisedCache, key: Key, content: bytes) -> Path:
    partial = cache.partial()
    assert partial is not None
    partial.write_bytes(content)
    entry = cache.keep(key, partial)
    assert entry is not None
    return entry


@pytest.fixture
def cache(tmp_path: Path) -> OptimisedCache:
    return OptimisedCache(tmp_path / "cache")


def entries(cache: OptimisedCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


@pytest.mark.parametrize("graph", [GRAPH, DENSE], ids=["zoo bundle", "single file"])
def test_the_result_is_the_same_bits_without_the_cache_when_filling_it_and_from_it(cache: OptimisedCache, graph: Path) -> None:
    plain = run(OnnxBackend(), graph)
    filling = run(OnnxBackend(cache=cache), graph)
    (entry,) = entries(cache)
    written = entry.stat().st_ino
    cached = run(OnnxBackend(cache=cache), graph)
    assert same_bits(plain, filling)
    assert same_bits(plain, cached)
    assert [path.stat().st_ino for path in entries(cache)] == [written], "the second load takes the entry and writes none"


def test_a_cached_model_says_the_same_of_itself(cache: OptimisedCache) -> None:
    plain = OnnxBackend().load(GRAPH)
    for _ in ("filling", "filled"):
        cached = OnnxBackend(cache=cache).load(GRAPH)
        assert (cached.inputs, cached.outputs) == (plain.inputs, plain.outputs)
        assert cached.precision == plain.precision == "int8"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_entry_is_not_used_and_is_made_anew(cache: OptimisedCache, damage: str) -> None:
    plain = run(OnnxBackend(cache=cache))
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    entry.write_bytes({"flipped": flipped, "cut": whole[:middle], "empty": b"", "foreign": DENSE.read_bytes()}[damage])
    assert same_bits(run(OnnxBackend(cache=cache)), plain)
    (again,) = entries(cache)
    assert again.name == entry.name
    assert again.read_bytes() == whole


def test_an_entry_of_another_key_is_not_used_under_this_name(cache: OptimisedCache) -> None:
    mine, other = key("a" * 64), key("b" * 64)
    entry = keep(cache, other, b"the graph of b")
    stolen = entry.with_name(entry.name.replace(other.name, mine.name))
    entry.rename(stolen)
    assert cache.find(mine) is None
    assert not stolen.exists()


def test_a_link_out_of_the_folder_is_not_followed(cache: OptimisedCache, tmp_path: Path) -> None:
    entry = keep(cache, key(), b"graph")
    outside = tmp_path / "outside.onnx"
    entry.rename(outside)
    entry.symlink_to(outside)
    assert cache.find(key()) is None
    assert outside.exists()


@pytest.mark.parametrize("field", ["graph", "runtime", "cpu", "level", "providers"])
def test_every_part_of_the_key_counts(cache: OptimisedCache, field: str) -> None:
    import msgspec

    keep(cache, key(), b"graph")
    changed = msgspec.structs.replace(key(), **{field: ("Other",) if field == "providers" else "other"})
    assert cache.find(key()) is not None
    assert cache.find(changed) is None


def test_the_least_recently_used_goes_first_and_the_bytes_stay_bounded(tmp_path: Path) -> None:
    cache = OptimisedCache(tmp_path, max_bytes=250)
    old, used, new = (key(letter * 64) for letter in "abc")
    for age, one in ((300, old), (200, used)):
        os.utime(keep(cache, one, bytes(100)), (0, 1_000_000 - age))
    assert cache.find(old) is not None, "a look-up makes the oldest the most recently used"
    keep(cache, new, bytes(100))
    assert (cache.find(old) is not None, cache.find(used) is not None, cache.find(new) is not None) == (True, False, True)
    assert sum(path.stat().st_size for path in entries(cache)) <= cache.max_bytes


def test_what_is_larger_than_the_whole_cache_is_not_kept(tmp_path: Path) -> None:
    cache = OptimisedCache(tmp_path / "cache", max_bytes=10)
    assert same_bits(run(OnnxBackend(cache=cache)), run(OnnxBackend()))
    assert entries(cache) == []


def test_a_graph_that_is_not_the_one_its_manifest_lists_does_not_get_into_the_cache(cache: OptimisedCache, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(GRAPH.parent, bundle, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    OnnxBackend(level="basic").save_optimised(GRAPH, bundle / GRAPH.name)
    assert digest(bundle / GRAPH.name) != digest(GRAPH)
    run(OnnxBackend(cache=cache), bundle / GRAPH.name)
    assert not cache.folder.exists() or entries(cache) == []


def test_a_folder_that_takes_no_files_changes_nothing(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    assert same_bits(run(OnnxBackend(cache=OptimisedCache(occupied))), run(OnnxBackend()))


def test_leftovers_of_a_process_that_died_are_swept(cache: OptimisedCache) -> None:
    stale = cache.partial()
    assert stale is not None
    os.utime(stale, (0, 0))
    keep(cache, key(), b"graph")
    assert not stale.exists()


def test_a_cache_too_small_for_two_that_many_share(tmp_path: Path) -> None:
    """Each keeps removing what the others have just kept; nobody is the worse for it."""
    sizes = OptimisedCache(tmp_path / "sizes")
    plain = {graph: run(OnnxBackend(cache=sizes), graph) for graph in (GRAPH, DENSE)}
    cache = OptimisedCache(tmp_path / "cache", max_bytes=max(path.stat().st_size for path in entries(sizes)))

    def load(number: int) -> bool:
        graph = (GRAPH, DENSE)[number % 2]
        return same_bits(run(OnnxBackend(cache=cache), graph), plain[graph])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load, range(40)))
    assert sum(path.stat().st_size for path in entries(cache)) <= cache.max_bytes


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    run(OnnxBackend())
    assert len(list((tmp_path / "named").iterdir())) == 1


async def test_the_probe_leaves_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    await OnnxBackend().probe(GRAPH)
    assert not (tmp_path / "named").exists()


def test_an_absent_execution_provider_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"`NoSuchProvider` is no execution provider .*CPUExecutionProvider"):
        OnnxBackend(providers=["NoSuchProvider"]).load(GRAPH)


def test_the_key_holds_what_this_machine_is() -> None:
    assert len(cpu_flags()) == 16
    assert cpu_flags() == cpu_flags()
    assert onnxruntime.__version__ in OnnxBackend()._key(GRAPH).runtime
