"""Models of a running gateway: by digest from its store, cleared within a budget; hostile ones leave what serves alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle import Bundle, Golden, Port, read_bundle, write_manifest
from models.store import ModelStore
from models.zoo import path as zoo_path
from tests.system.conftest import Site

pytest.importorskip("onnxruntime")

ZOO = read_bundle(zoo_path("bearing").parent)
ASSETS = Path(__file__).parents[1] / "assets" / "models"


def bundle(folder: Path, graph: bytes, suffix: str = ".onnx", **changes: Any) -> Path:
    """A bundle that says of a graph what the zoo's manifest says of its own."""
    folder.mkdir(parents=True)
    (folder / f"model{suffix}").write_bytes(graph)
    golden = changes.pop("golden", None)
    files = [f"model{suffix}"]
    if golden is not None:
        np.savez(folder / "golden.npz", **golden)
        files.append("golden.npz")
        changes["golden"] = Golden(file="golden.npz", tolerance=0.05)
    fields = {"model": f"model{suffix}", "golden": None, "version": 9, **changes}
    write_manifest(folder, msgspec.structs.replace(ZOO.manifest, **fields), files)
    return folder


def store(site: Site) -> ModelStore:
    return ModelStore(site.state_dir / "models")


def version(site: Site, number: int) -> Bundle:
    """The zoo's model once more in the store, under another version and so another digest."""
    golden = dict(np.load(ZOO.folder / "golden.npz"))
    return store(site).install(bundle(site.directory / f"v{number}", ZOO.model.read_bytes(), version=number, golden=golden))


def name_model(site: Site, text: str) -> None:
    """Writes the model of the deployment and its next revision."""
    path = site.directory / "deployment.yaml"
    lines = path.read_text().splitlines()
    revision = next(int(line.partition(":")[2]) for line in lines if line.startswith("revision:"))
    lines = [f"revision: {revision + 1}" if line.startswith("revision:") else line for line in lines]
    lines = [f"  bearing: {{{text}}}" if line.startswith("  bearing: {") else line for line in lines]
    path.write_text("\n".join(lines) + "\n")


def marks(site: Site) -> dict[str, str]:
    return {entry.digest: entry.use for entry in store(site).entries()}


def label(status: dict[str, Any]) -> str | None:
    found: str | None = status["pipelines"].get("bearing", {}).get("label")
    return found


async def served(site: Site, revision: int) -> dict[str, Any]:
    return await site.until(lambda s: s["deployment"]["revision"] == revision and label(s) == "normal")


def reload(site: Site) -> None:
    os.kill(site.processes["gateway"].pid, signal.SIGHUP)


async def test_a_model_by_digest_serves_is_marked_and_its_graph_is_kept_for_the_next_start(site: Site) -> None:
    first, second, third = (version(site, number) for number in (3, 4, 5))
    name_model(site, f'digest: "{first.digest}"')
    await site.start_gateway()
    await served(site, 2)
    assert marks(site) == {first.digest: "active", second.digest: "", third.digest: ""}
    (graph,) = (site.state_dir / "graphs").iterdir()
    name_model(site, f'digest: "{second.digest}"')
    reload(site)
    await served(site, 3)
    await site.until(lambda s: marks(site)[second.digest] == "active")
    assert marks(site) == {first.digest: "previous", second.digest: "active", third.digest: ""}
    await site.stop("gateway")
    made = graph.stat().st_ino
    await site.start_gateway()
    await served(site, 3)
    assert [path.stat().st_ino for path in (site.state_dir / "graphs").iterdir()] == [made]
    assert marks(site)[first.digest] == "previous"


async def test_what_nothing_uses_is_cleared_away_down_to_the_budget(site: Site) -> None:
    padding = {"provenance": {"padding": "x" * 200_000}}
    old = [
        store(site).install(bundle(site.directory / f"old{number}", ZOO.model.read_bytes(), version=number, **padding)).digest
        for number in range(10, 17)
    ]
    for number, digest in enumerate(old):
        os.utime(store(site).root / digest.removeprefix("sha256:"), (number, number))
    used = version(site, 3)
    site.edit("gateway.yaml", "deployment: deployment.yaml", "deployment: deployment.yaml\nstore: {models_max_bytes: 1_048_576}")
    name_model(site, f'digest: "{used.digest}"')
    await site.start_gateway()
    await served(site, 2)
    left = {entry.digest: entry.size_bytes for entry in store(site).entries()}
    assert used.digest in left
    assert set(left) == {used.digest, *old[-(len(left) - 1) :]}
    assert 1_048_576 - 250_000 < sum(left.values()) <= 1_048_576


def _external() -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(ASSETS / "dense.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../../../../etc/passwd", "offset": "0", "length": "48"}.items():
        tensor.external_data.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def _custom_operator() -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(ASSETS / "dense.onnx"))
    model.graph.node[0].domain = "com.evil"
    content: bytes = model.SerializeToString()
    return content


def _wrong_golden() -> dict[str, Any]:
    runs = dict(np.load(ZOO.folder / "golden.npz"))
    runs["out0"] = runs["out0"][:, :, ::-1].copy()
    return runs


GRAPH = ZOO.model.read_bytes()
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "aborts": (lambda at: bundle(at, (ASSETS / "recursive.tflite").read_bytes(), ".tflite", inputs=(), outputs=()), "probe_crashed"),
    "eats memory": (lambda at: bundle(at, (ASSETS / "hog.onnx").read_bytes(), inputs=(), outputs=()), "probe_memory"),
    "cut short": (lambda at: bundle(at, GRAPH[:-500]), "unreadable|load_failed"),
    "damaged": (lambda at: bundle(at, GRAPH[:6000] + bytes(2000) + GRAPH[8000:]), "load_failed|unreadable|golden_mismatch|run_failed"),
    "a pickle": (lambda at: bundle(at, b"\x80\x04cposix\nsystem\n(S'touch /nowhere'\ntR."), "unsupported_format"),
    "weights outside": (lambda at: bundle(at, _external(), inputs=(), outputs=()), "external_data"),
    "a custom operator": (lambda at: bundle(at, _custom_operator(), inputs=(), outputs=()), "unsupported_format|load_failed"),
    "another graph": (lambda at: bundle(at, (ASSETS / "dense.onnx").read_bytes()), "wrong_shape"),
    "computes otherwise": (lambda at: bundle(at, GRAPH, golden=_wrong_golden()), "golden_mismatch"),
    "steps of a newer version": (lambda at: bundle(at, GRAPH, preprocess=("wavelet(3)",)), "unsupported_format"),
    "a state that it has not": (
        lambda at: bundle(
            at,
            GRAPH,
            inputs=(*ZOO.manifest.inputs, Port(name="h", shape=(1, 4), dtype="float32")),
            state={"probabilities": "h"},
        ),
        "wrong_shape",
    ),
}


@pytest.mark.slow
async def test_a_hostile_model_is_refused_and_the_one_before_goes_on_serving(site: Site) -> None:
    sound = version(site, 3)
    name_model(site, f'digest: "{sound.digest}"')
    await site.start_gateway()
    status = await served(site, 2)
    process = site.processes["gateway"].pid
    for number, (name, (make, reason)) in enumerate(HOSTILE.items()):
        made = store(site).install(make(site.directory / f"hostile{number}"))
        extra = ", backend: litert" if made.model.suffix == ".tflite" else ""
        name_model(site, f'digest: "{made.digest}"{extra}')
        refusals = site.log().count("reload refused")
        count = status["pipelines"]["bearing"]["count"]
        reload(site)
        await site.until(lambda s, seen=refusals: site.log().count("reload refused") > seen)
        refusal = site.log().rpartition("reload refused")[2].splitlines()[0]
        assert "model_refused: models.bearing: " in refusal, name
        assert any(word in refusal for word in reason.split("|")), (name, refusal)
        status = await site.until(lambda s, seen=count: s["pipelines"]["bearing"]["count"] > seen + 1)
        assert status["deployment"]["revision"] == 2
        assert status["pipelines"]["bearing"]["label"] == "normal"
    assert site.processes["gateway"].pid == process
    assert site.processes["gateway"].returncode is None
    assert status["ledger"]["dropped"] == {}
    assert marks(site)[sound.digest] == "active"
    name_model(site, f'digest: "{sound.digest}"')
    reload(site)
    await served(site, 2 + len(HOSTILE) + 1)


@pytest.mark.slow
async def test_a_model_that_never_ends_does_not_hold_up_the_one_that_serves(site: Site) -> None:
    pytest.importorskip("ai_edge_litert")
    await site.start_gateway()
    await served(site, 1)
    shutil.copy(ASSETS / "endless.tflite", site.directory / "endless.tflite")
    name_model(site, "path: endless.tflite, backend: litert")
    reload(site)
    before = (await site.status())["pipelines"]["bearing"]["count"]
    await site.until(lambda s: s["pipelines"]["bearing"]["count"] > before + 5)
    assert "reload refused" not in site.log()
    await site.until(lambda s: "reload refused" in site.log())
    assert "probe_timeout" in site.log()
    status = await served(site, 1)
    assert status["ledger"]["dropped"] == {}


async def test_a_provider_that_is_not_here_keeps_the_gateway_on_what_it_has(site: Site) -> None:
    sound = version(site, 3)
    name_model(site, f'digest: "{sound.digest}", providers: [CPUExecutionProvider]')
    await site.start_gateway()
    await served(site, 2)
    name_model(site, f'digest: "{sound.digest}", providers: [NowhereExecutionProvider, CPUExecutionProvider]')
    reload(site)
    await site.until(lambda s: "reload refused" in site.log())
    assert "`NowhereExecutionProvider` is no execution provider of this onnxruntime (it has: " in site.log()
    await served(site, 2)
