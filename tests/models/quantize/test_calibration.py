"""Ranges from histograms: what each method keeps and cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.quantize.calibration import METHODS, Histogram, Method, observe, ranges
from models.quantize.ptq import prepare
from models.quantize.samples import Samples

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def histogram(values: np.ndarray) -> Histogram:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts, _ = np.histogram(values, 2048, (low, high))
    return Histogram(low, high, counts)


@given(
    st.sampled_from(METHODS), st.booleans(), st.integers(0, 999), st.floats(1e-6, 1e6), st.sampled_from([0.0, -3.0, 3.0])
)  # fmt: skip
def test_a_range_holds_zero_and_stays_within_what_was_seen(method: Method, symmetric: bool, seed: int, scale: float, shift: float) -> None:
    seen = histogram(scale * (np.random.default_rng(seed).normal(0, 1, 500) + shift))
    low, high = ranges({"t": seen}, method, symmetric=symmetric)["t"]
    assert seen.low - 1e-9 * scale <= low <= 0 <= high <= seen.high + 1e-9 * scale


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_one_value_far_out_does_not_cost_all_others_their_levels(method: Method) -> None:
    values = np.append(np.random.default_rng(1).normal(0, 1, 200_000), 1000.0)
    assert ranges({"t": histogram(values)}, method, symmetric=False)["t"][1] < 900
    assert ranges({"t": histogram(values)}, "minmax", symmetric=False)["t"][1] == 1000


def test_a_tensor_that_is_always_zero_has_a_range(tmp_path: Path) -> None:
    for method in METHODS:
        assert ranges({"t": Histogram(0.0, 0.0, np.zeros(2048, np.int64))}, method, symmetric=False)["t"] == (0.0, 0.0)


def test_tensors_that_the_preparation_folded_away_are_not_looked_for(tmp_path: Path) -> None:
    """A convolution with its normalization, a product with its sum: common graphs of which the preparation makes one node."""
    node, rng = onnx.helper.make_node, np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("BatchNormalization", ["a", "s", "o", "m", "v"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Flatten", ["c"], ["d"]),
        node("MatMul", ["d", "k"], ["e"]),
        node("Add", ["e", "q"], ["y"]),
    ]
    values = {"w": rng.normal(0, 1, (4, 1, 3)), "s": rng.uniform(1, 2, 4), "o": rng.normal(0, 1, 4), "m": rng.normal(0, 1, 4)}
    values |= {"v": rng.uniform(1, 2, 4), "k": rng.normal(0, 1, (24, 3)), "q": rng.normal(0, 1, 3)}
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "folded",
        [onnx.helper.make_tensor_value_info("x", float32, ["n", 1, 8])],
        [onnx.helper.make_tensor_value_info("y", float32, ["n", 3])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    inferred = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    )
    onnx.save(inferred, str(tmp_path / "m.onnx"))
    prepare(tmp_path / "m.onnx", tmp_path / "p.onnx")
    from models.onnx import OnnxBackend

    samples = Samples((rng.normal(0, 1, (20, 1, 8)).astype(np.float32),), None)
    seen = observe(tmp_path / "p.onnx", tmp_path, samples, OnnxBackend().load(tmp_path / "m.onnx").inputs)
    assert {"x", "y", "c"} <= set(seen)
    assert all(entry.counts.sum() for entry in seen.values())
