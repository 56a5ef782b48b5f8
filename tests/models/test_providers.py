"""Execution providers: chosen by name, listed, refused by name; the probe runs on those that will serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.config.deployment import ModelSpec
from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from edge_runtime.ports import ChoosesProviders, KeepsOptimised
from edge_runtime.registry import MODEL_BACKENDS, load, names
from edge_runtime.serving import model_backend
from models.onnx import OnnxBackend

pytest.importorskip("onnxruntime")

DENSE = Path(__file__).parents[1] / "assets" / "models" / "dense.onnx"


def test_the_providers_of_the_installed_runtime_are_listed_and_the_cpu_is_among_them() -> None:
    assert "CPUExecutionProvider" in OnnxBackend().execution_providers()
    assert OnnxBackend().providers == ("CPUExecutionProvider",)


def test_every_provider_here_can_be_chosen_before_the_cpu() -> None:
    for provider in OnnxBackend().execution_providers():
        chosen = OnnxBackend().with_providers([provider, "CPUExecutionProvider"])
        assert chosen.providers == (provider, "CPUExecutionProvider")
    model = OnnxBackend().with_providers(["CPUExecutionProvider"]).load(DENSE)
    assert np.asarray(model.run([np.ones((1, 4), np.float32)])[0]).shape == (1, 3)


def test_one_that_is_not_here_is_refused_when_it_is_chosen() -> None:
    with pytest.raises(InputError, match=r"`Nowhere` is no execution provider of this onnxruntime \(it has: .*CPUExecutionProvider\)"):
        OnnxBackend().with_providers(["CPUExecutionProvider", "Nowhere"])


async def test_the_probe_runs_on_the_providers_that_will_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RUNTIME_ONNX_PROVIDERS", "Nowhere")
    with pytest.raises(InputError, match="Nowhere"):
        await OnnxBackend().probe(DENSE)
    report = await OnnxBackend().with_providers(["CPUExecutionProvider"]).probe(DENSE)
    assert report.runs == 10


def test_a_deployment_chooses_by_config() -> None:
    name, backend = model_backend(DENSE, ModelSpec(path="dense.onnx", providers=("CPUExecutionProvider",)))
    assert name == "onnx"
    assert isinstance(backend, OnnxBackend)
    with pytest.raises(InputError, match="no execution provider of this onnxruntime"):
        model_backend(DENSE, ModelSpec(path="dense.onnx", providers=("TensorrtExecutionProvider?",)))


def test_a_backend_without_a_choice_says_so() -> None:
    pytest.importorskip("ai_edge_litert")
    spec = ModelSpec(path="x.tflite", backend="litert", providers=("CPUExecutionProvider",))
    with pytest.raises(InputError, match="backend litert has no execution providers to choose from; leave `providers` out"):
        model_backend(Path("x.tflite"), spec)


def test_capabilities_are_told_by_type() -> None:
    found = {name: load(MODEL_BACKENDS, name) for name in names(MODEL_BACKENDS)}
    assert isinstance(found["onnx"](), ChoosesProviders)
    assert isinstance(found["onnx"](), KeepsOptimised)


def test_with_a_cache_the_second_load_takes_the_graph_that_the_first_one_kept(tmp_path: Path) -> None:
    backend = OnnxBackend().with_cache(tmp_path, 2**20)
    backend.load(DENSE)
    (kept,) = tmp_path.iterdir()
    made = kept.stat().st_ino
    assert np.array_equal(
        backend.load(DENSE).run([np.ones((1, 4), np.float32)])[0], OnnxBackend().load(DENSE).run([np.ones((1, 4), np.float32)])[0]
    )
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == [made]


def test_a_refused_model_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(DENSE.read_bytes()[:100])
    with pytest.raises(ModelRefused) as refusal:
        OnnxBackend().with_cache(tmp_path / "cache", 2**20).load(broken)
    assert refusal.value.reason in (RefusalReason.UNREADABLE, RefusalReason.LOAD_FAILED)
    assert list((tmp_path / "cache").glob("*")) == []
