"""Quantization by the command: the gate passes what is good, refuses what is not, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.types import Array
from models.onnx import OnnxBackend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SPREADS = {"x86": 80.0, "arm": 40.0}  # symmetric activations have half the levels


def images(count: int, seed: int) -> tuple[Array, Array]:
    """8x8 pictures of one of four bars, in noise, and which."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.normal(0, 0.45, (count, 1, 8, 8))
    for index, kind in enumerate(y):
        at = rng.integers(1, 7)
        if kind == 0:
            x[index, 0, at, :] += 1
        elif kind == 1:
            x[index, 0, :, at] += 1
        else:
            diagonal = np.eye(8, k=int(at) - 3)
            x[index, 0] += diagonal if kind == 2 else diagonal[:, ::-1]
    return x.astype(np.float32), y


def skewed(path: Path, spread: float, seed: int = 3) -> Path:
    """Line detectors whose channels differ in scale by up to `spread`, a depthwise layer that evens them out, and a fitted head."""
    kernels = np.zeros((4, 1, 5, 5), np.float32)
    kernels[0, 0, 2, :] = kernels[1, 0, :, 2] = 1
    kernels[2, 0], kernels[3, 0] = np.eye(5), np.eye(5)[:, ::-1]
    kernels -= kernels.mean(axis=(2, 3), keepdims=True)
    scales = np.geomspace(1, spread, 4).astype(np.float32)
    even = (1 / scales)[:, None, None, None]
    x, y = images(2000, seed)
    view = np.lib.stride_tricks.sliding_window_view(x[:, 0], (5, 5), axis=(1, 2))
    pooled = np.maximum(np.einsum("nhwij,cij->nchw", view, kernels[:, 0]), 0).max(axis=(2, 3))
    features = np.concatenate([pooled, np.ones((len(x), 1))], axis=1)
    head = np.linalg.lstsq(features, np.eye(4)[y], rcond=None)[0]
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="skewed"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["d"], name="even", group=4),
        helper.make_node("GlobalMaxPool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "k"], ["y"], name="head"),
    ]
    skew = kernels * scales[:, None, None, None]
    weights = {"w0": skew, "w1": even, "w": head[:4].astype(np.float32), "k": head[4].astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "bars",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [array(np.ascontiguousarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and its data."""
    folder = tmp_path_factory.mktemp("quantize")
    for target, spread in SPREADS.items():
        skewed(folder / f"{target}.onnx", spread)
    for name, seed, count in (("calibration", 5, 300), ("eval", 6, 1000)):
        x, y = images(count, seed)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return folder


def command(material: Path, out: Path, *more: str, target: str = "x86") -> tuple[int, list[str]]:
    data = ["--calibration", str(material / "calibration.npz"), "--eval", str(material / "eval.npz")]
    return main(["model", "quantize", str(material / f"{target}.onnx"), *data, "--target", target, "--out", str(out), *more]), data


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("target", ["x86", "arm"])
def test_skewed_channels_pass_per_channel(target: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(material, tmp_path / "out", "--calibrate", "minmax", "--json", target=target)
    found = answer(capsys)
    assert code == 0
    assert found["quality"]["metric"] == "accuracy"
    assert found["quality"]["float_value"] > 85
    assert found["quality"]["drop"] <= 0.5
    bundle = read_bundle(tmp_path / "out")
    verify(bundle)
    assert bundle.manifest.target == target
    assert getattr(OnnxBackend().load(bundle.model), "precision") == "int8"  # noqa: B009 - not part of the port
    assert "<svg" in (bundle.folder / "report.html").read_text()


def test_they_are_refused_per_tensor(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(material, tmp_path / "out", "--per-tensor", "--max-float-layers", "0", "--calibrate", "minmax")
    assert code == 1
    assert "refused: INT8 loses" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_layers_that_cost_most_stay_in_float(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(material, tmp_path / "out", "--per-tensor", "--calibrate", "minmax", "--json")
    found = answer(capsys)
    assert code == 0
    assert {layer["layer"] for layer in found["sensitivity"][:2]} <= {"skewed", "even"}
    assert set(found["recipe"]["keep_float"]) <= {"skewed", "even", "head"}
    assert found["recipe"]["keep_float"]


def test_all_ways_to_calibrate_are_compared(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(material, tmp_path / "out", "--json")
    found = answer(capsys)
    assert code == 0
    assert [trial["recipe"]["method"] for trial in found["trials"]] == ["minmax", "entropy", "percentile"]
    best = min(found["trials"], key=lambda trial: (trial["quality"]["drop"], -trial["quality"]["snr_db"]))
    assert found["recipe"] == best["recipe"]


def test_without_labels_it_is_held_to_the_float_models_answers(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "plain.npy", images(200, 9)[0])
    arguments = ["--calibration", str(tmp_path / "plain.npy"), "--out", str(tmp_path / "out"), "--max-drop", "5", "--json"]
    assert main(["model", "quantize", str(material / "x86.onnx"), "--calibrate", "minmax", *arguments]) == 0
    assert answer(capsys)["quality"]["metric"] == "agreement"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"z": np.zeros((20, 1, 8, 8), np.float32)}, "expected an array `x`"),
        ({"x": np.zeros((20, 1, 7, 8), np.float32)}, "expected samples of shape"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32)}, "expected at least 8 samples"),
        ({"x": np.full((20, 1, 8, 8), np.nan, np.float32)}, "not finite"),
        ({"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.zeros(3, int)}, "expected 20 whole numbers as labels"),
    ],
)
def test_wrong_samples_are_named(
    data: dict[str, Array], named: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **data)
    code = main(["model", "quantize", str(material / "x86.onnx"), "--calibration", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "o")])
    assert code == 2
    assert named in capsys.readouterr().err


def test_unknown_layers_and_quantized_models_are_refused(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data = command(material, tmp_path / "out", "--keep-float", "lins")
    assert code == 2
    assert "no layer `lins`" in capsys.readouterr().err
    zoo = Path(__file__).parents[2] / "models/zoo/bearing"
    assert main(["model", "quantize", str(zoo), *data, "--out", str(tmp_path / "o")]) == 2
    assert "is quantized already" in capsys.readouterr().err
