"""INT8 models that others made, on inputs whose answers are known. Skipped where the shared data is not beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.cli.main import main
from edge_runtime.errors import ModelRefused
from models.onnx import OnnxBackend

DATA = Path(__file__).resolve().parents[2] / "../shared/data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data beside the checkout")

# Cases whose tensors numpy has no dtype for, and cases whose stored reference is not what saturation gives.
NOT_FED = {
    "dequantizelinear_e4m3fn", "dequantizelinear_e4m3fn_float16", "dequantizelinear_e4m3fn_zero_point", "dequantizelinear_e5m2",
    "dequantizelinear_int4", "dequantizelinear_uint4",
    "quantizelinear_e4m3fn", "quantizelinear_e5m2", "quantizelinear_int4", "quantizelinear_uint4",
}  # fmt: skip
WRAPPED = {
    "qlinearmatmul_2D_int8_float16", "qlinearmatmul_2D_int8_float32", "qlinearmatmul_3D_int8_float16", "qlinearmatmul_3D_int8_float32",
}  # fmt: skip
CASES = sorted((DATA / "onnx_node").glob("test_*")) if DATA.is_dir() else []


def infer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["infer", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize("backend", ["litert", "tflite"])
def test_mobilenet_knows_the_three_photos(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    folder = DATA / "mobilenet_v2"
    photos = [folder / f"{name}.bmp" for name in ("cat", "bird", "sunflower")]
    model, labels = folder / "mobilenet_v2_1.0_224_quant.tflite", folder / "imagenet_labels.txt"
    report = infer(capsys, model, "--input", *photos, "--labels", labels, "--backend", backend)
    best = [result["top"][0] for result in report["results"]]
    assert [top["label"].partition(",")[0] for top in best] == ["Egyptian cat", "chickadee", "daisy"]
    assert [top["score"] for top in best] == pytest.approx([0.79, 0.988, 0.988], abs=0.03)


def test_the_autoencoder_gives_the_known_error_on_a_real_clip(capsys: pytest.CaptureFixture[str]) -> None:
    folder = DATA / "toyadmos"
    model = next(path for path in folder.glob("*int8*.tflite"))
    (clip,) = [path for path in folder.iterdir() if path.suffix in (".bin", ".raw", ".f32", ".npy")]
    report = infer(capsys, model, "--input", clip, "--window", 640, "--hop", 128, "--backend", "litert")
    errors = [result["reconstruction_mse"] for result in report["results"]]
    assert len(errors) == 196
    assert float(np.mean(errors)) == pytest.approx(10.26, abs=0.02)


def test_the_lstm_reads_ten_of_ten_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    folder = DATA / "mnist_lstm"
    photos = [folder / f"sample{digit}.png" for digit in range(10)]
    report = infer(capsys, folder / "trained_lstm_int8.tflite", "--input", *photos, "--backend", "litert", "--scale", 255)
    assert [result["top"][0]["index"] for result in report["results"]] == list(range(10))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_"))
def test_quantized_operators_are_bit_exact(case: Path) -> None:
    onnx = pytest.importorskip("onnx")
    name = case.name.removeprefix("test_")

    def arrays(kind: str) -> list[Any]:
        files = sorted((case / "test_data_set_0").glob(f"{kind}_*.pb"))
        return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]

    if name in NOT_FED:
        with pytest.raises(ModelRefused, match=r"cannot be fed from here|does not load"):
            OnnxBackend().load(case / "model.onnx").run(arrays("input"))
        return
    got = OnnxBackend().load(case / "model.onnx").run(arrays("input"))
    for result, expected in zip(got, arrays("output"), strict=True):
        if name in WRAPPED:
            wrong = result != expected
            assert wrong.any()
            assert set(np.abs(result[wrong].astype(int) - expected[wrong].astype(int)).ravel()) <= set(range(1, 256))
            assert set(result[wrong].ravel().tolist()) <= {-128, 127}, "where the reference wraps, saturating is right"
        else:
            np.testing.assert_array_equal(result, expected)


def test_the_cases_are_all_told_apart() -> None:
    assert len(CASES) == 39
    assert len(CASES) - len(NOT_FED) - len(WRAPPED) == 25
