"""INT8 models that others made, on inputs whose answers are known. Skipped where the shared data is not beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.cli.main import main
from edge_runtime.errors import ModelRefused, RefusalReason
from models.onnx import OnnxBackend

DATA = Path(__file__).resolve().parents[2] / "../shared/data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data beside the checkout")

NO_NUMPY_DTYPE = "8-bit floats and 4-bit integers have no numpy dtype, so nobody can feed them: refused by name"
WRAPS = "the stored reference casts to int8 without saturating; QLinearMatMul is specified to saturate, and the runtime does"
NOT_EXACT = {
    "dequantizelinear_e4m3fn": NO_NUMPY_DTYPE,
    "dequantizelinear_e4m3fn_float16": NO_NUMPY_DTYPE,
    "dequantizelinear_e4m3fn_zero_point": NO_NUMPY_DTYPE,
    "dequantizelinear_e5m2": NO_NUMPY_DTYPE,
    "dequantizelinear_int4": NO_NUMPY_DTYPE,
    "dequantizelinear_uint4": NO_NUMPY_DTYPE,
    "quantizelinear_e4m3fn": NO_NUMPY_DTYPE,
    "quantizelinear_e5m2": NO_NUMPY_DTYPE,
    "quantizelinear_int4": NO_NUMPY_DTYPE,
    "quantizelinear_uint4": NO_NUMPY_DTYPE,
    "qlinearmatmul_2D_int8_float16": WRAPS,
    "qlinearmatmul_2D_int8_float32": WRAPS,
    "qlinearmatmul_3D_int8_float16": WRAPS,
    "qlinearmatmul_3D_int8_float32": WRAPS,
}
CASES = sorted((DATA / "onnx_node").glob("test_*")) if DATA.is_dir() else []


BACKENDS = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(BACKENDS[name])
    return name


def infer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["infer", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_mobilenet_knows_the_three_photos(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    folder = DATA / "mobilenet_v2"
    photos = [folder / f"{name}.bmp" for name in ("cat", "bird", "sunflower")]
    model, labels = folder / "mobilenet_v2_1.0_224_quant.tflite", folder / "imagenet_labels.txt"
    report = infer(capsys, model, "--input", *photos, "--labels", labels, "--backend", backend)
    best = [result["top"][0] for result in report["results"]]
    assert [top["label"].partition(",")[0] for top in best] == ["Egyptian cat", "chickadee", "daisy"]
    assert [top["score"] for top in best] == pytest.approx([0.79, 0.988, 0.988], abs=0.015)
    assert report["precision"] == "uint8"


@pytest.mark.parametrize(("model", "precision", "error"), [("ad01_int8", "int8", 10.26), ("ad01_fp32", "float32", 9.707)])
def test_the_autoencoder_gives_the_known_error_on_a_real_clip(
    model: str, precision: str, error: float, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DATA / "toyadmos"
    clip = folder / "normal_id_01_00000000_hist_librosa.bin"
    report = infer(capsys, folder / f"{model}.tflite", "--input", clip, "--window", 640, "--hop", 128, "--backend", backend)
    errors = [result["reconstruction_mse"] for result in report["results"]]
    assert len(errors) == 196
    assert float(np.mean(errors)) == pytest.approx(error, abs=0.02)
    assert report["precision"] == precision


def test_the_lstm_reads_ten_of_ten_digits_in_any_order(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    folder = DATA / "mnist_lstm"
    digits = [*range(10), *reversed(range(10))]
    photos = [folder / f"sample{digit}.png" for digit in digits]
    results = infer(capsys, folder / "trained_lstm_int8.tflite", "--input", *photos, "--backend", backend)["results"]
    assert [result["top"][0]["index"] for result in results] == digits
    assert [result["values"] for result in results[:10]] == [result["values"] for result in results[:9:-1]], "a memory of the run before"


@pytest.mark.parametrize(("model", "error"), [("hello_world_int8", 0.126), ("hello_world_float", 0.051)])
def test_the_sine_is_as_close_as_its_makers_have_it(
    model: str, error: float, backend: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    angles = np.linspace(0, 2 * np.pi, 200, dtype=np.float32)
    np.save(tmp_path / "angles.npy", angles)
    report = infer(capsys, DATA / "hello_world" / f"{model}.tflite", "--input", tmp_path / "angles.npy", "--backend", backend)
    got = [result["values"][0] for result in report["results"]]
    assert float(np.abs(got - np.sin(angles)).max()) < error


def tensors(case: Path, kind: str) -> list[Any]:
    onnx = pytest.importorskip("onnx")
    files = sorted((case / "test_data_set_0").glob(f"{kind}_*.pb"))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def named(cases: list[Path]) -> list[Any]:
    return [pytest.param(case, id=case.name.removeprefix("test_")) for case in cases]


def why_not_exact(case: Path) -> str | None:
    return NOT_EXACT.get(case.name.removeprefix("test_"))


@pytest.mark.parametrize("case", named([case for case in CASES if why_not_exact(case) is None]))
def test_quantized_operators_are_bit_exact(case: Path) -> None:
    pytest.importorskip("onnxruntime")
    for got, expected in zip(OnnxBackend().load(case / "model.onnx").run(tensors(case, "input")), tensors(case, "output"), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("case", named([case for case in CASES if why_not_exact(case) is NO_NUMPY_DTYPE]))
def test_what_numpy_cannot_hold_is_refused_by_name(case: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelRefused, match="cannot be fed from here; export the model with float32 or int8") as refusal:
        OnnxBackend().load(case / "model.onnx")
    assert refusal.value.reason is RefusalReason.WRONG_DTYPE


@pytest.mark.parametrize("case", named([case for case in CASES if why_not_exact(case) is WRAPS]))
def test_where_the_reference_wraps_the_runtime_saturates(case: Path) -> None:
    """Both are told from the operator's own arithmetic: ours is its clip, the stored one its low 8 bits (one off in float16)."""
    pytest.importorskip("onnxruntime")
    given = tensors(case, "input")
    (got,) = OnnxBackend().load(case / "model.onnx").run(given)
    (stored,) = tensors(case, "output")
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (tensor.astype(np.float64) for tensor in given)
    real = np.rint((a - a_zero) @ (b - b_zero) * a_scale * b_scale / y_scale) + y_zero
    np.testing.assert_array_equal(got, np.clip(real, -128, 127))
    beyond = real != np.clip(real, -128, 127)
    np.testing.assert_array_equal(got != stored, beyond)
    wrapped = (stored - real + 128) % 256 - 128
    assert np.abs(wrapped).max() <= ("float16" in case.name)


def test_every_case_is_accounted_for() -> None:
    if not CASES:
        pytest.skip("needs the operator cases beside the checkout")
    assert len(CASES) == 39
    assert {f"test_{name}" for name in NOT_EXACT} < {case.name for case in CASES}
    assert len(CASES) - len(NOT_EXACT) == 25
