"""Models that are broken, or mean harm: refused with a named reason or contained in the probe's child; this process goes on."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import ModelRefused, RefusalReason
from models.litert import LiteRtBackend
from models.onnx import OnnxBackend
from models.probe import probe
from models.runtime import InferenceRuntime

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

ASSETS = Path(__file__).parents[1] / "assets" / "models"
BACKENDS: dict[str, type[InferenceRuntime]] = {".onnx": OnnxBackend, ".tflite": LiteRtBackend}


def refusal(path: Path, **limits: float) -> RefusalReason:
    with pytest.raises(ModelRefused) as refused:
        probe(path, "onnx" if path.suffix == ".onnx" else "litert", **limits)  # type: ignore[arg-type]
    return refused.value.reason


def test_a_model_that_never_ends_is_stopped() -> None:
    assert refusal(ASSETS / "endless.tflite", deadline_s=2.0) is RefusalReason.PROBE_TIMEOUT


def test_a_model_that_eats_memory_is_stopped(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    size = helper.make_tensor("size", kinds.INT64, [1], [2**32])
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        "hog",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [1])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [1])],
        [size],
    )
    path = tmp_path / "hog.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert refusal(path, memory_mb=256) is RefusalReason.PROBE_MEMORY


def test_weights_outside_the_bundle_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    model = onnx.load(str(ASSETS / "dense.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "../secret.bin", "offset": "0", "length": "48"}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "outside.onnx"
    path.write_bytes(model.SerializeToString())
    assert refusal(path) is RefusalReason.EXTERNAL_DATA


def test_operators_of_unknown_makers_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(ASSETS / "dense.onnx"))
    model.graph.node[0].domain = "com.evil"
    path = tmp_path / "custom.onnx"
    path.write_bytes(model.SerializeToString())
    assert refusal(path) in (RefusalReason.UNSUPPORTED_FORMAT, RefusalReason.LOAD_FAILED)


class Harm:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/harm-was-done",)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_what_only_calls_itself_a_model_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", bytes(50_000_000))
    contents = [
        b"",
        pickle.dumps(Harm()),
        (tmp_path / "bomb.zip").read_bytes(),
        bytes(100_000),
        b"\xff" * 100_000,
        b"version https://git-lfs",
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ModelRefused):
            BACKENDS[suffix]().load(path)
    assert not Path("/tmp/harm-was-done").exists()


@pytest.mark.parametrize("name", ["dense.onnx", "dense_int8.tflite"])
def test_a_folder_and_a_pipe_are_no_models(name: str, tmp_path: Path) -> None:
    folder, pipe = tmp_path / name, tmp_path / f"pipe{Path(name).suffix}"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        assert refusal(path) is RefusalReason.UNREADABLE


def test_a_refused_model_leaves_the_one_that_serves_alone(tmp_path: Path) -> None:
    serving = OnnxBackend().load(ASSETS / "dense.onnx")
    before = np.array(serving.run([np.ones((1, 4), np.float32)])[0])
    assert refusal(ASSETS / "endless.tflite", deadline_s=2.0) is RefusalReason.PROBE_TIMEOUT
    np.testing.assert_array_equal(serving.run([np.ones((1, 4), np.float32)])[0], before)
