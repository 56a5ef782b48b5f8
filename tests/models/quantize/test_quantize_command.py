"""Quantization by the command: the gate passes what is good, refuses what is not, and says what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
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

Quantize = Callable[..., tuple[int, dict[str, Any]]]


@pytest.mark.parametrize("target", ["x86", "arm", "mcu"])
def test_skewed_channels_pass_per_channel(target: str, quantize: Quantize, tmp_path: Path) -> None:
    code, found = quantize("skewed", "--target", target, "--method", "ptq")
    assert code == 0
    assert found["quality"]["metric"] == "accuracy"
    assert found["quality"]["float_value"] > 95
    assert found["quality"]["drop"] <= 0.5
    assert found["recipe"]["keep_float"] == []
    assert max(layer["noise_percent"] for layer in found["sensitivity"]) < 1  # a layer is judged with the clip behind it
    bundle = read_bundle(tmp_path / "out")
    verify(bundle)
    assert bundle.manifest.target == target
    assert getattr(OnnxBackend().load(bundle.model), "precision") == "int8"  # noqa: B009 - not part of the port
    assert "<svg" in (bundle.folder / "report.html").read_text()


def test_activations_are_stored_as_the_target_likes_them(quantize: Quantize, tmp_path: Path) -> None:
    kinds = {}
    for target in ("x86", "arm"):
        quantize("even", "--target", target, "--method", "ptq", "--calibrate", "minmax", "--out", str(tmp_path / target))
        graph = onnx.load(str(read_bundle(tmp_path / target).model)).graph
        zeros = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds[target] = {zeros[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {"x86": {onnx.TensorProto.UINT8}, "arm": {onnx.TensorProto.INT8}}


def test_they_are_refused_per_tensor(quantize: Quantize, tmp_path: Path) -> None:
    code, found = quantize("skewed", "--per-tensor", "--method", "ptq")
    assert code == 1
    assert found["passed"] is False
    assert found["quality"]["drop"] > 10
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out-refused" / "report.html").exists()


def test_a_refusal_says_what_was_lost_and_what_to_do(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--calibration", str(example / "calibration.npz"), "--eval", str(example / "eval.npz"), "--out", str(tmp_path / "out")]
    assert main(["model", "quantize", str(example / "skewed.onnx"), *data, "--per-tensor", "--method", "ptq"]) == 1
    told = capsys.readouterr().err
    assert "refused: INT8 loses" in told
    assert "--method qat" in told


def test_the_layer_that_costs_most_stays_in_float(example: Path, quantize: Quantize) -> None:
    from models.quantize.example import network

    network(example / "one.onnx", first=300.0)
    code, found = quantize("one", "--per-tensor", "--method", "ptq", "--calibrate", "minmax")
    assert code == 0
    assert found["sensitivity"][0]["layer"] == "first"
    assert found["recipe"]["keep_float"] == ["first"]


def test_a_model_that_needs_most_layers_in_float_is_refused(quantize: Quantize) -> None:
    code, found = quantize("skewed", "--per-tensor", "--method", "ptq", "--max-float-layers", "9")
    assert code == 1
    assert {len(trial["recipe"]["keep_float"]) for trial in found["trials"]} == {0, 1}


def test_all_ways_to_calibrate_are_compared(quantize: Quantize) -> None:
    code, found = quantize("even")
    assert code == 0
    assert [trial["recipe"]["method"] for trial in found["trials"]] == ["minmax", "percentile", "entropy", "mse"]
    figures = [trial["quality"] for trial in found["trials"]]
    best = min(range(4), key=lambda number: (max(0.5, figures[number]["drop"] + figures[number]["error"]), -figures[number]["sqnr_db"]))
    assert found["recipe"] == found["trials"][best]["recipe"]


def test_without_labels_it_is_held_to_the_float_models_answers(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models.quantize.example import images

    np.save(tmp_path / "plain.npy", images(800, 9)[0])
    arguments = ["--calibration", str(tmp_path / "plain.npy"), "--out", str(tmp_path / "out"), "--json"]
    assert main(["model", "quantize", str(example / "even.onnx"), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["metric"] == "agreement"


def test_few_samples_make_a_doubtful_verdict_and_it_says_so(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models.quantize.example import images, network

    network(tmp_path / "rough.onnx", activations=100.0)
    x, y = images(300, 9)
    np.savez(tmp_path / "few.npz", x=x, y=y)
    arguments = ["--calibration", str(tmp_path / "few.npz"), "--out", str(tmp_path / "out"), "--method", "ptq", "--max-float-layers", "0"]
    main(["model", "quantize", str(tmp_path / "rough.onnx"), *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["quality"]["error"] > 0
    assert any("make the verdict certain" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"z": np.zeros((20, 1, 8, 8), np.float32)}, "expected an array `x`"),
        ({"x": np.zeros((20, 1, 7, 8), np.float32)}, "expected samples of shape"),
        ({"x": np.zeros((3, 1, 8, 8), np.float32)}, "expected at least 12 samples"),
        ({"x": np.full((20, 1, 8, 8), np.nan, np.float32)}, "not finite"),
        ({"x": np.zeros((20, 1, 8, 8), np.float32), "y": np.zeros(3, int)}, "expected 20 whole numbers as labels"),
    ],
)
def test_wrong_samples_are_named(
    data: dict[str, Array], named: str, example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **data)
    bad = ["--calibration", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "o")]
    assert main(["model", "quantize", str(example / "even.onnx"), *bad]) == 2
    assert named in capsys.readouterr().err


def test_unknown_layers_and_quantized_models_are_refused(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--calibration", str(example / "calibration.npz"), "--out", str(tmp_path / "out")]
    assert main(["model", "quantize", str(example / "even.onnx"), *data, "--keep-float", "lins"]) == 2
    assert "no layer `lins`" in capsys.readouterr().err
    zoo = Path(__file__).parents[3] / "models/zoo/bearing"
    assert main(["model", "quantize", str(zoo), *data]) == 2
    assert "is quantized already" in capsys.readouterr().err


def test_a_tflite_file_is_not_promised(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--calibration", str(example / "calibration.npz"), "--out", str(tmp_path / "out"), "--format", "tflite"]
    assert main(["model", "quantize", str(example / "even.onnx"), *data]) == 2
    assert "--format onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_picture_is_an_svg_of_the_verdict_even_when_refused(quantize: Quantize, tmp_path: Path) -> None:
    from xml.etree.ElementTree import fromstring

    code, _ = quantize("skewed", "--per-tensor", "--method", "ptq", "--calibrate", "minmax", "--picture", str(tmp_path / "p.svg"))
    assert code == 1
    words = [element.text for element in fromstring((tmp_path / "p.svg").read_text()).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Accuracy", "Latency, median", "Size", "Memory at peak", "limit 0.5", "first", "depthwise", "head"} <= set(words)


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_training_without_torch_names_the_command_that_installs_it(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--calibration", str(example / "calibration.npz"), "--out", str(tmp_path / "out")]
    assert main(["model", "quantize", str(example / "clipped.onnx"), *data, "--qat"]) in (1, 2)
    assert "edge-runtime[train]" in capsys.readouterr().err
