"""INT8 against optimised float on this CPU, and what our backend adds to the bare runtime call.

    python -m benchmarks.bench_models

Three networks with random weights (`benchmarks.graphs`), quantized per channel to U8S8 QDQ by onnxruntime.quantization. Both forms run
on our `onnx` backend with one thread and full graph optimisation, in turns; a figure is the best round's median, so that a neighbour's
noise does not count. A ratio compares two figures of one run. Then a bundle of 5 MB into the store, with its probe, and the models of a
gateway's start with and without the cache of optimised graphs. Needs the extra `quantize`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import graphs
from benchmarks.rows import Row, row
from edge_runtime.bundle import Golden, Manifest, Port, write_manifest
from edge_runtime.config.deployment import Deployment, ModelSpec
from edge_runtime.ports import LoadedModel
from edge_runtime.serving import GraphCache, Probed, serve
from models import archive, golden
from models.onnx import OnnxBackend
from models.optimised import OptimisedCache
from models.store import ModelStore

INSTALLS = 5
ROUND_S = 0.4
ROUNDS = 8
NETWORKS: tuple[tuple[str, Callable[[Path], Path], str], ...] = (
    ("1D-CNN 3x128", graphs.cnn_1d, ">= 1.5"),
    ("MobileNetV2-shaped 224", graphs.mobilenet_v2, ">= 1.8"),
    ("ResNet-50-shaped 224", graphs.resnet50, ">= 2.8"),
)


def run() -> dict[str, Any]:
    """Ratios and milliseconds of each network, then the overhead in us, and what installing and starting cost."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, build, target) in enumerate(NETWORKS):
            source = build(Path(folder) / f"network{number}.onnx")
            rows += _speed(name, source, quantize(source), target)
        rows += _overhead(Path(folder) / "network0-int8.onnx")
        rows += _install(Path(folder) / "network1-int8.onnx")
        rows += _load("MobileNetV2-shaped INT8", Path(folder) / "network1-int8.onnx")
        rows += _load("ResNet-50-shaped float", Path(folder) / "network2.onnx")
    return {"rows": rows}


def quantize(source: Path) -> Path:
    """Per channel, activations uint8, weights int8, as QDQ; calibrated on noise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._feeds = _noise(source)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    logging.getLogger().setLevel(logging.ERROR)
    prepared, target = source.with_name(f"{source.stem}-prepared.onnx"), source.with_name(f"{source.stem}-int8.onnx")
    with contextlib.redirect_stdout(sys.stderr):
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Noise(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return target


def _noise(source: Path, count: int = 4) -> Iterator[dict[str, Any]]:
    model = OnnxBackend().load(source)
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in model.inputs}


def _speed(name: str, source: Path, quantized: Path, target: str) -> list[Row]:
    feeds = list(next(_noise(source)).values())
    models = [OnnxBackend().load(path) for path in (source, quantized)]
    floating_ms, int8_ms = (best * 1e3 for best in interleaved([_call(model, feeds) for model in models]))
    return [
        row(f"{name}: INT8 over optimised float", floating_ms / int8_ms, "x", None, target),
        row(f"{name}: INT8 p50, float as reference", int8_ms, "ms", floating_ms),
        row(f"{name}: INT8 file, float as reference", quantized.stat().st_size / 2**20, "MiB", source.stat().st_size / 2**20),
    ]


def _overhead(path: Path) -> list[Row]:
    """Our `run` and the bare `session.run` on the same session, call by call in turns."""
    model = OnnxBackend().load(path)
    session: Any = model._session  # type: ignore[attr-defined]
    feed = next(_noise(path))
    names, feeds = [tensor.name for tensor in model.outputs], list(feed.values())
    ours, bare = interleaved([_call(model, feeds), lambda: session.run(names, feed)])
    return [
        row("our backend over the bare session.run", (ours - bare) * 1e6, "us", None, "<= 5"),
        row("our backend's run, bare session.run as reference", ours * 1e6, "us", bare * 1e6),
    ]


def _load(name: str, graph: Path) -> list[Row]:
    """Loading a bundle with the cache of optimised graphs filled, and without it."""
    folder = graph.with_suffix("")
    folder.mkdir()
    path = graph.rename(folder / graph.name)
    write_manifest(
        folder, Manifest(schema=1, name="m", version=0, model=path.name, files={}, inputs=(), outputs=(), license="none"), [path.name]
    )
    cached, plain = OnnxBackend(cache=OptimisedCache(folder / "cache")), OnnxBackend()
    with_cache, without = interleaved([lambda: cached.load(path).close(), lambda: plain.load(path).close()])
    return [row(f"load {name}, from the cache", with_cache * 1e3, "ms", without * 1e3)]


def _install(graph: Path) -> list[Row]:
    """A bundle of 5 MB (graph and two golden runs) from its tar into the store, then its probe; and a gateway's start with it."""
    with tempfile.TemporaryDirectory() as folder:
        tar = _packed(graph, Path(folder))
        alone_s, both_s = [], []
        for number in range(INSTALLS):
            store = ModelStore(Path(folder) / f"store{number}")
            begin = time.perf_counter()
            bundle = store.install(tar, max_bytes=2**30)
            alone_s.append(time.perf_counter() - begin)
            asyncio.run(OnnxBackend().probe(bundle.model))
            both_s.append(time.perf_counter() - begin)
        size_mb = tar.stat().st_size / 1e6
        return [
            row(f"install of a {size_mb:.1f} MB bundle with its probe", min(both_s), "s", None, "< 1"),
            row("of it unpacking, hashing and fsync", min(alone_s), "s"),
            *_start(Path(folder), store, bundle.digest),
        ]


def _packed(graph: Path, folder: Path) -> Path:
    source = folder / "bundle"
    source.mkdir()
    path = Path(shutil.copy(graph, source / "model.onnx"))
    model = OnnxBackend().load(path)
    golden.record(model, [list(feed.values()) for feed in _noise(path, 2)], source / golden.NAME)
    ports = [tuple(Port(name=t.name, shape=t.shape, dtype=t.dtype) for t in tensors) for tensors in (model.inputs, model.outputs)]
    manifest = Manifest(
        schema=1,
        name="m",
        version=0,
        model=path.name,
        files={},
        inputs=ports[0],
        outputs=ports[1],
        golden=Golden(file=golden.NAME, tolerance=0.05),
        license="none",
    )
    archive.pack(write_manifest(source, manifest, [path.name, golden.NAME]), folder / "bundle.tar")
    return folder / "bundle.tar"


def _start(folder: Path, store: ModelStore, digest: str) -> list[Row]:
    """A gateway's models from reference to ready: the very first time, then with the probe remembered, from the cache and without it."""
    deployment = Deployment(schema=1, models={"m": ModelSpec(digest=digest)})
    cache = GraphCache(folder / "graphs", 2**30)

    async def known(key: str) -> bool:
        return True

    async def unknown(key: str) -> bool:
        return False

    def start(probed: Probed, cache: GraphCache | None) -> None:
        served = asyncio.run(serve(deployment, folder, store.root, probed=probed, passed=lambda key: None, cache=cache))
        served.require_all()
        served.close()

    begin = time.perf_counter()
    start(unknown, cache)
    first_s = time.perf_counter() - begin
    cached_s, plain_s = interleaved([lambda: start(known, cache), lambda: start(known, None)])
    return [
        row("gateway start: this model verified and loaded from the cache, without it as reference", cached_s * 1e3, "ms", plain_s * 1e3),
        row("gateway start: the first time, with the probe", first_s * 1e3, "ms"),
    ]


def _call(model: LoadedModel, feeds: list[Any]) -> Callable[[], Any]:
    return lambda: model.run(feeds)


def interleaved(calls: list[Callable[[], Any]]) -> list[float]:
    """Seconds of each call: the lowest of the rounds' medians, the calls taking turns within every round.

    Before each timed call the same call goes once untimed: the other has just been through the caches.
    """
    for call in calls:
        call()
    rounds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        times: list[list[float]] = [[] for _ in calls]
        stop = time.perf_counter() + ROUND_S * len(calls)
        while time.perf_counter() < stop:
            for call, taken in zip(calls, times, strict=True):
                call()
                begin = time.perf_counter()
                call()
                taken.append(time.perf_counter() - begin)
        for medians, taken in zip(rounds, times, strict=True):
            medians.append(statistics.median(taken))
    return [min(medians) for medians in rounds]


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
