"""Training in INT8: it rescues what no choice of ranges does, on networks of many kinds, and leaves a plain graph behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.onnx import OnnxBackend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch", reason="torch is not installed: make test-train, or pip install -r requirements/train.txt")
pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

Quantize = Callable[..., tuple[int, dict[str, Any]]]
Values = dict[str, Array]


class Net:
    """Nodes in a row with random weights, from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.values: Values = {}
        self.last = "x"

    def add(self, kind: str, *inputs: str | Array, given: str = "", **attributes: Any) -> str:
        """A node on the last output, or on `given`; arrays become constants."""
        names = [given or self.last]
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
            else:
                names.append(f"k{len(self.values)}")
                self.values[names[-1]] = value if value.dtype.kind == "i" else value.astype(np.float32)
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, names, [self.last], name=f"{kind}{len(self.nodes)}", **attributes))
        return self.last

    def layer(self, kind: str, out: int, into: int, *kernel: int, **attributes: Any) -> str:
        """Weights [out, into, ...] and a bias."""
        weight = self.rng.normal(0, np.sqrt(2 / (into * np.prod(kernel, dtype=int))), (out, into, *kernel))
        return self.add(kind, weight, self.rng.normal(0, 0.1, out), **attributes)

    def save(self, path: Path, shape: list[int | str], out: list[int | str], opset: int = 17) -> Path:
        self.nodes[-1].output[0] = "y"
        value, array = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
        graph = onnx.helper.make_graph(
            self.nodes, "net", [value("x", 1, shape)], [value("y", 1, out)], [array(v, name) for name, v in self.values.items()]
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


def perceptron(path: Path) -> tuple[int, ...]:
    net = Net()
    net.layer("Gemm", 32, 16, transB=1)
    net.add("Relu")
    net.add("MatMul", net.rng.normal(0, 0.25, (32, 24)))
    net.add("Add", net.rng.normal(0, 0.1, 24))
    net.add("Tanh")
    net.layer("Gemm", 5, 24, transB=1)
    net.add("Softmax")
    net.save(path, ["n", 16], ["n", 5])
    return (16,)


def convolutions_in_time(path: Path) -> tuple[int, ...]:
    """With normalizations to fold and a pool."""
    net = Net()
    net.layer("Conv", 12, 2, 7, strides=[2], pads=[3, 3])
    net.add("BatchNormalization", *(net.rng.uniform(0.2, 3, 12) for _ in range(4)))
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[2], strides=[2])
    net.layer("Conv", 16, 12, 3, pads=[1, 1])
    net.add("LeakyRelu", alpha=0.1)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.layer("Gemm", 4, 16, transB=1)
    net.save(path, ["n", 2, 64], ["n", 4])
    return (2, 64)


def separable(path: Path) -> tuple[int, ...]:
    """Depthwise and pointwise convolutions, as small vision networks are built."""
    net = Net()
    net.layer("Conv", 12, 1, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    net.add("Clip", np.array(0.0), np.array(6.0))
    net.layer("Conv", 12, 1, 3, 3, group=12, pads=[1, 1, 1, 1])
    net.add("HardSwish")
    net.layer("Conv", 16, 12, 1, 1)
    net.add("Relu")
    net.add("ReduceMean", axes=[2, 3], keepdims=0)
    net.layer("Gemm", 6, 16, transB=1)
    net.save(path, ["n", 1, 10, 10], ["n", 6])
    return (1, 10, 10)


def residual(path: Path) -> tuple[int, ...]:
    """A sum of two ways, exported for one sample at a time."""
    net = Net()
    net.layer("Conv", 8, 3, 3, pads=[1, 1])
    short = net.add("Relu")
    net.layer("Conv", 8, 8, 3, pads=[1, 1])
    net.add("Relu")
    net.layer("Conv", 8, 8, 3, pads=[1, 1])
    net.add("Add", short)
    net.add("Relu")
    net.add("Reshape", np.array([1, 256]))
    net.layer("Gemm", 3, 256, transB=1)
    net.save(path, [1, 3, 32], [1, 3])
    return (3, 32)


def autoencoder(path: Path) -> tuple[int, ...]:
    net = Net()
    for out, into in ((12, 16), (4, 12), (12, 4), (16, 12)):
        net.layer("Gemm", out, into, transB=1)
        net.add("Sigmoid" if out == 4 else "Relu" if out == 12 else "Identity")
    net.save(path, ["n", 16], ["n", 16])
    return (16,)


def quantized(path: Path, shape: tuple[int, ...], *more: str) -> int:
    """`model quantize` of the network at `path` on 400 samples of varying strength, into `out` beside it."""
    rng = np.random.default_rng(1)
    strength = np.exp(rng.normal(0, 0.3, (400, *[1] * len(shape))))
    np.save(path.with_suffix(".npy"), (rng.normal(0, 1, (400, *shape)) * strength).astype(np.float32))
    data = ["--calibration", str(path.with_suffix(".npy")), "--out", str(path.parent / "out"), "--json"]
    return main(["model", "quantize", str(path), *data, *more])


@pytest.mark.slow
def test_it_rescues_what_ranges_alone_cannot(quantize: Quantize, tmp_path: Path) -> None:
    code, found = quantize("clipped", "--method", "ptq")
    assert code == 1
    assert found["quality"]["drop"] > 3
    code, found = quantize("clipped")
    assert code == 0
    assert found["recipe"]["method"] == "qat"
    assert found["recipe"]["keep_float"] == []
    assert found["quality"]["drop"] <= 0.5
    verify(read_bundle(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("build", [perceptron, convolutions_in_time, separable, residual, autoencoder], ids=lambda build: build.__name__)
def test_networks_of_many_kinds_come_through(
    build: Callable[[Path], tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = build(tmp_path / "net.onnx")
    assert quantized(tmp_path / "net.onnx", shape, "--qat", "--metric", "sqnr", "--max-drop", "5") == 0
    found = json.loads(capsys.readouterr().out)
    *ranged, trained = found["trials"]
    assert trained["recipe"]["method"] == "qat"
    assert trained["quality"]["sqnr_db"] >= max(trial["quality"]["sqnr_db"] for trial in ranged) - 0.5
    graph = onnx.load(str(read_bundle(tmp_path / "out").model))
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 21)]
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.graph.node}


def test_operators_that_cannot_be_trained_are_named_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    net.layer("Gemm", 8, 16, transB=1)
    net.add("CumSum", np.array(1))
    net.layer("Gemm", 4, 8, transB=1)
    net.save(tmp_path / "net.onnx", ["n", 16], ["n", 4])
    assert quantized(tmp_path / "net.onnx", (16,), "--qat") == 2
    told = capsys.readouterr().err
    assert "operators CumSum cannot be trained in INT8" in told
    assert "training in INT8" not in told.replace("trained in INT8", "")


def test_where_they_stand_in_the_way_of_a_rescue_the_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    net.layer("Gemm", 8, 16, transB=1)
    net.add("CumSum", np.array(1))
    net.layer("Gemm", 4, 8, transB=1)
    net.save(tmp_path / "net.onnx", ["n", 16], ["n", 4])
    assert quantized(tmp_path / "net.onnx", (16,), "--metric", "sqnr", "--max-drop", "0.000001") == 1
    assert "operators CumSum cannot be trained" in " ".join(json.loads(capsys.readouterr().out)["notes"])


def test_training_ends_when_its_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = autoencoder(tmp_path / "net.onnx")
    assert quantized(tmp_path / "net.onnx", shape, "--qat", "--train-limit", "0", "--max-drop", "5") == 0
    told = capsys.readouterr()
    assert told.err.count("held-out loss") == 1
    assert json.loads(told.out)["recipe"]["method"] == "qat"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    sums = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        quantized(tmp_path / run / "net.onnx", autoencoder(tmp_path / run / "net.onnx"), "--qat", "--max-drop", "5")
        sums.append(hashlib.sha256(read_bundle(tmp_path / run / "out").model.read_bytes()).hexdigest())
    assert sums[0] == sums[1]


def test_the_network_that_trains_computes_what_onnxruntime_computes(tmp_path: Path) -> None:
    """Every answer within one level of the other's, before any training."""
    import torch

    from models.quantize import ptq
    from models.quantize.calibration import observe, ranges
    from models.quantize.qat.graph import read, read_constants
    from models.quantize.qat.network import Network
    from models.quantize.samples import Samples

    for target, build in (("x86", convolutions_in_time), ("arm", separable)):
        shape = build(tmp_path / "net.onnx")
        x = np.random.default_rng(1).normal(0, 1, (40, *shape)).astype(np.float32)
        ptq.prepare(tmp_path / "net.onnx", tmp_path / "p.onnx")
        model = OnnxBackend().load(tmp_path / "net.onnx")
        seen = observe(tmp_path / "p.onnx", tmp_path, Samples((x,), None), model.inputs)
        recipe = ptq.Recipe(target=target)  # type: ignore[arg-type]  # one of the two above
        ptq.quantize(tmp_path / "p.onnx", tmp_path / "q.onnx", recipe, ranges(seen, "minmax", symmetric=recipe.symmetric))
        runtime = OnnxBackend().load(tmp_path / "q.onnx")
        expected = np.concatenate([runtime.run([row[None]])[0] for row in x])
        network = Network(read(tmp_path / "q.onnx"), read_constants(tmp_path / "p.onnx"))
        with torch.no_grad():
            got = network.run([torch.from_numpy(x)], network.outputs)[0].numpy()
        assert np.abs(got - expected).max() <= 2 * (expected.max() - expected.min()) / 255
        assert np.mean(np.abs(got - expected) < 1e-4) > 0.8


def test_a_graph_that_the_two_read_differently_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.quantize.qat import operators

    monkeypatch.setitem(operators.OPERATORS, "Sigmoid", lambda x, attributes: x[0])
    with pytest.raises(InputError, match="differently"):
        _tuned(tmp_path)


def _tuned(folder: Path) -> None:
    from models.quantize import ptq
    from models.quantize.calibration import observe, ranges
    from models.quantize.qat.training import Material, tune
    from models.quantize.samples import Samples

    shape = autoencoder(folder / "net.onnx")
    samples = Samples((np.random.default_rng(1).normal(0, 1, (40, *shape)).astype(np.float32),), None)
    ptq.prepare(folder / "net.onnx", folder / "p.onnx")
    seen = observe(folder / "p.onnx", folder, samples, OnnxBackend().load(folder / "net.onnx").inputs)
    ptq.quantize(folder / "p.onnx", folder / "q.onnx", ptq.Recipe(), ranges(seen, "minmax", symmetric=False))
    tune(Material(folder / "p.onnx", folder / "q.onnx", samples, samples, False, 1.0), folder / "t.onnx", 0)
