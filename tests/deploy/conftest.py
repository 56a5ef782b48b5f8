"""A gateway on the simulated plant, in this process, and small models that behave, or misbehave only after start."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.app import Gateway
from edge_runtime.bundle import Bundle, Golden, Manifest, Port, write_manifest
from edge_runtime.cli.run import read_deployment
from edge_runtime.config.load import load_gateway
from edge_runtime.deploy.disk import Disk
from edge_runtime.types import DesiredDeployment, Notice
from models.archive import pack
from models.qdq import Graph

SIZE = 64
WAIT_S = 30.0

GATEWAY = """\
schema: 1
gateway: {id: gw, tenant: test}
adapters:
  plant: {driver: simulated, options: {seed: 7, rate_hz: 6400, block: 64}}
sensors:
  vibration: {adapter: plant, channel: pump/vibration}
actuators:
  valve: {adapter: plant, channel: pump/valve}
deployment: factory.yaml
"""

FACTORY = """\
schema: 1
sensors: {vibration: {unit: m/s2, rate_hz: 6400}}
pipelines: {level: {input: [vibration], window: {size: 64}, output: level}}
actuators: {valve: {safe_state: closed}}
"""


def document(bundle: Bundle | None, *, probation_s: float = 0.0, rules: str = "", health: str = "", extra: str = "") -> str:
    """A deployment on one model, or on none."""
    text = "schema: 1\nsensors: {vibration: {unit: m/s2, rate_hz: 6400}}\nactuators: {valve: {safe_state: closed}}\n"
    if bundle is not None:
        text += f"models: {{m: {{digest: '{bundle.digest}', slo_ms: 1000}}}}\n"
        text += f"pipelines: {{p: {{input: [vibration], window: {{size: {SIZE}}}, model: m, output: p}}}}\n"
    return text + f"health: {{probation_s: {probation_s}{health}}}\n{rules}{extra}"


def desired(revision: int, text: str, *bundles: Bundle) -> DesiredDeployment:
    """As the sync agent hands it over."""
    data = text.encode()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return DesiredDeployment(revision, digest, data, 2**62, tuple(bundle.digest for bundle in bundles))


class Models:
    """Makes bundles in a folder; each classifies one window of SIZE samples as `low` or `high`, or gives a number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sound(self, name: str = "sound", gain: float = 50.0) -> Bundle:
        """By the sign of the first sample: half of the windows each."""

        def build(graph: Graph, x: str) -> str:
            first = graph.op("Slice", x, graph.constant([0], np.int64), graph.constant([1], np.int64), graph.constant([1], np.int64))
            return graph.op("MatMul", first, graph.constant([[gain, -gain]]))

        return self._classifier(name, build)

    def one_class(self) -> Bundle:
        """Right on its golden input, which is zero; on everything else always the same."""

        def build(graph: Graph, x: str) -> str:
            return graph.op("MatMul", self._power(graph, x), graph.constant([[1e6, 0.0]]))

        return self._classifier("one-class", build)

    def not_a_number(self) -> Bundle:
        """Zero on zero, else NaN."""

        def build(graph: Graph, x: str) -> str:
            root = graph.op("Sqrt", graph.op("Neg", self._power(graph, x)))
            return graph.op("Concat", root, root, axis=1)

        return self._classifier("nan", build)

    def slow_after(self, runs: int, turns: int = 200) -> Bundle:
        """Counts its runs in its state; from then on every run multiplies matrices."""
        graph = Graph("slow", int8=False)
        x, count = graph.input("x", [1, SIZE]), graph.input("count", [1])
        late = graph.op("Cast", graph.op("Greater", count, graph.constant([float(runs)])), to=7)
        trips = graph.op("Squeeze", graph.op("Mul", late, graph.constant([turns], np.int64)))
        weight = graph.constant(np.full((256, 256), 1 / 256, np.float32))
        busy = graph.op("Loop", trips, "", weight, body=_multiply_body())
        nothing = graph.op("Mul", graph.op("ReduceMean", busy, keepdims=0), graph.constant(0.0))
        first = graph.op("Slice", x, graph.constant([0], np.int64), graph.constant([1], np.int64), graph.constant([1], np.int64))
        graph.output(graph.op("Add", graph.op("MatMul", first, graph.constant([[50.0, -50.0]])), nothing), "y", [1, 2])
        graph.output(graph.op("Add", count, graph.constant([1.0])), "next", [1])
        ports = (Port(name="x", shape=(1, SIZE), dtype="float32"), Port(name="count", shape=(1,), dtype="float32"))
        outputs = (Port(name="y", shape=(1, 2), dtype="float32"), Port(name="next", shape=(1,), dtype="float32"))
        return self._bundle("slow", graph, ports, outputs, state={"next": "count"})

    def wrong_golden(self) -> Bundle:
        """Its golden run is not what it gives."""
        return self._classifier("golden", lambda graph, x: graph.op("MatMul", x, graph.constant(np.zeros((SIZE, 2)))), golden=7.0)

    def number(self, name: str, scale: float) -> Bundle:
        """The window's power times `scale`, without labels."""
        graph = Graph(name, int8=False)
        x = graph.input("x", [1, SIZE])
        graph.output(graph.op("Mul", self._power(graph, x), graph.constant(scale)), "y", [1, 1])
        ports = (Port(name="x", shape=(1, SIZE), dtype="float32"),)
        return self._bundle(name, graph, ports, (Port(name="y", shape=(1, 1), dtype="float32"),), labels=())

    def _power(self, graph: Graph, x: str) -> str:
        return graph.op("MatMul", graph.op("Mul", x, x), graph.constant(np.ones((SIZE, 1))))

    def _classifier(self, name: str, build: Callable[[Graph, str], str], golden: float = 0.0) -> Bundle:
        graph = Graph(name, int8=False)
        graph.output(build(graph, graph.input("x", [1, SIZE])), "y", [1, 2])
        ports = (Port(name="x", shape=(1, SIZE), dtype="float32"),)
        return self._bundle(name, graph, ports, (Port(name="y", shape=(1, 2), dtype="float32"),), golden=golden)

    def _bundle(
        self,
        name: str,
        graph: Graph,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        *,
        golden: float | None = None,
        labels: tuple[str, ...] = ("low", "high"),
        state: dict[str, str] | None = None,
    ) -> Bundle:
        folder = self._folder / name
        folder.mkdir(parents=True)
        graph.save(folder / "model.onnx")
        files = ["model.onnx"]
        if golden is not None:
            arrays = {"in0": np.zeros((1, 1, SIZE), np.float32), "out0": np.full((1, 1, 2), golden, np.float32)}
            np.savez(folder / "golden.npz", **arrays)
            files.append("golden.npz")
        manifest = Manifest(
            schema=1,
            name=name,
            version=1,
            task="classifier" if labels else "other",
            model="model.onnx",
            files={},
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            labels=labels,
            state=state or {},
            golden=Golden(file="golden.npz", tolerance=1e-3) if golden is not None else None,
            license="Apache-2.0",
        )
        return write_manifest(folder, manifest, files)


def _multiply_body() -> Any:
    """The body of a Loop: v -> v @ v, of a matrix that this leaves as it is."""
    from onnx import TensorProto, helper

    def scalar(name: str, kind: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["v", "v"], ["w"])]
    given = [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), scalar("v", TensorProto.FLOAT, [256, 256])]
    made = [scalar("on", TensorProto.BOOL, []), scalar("w", TensorProto.FLOAT, [256, 256])]
    return helper.make_graph(nodes, "body", given, made)


class Plant:
    """One gateway's folder; runs it, more than once if a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.notices: list[Notice] = []
        (folder / "gateway.yaml").write_text(GATEWAY)
        (folder / "factory.yaml").write_text(FACTORY)

    def build(self, disk: Disk | None = None) -> Gateway:
        """Not started yet."""
        path = self.folder / "gateway.yaml"
        config = load_gateway(path)
        return Gateway(config, self.folder, lambda: read_deployment(config, path), self.state_dir, disk=disk)

    @contextlib.asynccontextmanager
    async def running(self, disk: Disk | None = None) -> AsyncIterator[Gateway]:
        """Ready within the body; stopped gracefully after it."""
        gateway = self.build(disk)
        gateway.loop.bus.subscribe(Notice, self.notices.append)
        task = asyncio.create_task(gateway.run())
        try:
            await until(lambda: gateway.ready or task.done())
            if task.done():
                task.result()
            yield gateway
        finally:
            gateway.stop()
            await task

    async def install(self, gateway: Gateway, bundle: Bundle) -> None:
        """As the sync agent does, from an archive."""
        archive = self.folder / f"{bundle.digest[7:]}.tar"
        pack(bundle, archive)
        await gateway.install_model(archive, bundle.digest)

    def heard(self, kind: str) -> list[str]:
        """`subject: message` of every notice of a kind so far."""
        return [f"{notice.subject}: {notice.message}" for notice in self.notices if notice.kind == kind]


async def until(condition: Callable[[], Any]) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {WAIT_S:g} s")


@pytest.fixture
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is such a place: for hundreds of syncs, whose order is judged and not what they do to a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("disk")
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path / "bundles")
