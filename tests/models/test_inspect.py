"""What a model file is made of, told from its bytes; files that are none are refused by name and nothing else happens."""

from __future__ import annotations

import json
import shutil
import struct
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from edge_runtime.ports import CliCommand
from models.commands.inspect import InspectCommand
from models.inspection import onnx as onnx_inspection
from models.inspection import tflite as tflite_inspection
from models.inspection.file import inspect
from models.inspection.flatbuffer import MAX_VISITS
from models.inspection.optimise import optimise
from models.inspection.report import Inspection, OperatorCount
from models.inspection.text import lines, short
from models.protobuf import Malformed
from models.zoo import path as zoo_path

ASSETS = Path(__file__).parents[1] / "assets" / "models"
HOSTILE = {"endless", "hog", "recursive"}  # loading or running them is for the probe
DATA = Path(__file__).resolve().parents[2] / "../shared/data"
BEARING = zoo_path("bearing")


def split(found: Inspection) -> dict[str, tuple[int, int, int]]:
    return {operator.name: (operator.int8, operator.float, operator.convert) for operator in found.operators}


def command(*words: str, of: CliCommand | None = None) -> int:
    chosen = of if of is not None else InspectCommand()
    parser = ArgumentParser()
    chosen.configure(parser)
    return chosen.run(parser.parse_args(words))


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {name} beside the checkout")
    return path


# Real files


def test_a_quantized_onnx_bundle() -> None:
    found = inspect(BEARING)
    assert (found.format, found.precision, found.version) == ("onnx", "int8", "IR 9, opset ai.onnx 17")
    assert split(found) == {
        "DequantizeLinear": (0, 0, 18), "QuantizeLinear": (0, 0, 8), "Conv": (4, 0, 0), "Flatten": (1, 0, 0), "Gemm": (1, 0, 0),
        "GlobalAveragePool": (1, 0, 0), "Softmax": (0, 1, 0),
    }  # fmt: skip
    assert found.inputs[0].shape == (1, 1, 1, 1024)
    assert found.inputs[0].scale == pytest.approx(0.0402628, rel=1e-5), "the scale that the input is quantized by at once"
    assert (found.macs, found.macs_unknown) == (530_816, 0)
    assert found.bundle is not None
    assert found.bundle["name"] == "bearing"


def test_a_float_onnx_file_with_a_free_batch() -> None:
    found = inspect(ASSETS / "dense.onnx")
    assert split(found) == {"Gemm": (0, 1, 0)}
    assert (found.parameters, found.macs) == (15, 12)
    assert found.inputs[0].shape == (-1, 4)
    assert found.bundle is None


def test_a_quantized_tflite_file() -> None:
    found = inspect(ASSETS / "dense_int8.tflite")
    assert (found.format, found.precision, found.version) == ("tflite", "int8", "TFLite schema 3")
    assert split(found) == {"FULLY_CONNECTED": (1, 0, 0)}
    assert (found.parameters, found.macs) == (15, 12)
    assert (found.inputs[0].shape, found.inputs[0].scale, found.outputs[0].zero_point) == ((-1, 4), 0.0625, -10)


def test_scales_along_an_axis() -> None:
    (tensor,) = inspect(ASSETS / "per_axis_int8.tflite").inputs
    assert (tensor.axis_scales, tensor.axis) == ((0.5, 0.25, 2.0), 1)


def test_subgraphs_of_a_tflite_file_count() -> None:
    assert split(inspect(ASSETS / "endless.tflite")) == {"ABS": (0, 1, 0), "EQUAL": (0, 1, 0), "WHILE": (0, 1, 0)}


def test_the_tflite_walk_tells_what_the_runtime_tells() -> None:
    pytest.importorskip("ai_edge_litert")
    from models.litert import LiteRtBackend

    for path in (*sorted(ASSETS.glob("*.tflite")), *sorted(DATA.glob("*/*.tflite"))):
        if path.stem in HOSTILE:
            continue
        model, found = LiteRtBackend().load(path), inspect(path)
        assert (found.inputs, found.outputs) == (model.inputs, model.outputs), path.name
        assert found.precision == model.precision, path.name


def test_mobilenet_v2_as_published() -> None:
    found = inspect(real("mobilenet_v2/mobilenet_v2_1.0_224_quant.tflite"))
    assert found.parameters == 3_489_097
    assert found.macs == 300_775_552, "300 million in the paper"
    assert split(found)["CONV_2D"] == (36, 0, 0)
    assert found.precision == "uint8"


def test_an_lstm_is_said_to_be_uncounted() -> None:
    assert inspect(real("mnist_lstm/trained_lstm_int8.tflite")).macs_unknown == 1


# Graphs made here


def model_bytes(nodes: list[Any], constants: dict[str, Any], shape: list[Any], opset: int = 17, **more: Any) -> memoryview:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", more.pop("dtype", 1), None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return memoryview(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return pytest.importorskip("onnx").helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


F32 = np.float32


@pytest.mark.parametrize(
    ("attributes", "given", "weight", "macs"),
    [
        ({}, [1, 3, 8, 8], (4, 3, 3, 3), 4 * 6 * 6 * 27),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, [1, 3, 8, 8], (4, 3, 3, 3), 4 * 4 * 4 * 27),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [1, 3, 9, 9], (4, 3, 3, 3), 4 * 5 * 5 * 27),
        ({"dilations": [2]}, [1, 2, 16], (5, 2, 3), 5 * 12 * 6),
        ({"group": 8, "pads": [1, 1, 1, 1]}, [2, 8, 5, 5], (8, 1, 3, 3), 2 * 8 * 25 * 9),
        ({}, ["batch", 3, 8, 8], (4, 3, 3, 3), 4 * 6 * 6 * 27),
    ],
)
def test_multiply_accumulates_of_convolutions(attributes: dict[str, Any], given: list[Any], weight: tuple[int, ...], macs: int) -> None:
    data = model_bytes([node("Conv", "x w", "y", **attributes)], {"w": np.zeros(weight, F32)}, given)
    found = onnx_inspection.inspect(data)
    assert (found.macs, found.macs_unknown, found.parameters) == (macs, 0, int(np.prod(weight)))


def test_shapes_are_followed_through_a_network() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "b"), node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "c", "d", perm=[0, 2, 3, 1]), node("Reshape", "d s", "e"), node("MatMul", "e m", "f"),
        node("Unsqueeze", "f ax", "g"), node("Squeeze", "g ax", "h"), node("Add", "h bias", "i"), node("Concat", "i i", "j", axis=-1),
        node("Gemm", "j gw", "y", transB=1),
    ]  # fmt: skip
    constants = {
        "w": np.zeros((4, 1, 3, 3), F32), "s": np.array([0, -1], np.int64), "m": np.zeros((64, 5), F32), "ax": np.array([1], np.int64),
        "bias": np.zeros(5, F32), "gw": np.zeros((7, 10), F32),
    }  # fmt: skip
    found = onnx_inspection.inspect(model_bytes(nodes, constants, [1, 1, 8, 8]))
    assert (found.macs, found.macs_unknown) == (4 * 64 * 9 + 64 * 5 + 70, 0)
    assert found.parameters == 36 + 320 + 5 + 70, "shapes and axes are no parameters"


def test_what_depends_on_data_is_left_out_and_said() -> None:
    nodes = [node("NonZero", "x", "a"), node("Cast", "a", "b", to=1), node("MatMul", "b w", "y")]
    found = onnx_inspection.inspect(model_bytes(nodes, {"w": np.zeros((4, 4), F32)}, [4, 4]))
    assert (found.macs, found.macs_unknown) == (0, 1)


def qdq(*names: str) -> list[Any]:
    pairs = [(node("QuantizeLinear", f"{name} s z", f"{name}_q"), node("DequantizeLinear", f"{name}_q s z", f"{name}_d")) for name in names]
    return [part for pair in pairs for part in pair]


QUANTIZATION = {"s": F32(0.5), "z": np.uint8(3), "wq": np.zeros((4, 1, 3, 3), np.int8), "ws": np.ones(4, F32), "wz": np.zeros(4, np.int8)}
WEIGHT = "DequantizeLinear", "wq ws wz", "w_d"


@pytest.mark.parametrize(
    ("body", "int8", "floats"),
    [
        ([*qdq("x"), ("Conv", "x_d w_d", "a"), ("Relu", "a", "b"), *qdq("b"), ("Identity", "b_d", "y")], {"Conv", "Relu"}, {"Identity"}),
        ([*qdq("x"), ("Conv", "x_d w_d", "a"), ("Relu", "a", "y")], set(), {"Conv", "Relu"}),
        ([("Conv", "x w_d", "a"), *qdq("a"), ("Identity", "a_d", "y")], set(), {"Conv", "Identity"}),
        ([*qdq("x"), ("Sigmoid", "x_d", "a"), *qdq("a"), ("Exp", "a_d", "y")], {"Sigmoid"}, {"Exp"}),
    ],
    ids=["activation fused", "output not quantized", "weights alone", "any operator between pairs"],
)
def test_int8_is_what_stands_between_quantize_pairs(body: list[Any], int8: set[str], floats: set[str]) -> None:
    nodes = [node(*WEIGHT, axis=0), *(node(*part) if isinstance(part, tuple) else part for part in body)]
    found = onnx_inspection.inspect(model_bytes(nodes, QUANTIZATION, [1, 1, 8, 8]))
    assert {operator.name for operator in found.operators if operator.int8} == int8
    assert {operator.name for operator in found.operators if operator.float} == floats
    assert found.parameters == 36, "scales and zero points are no parameters"


def test_operators_of_other_domains_are_named_with_them() -> None:
    found = onnx_inspection.inspect(model_bytes([node("FastGelu", "x", "y", domain="com.microsoft")], {}, [1, 4]))
    assert found.operators == (OperatorCount("com.microsoft.FastGelu", 1, float=1),)
    assert found.version == "IR 9, opset com.microsoft 1"


# Refusals


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelRefused) as refusal:
        inspect(tmp_path / "model.onnx")
    assert refusal.value.reason is RefusalReason.UNSUPPORTED_FORMAT


def test_a_bundle_that_is_not_as_its_manifest_lists_it_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BEARING.parent, bundle)
    whole = (bundle / BEARING.name).read_bytes()
    (bundle / BEARING.name).write_bytes(whole[:-1] + b"\0")
    with pytest.raises(ModelRefused, match="not the file that the manifest lists"):
        inspect(bundle)


def test_absurd_shapes_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", dims=[1 << 40, 1 << 40], data_type=1)
    graph = onnx.helper.make_graph([node("Add", "x w", "y")], "g", [], [], [tensor])
    path = tmp_path / "absurd.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelRefused, match=r"unreadable: absurd\.onnx is not a whole model \(a tensor of more than"):
        inspect(path)


def cut(data: bytes, percent: int) -> bytes:
    return data[: len(data) * percent // 100]


def told_or_refused(path: Path) -> str:
    try:
        list(lines(inspect(path)))
    except ModelRefused as err:
        return err.reason.value
    return "told"


@pytest.mark.parametrize("source", [BEARING, ASSETS / "dense_int8.tflite", ASSETS / "endless.tflite"], ids=lambda path: path.suffix)
@pytest.mark.parametrize("damage", ["cut", "zeroed", "ones"])
def test_damage_at_every_hundredth_is_told_or_refused(tmp_path: Path, source: Path, damage: str) -> None:
    whole = source.read_bytes()
    path = tmp_path / f"damaged{source.suffix}"
    for percent in range(100):
        at = len(whole) * percent // 100
        filler = b"\0\0\0\0" if damage == "zeroed" else b"\xff\xff\xff\xff"
        path.write_bytes(cut(whole, percent) if damage == "cut" else whole[:at] + filler + whole[at + 4 :])
        assert told_or_refused(path) in ("told", "unreadable", "unsupported_format", "external_data")


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 2000), patch=st.binary(min_size=1, max_size=8))
def test_a_patched_flatbuffer_is_read_or_malformed(at: int, patch: bytes) -> None:
    whole = (ASSETS / "dense_int8.tflite").read_bytes()
    at %= len(whole)
    with suppress(Malformed):
        tflite_inspection.read(memoryview(whole[:at] + patch + whole[at + len(patch) :]))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 20_000), patch=st.binary(min_size=1, max_size=8))
def test_a_patched_onnx_graph_is_read_or_malformed(at: int, patch: bytes) -> None:
    whole = BEARING.read_bytes()
    at %= len(whole)
    with suppress(Malformed):
        onnx_inspection.inspect(memoryview(whole[:at] + patch + whole[at + len(patch) :]))


def test_a_flatbuffer_that_names_one_subgraph_a_thousand_times_ends() -> None:
    """A thousand subgraphs, all the same one with a thousand tensors, all the same one: a million tensors in 8 KB."""
    count = 1000
    vtable = struct.pack("<5H", 10, 8, 0, 0, 4) + b"\0\0"
    head = struct.pack("<I4s", 20, b"TFL3") + vtable + struct.pack("<iI", 12, 4) + struct.pack("<I", count)
    subgraph = len(head) + 4 * count + 8
    to_subgraph = b"".join(struct.pack("<I", subgraph - (len(head) + 4 * index)) for index in range(count))
    tensors = subgraph + 8
    tensor = tensors + 4 + 4 * count + 4
    to_tensor = b"".join(struct.pack("<I", tensor - (tensors + 4 + 4 * index)) for index in range(count))
    body = struct.pack("<3H", 6, 8, 4) + b"\0\0" + struct.pack("<iII", 8, 4, count) + to_tensor
    data = head + to_subgraph + body + struct.pack("<2H", 4, 4) + struct.pack("<i", 4)
    assert count * count * 3 > MAX_VISITS
    with pytest.raises(Malformed, match="more structure than a model has"):
        tflite_inspection.read(memoryview(data))


# The command


def test_the_command_prints_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("zoo:bearing") == 0
    told = capsys.readouterr().out
    for words in ("bearing-int8.onnx: onnx, int8", "vibration  1x1x1x1024 float32, scale 0.0402628", "531 k multiply", "Conv ", "labels"):
        assert words in told


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(ASSETS / "dense_int8.tflite"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["inspection"]["operators"][0] == {
        "name": "FULLY_CONNECTED",
        "count": 1,
        "int8": 1,
        "float": 0,
        "convert": 0,
        "other": 0,
    }
    assert document["optimisation"] is None


def test_the_command_names_why_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.tflite"
    path.touch()
    assert command(str(path), "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["refused"]["reason"] == "unreadable"
    assert "model refused: unreadable" in told.err


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999, "999"), (7824, "7.82 k"), (300_774_272, "301 M"), (4_089_184_256, "4.09 G")])
def test_large_numbers_in_three_figures(number: int, text: str) -> None:
    assert short(number) == text


# The optimiser


def test_every_level_takes_its_turn() -> None:
    pytest.importorskip("onnxruntime")
    report = optimise(BEARING, deadline_s=6)
    assert [level.level for level in report.levels] == ["off", "basic", "extended", "all"]
    assert all(level.runs and level.run_p10_ms <= level.run_ms <= level.run_p90_ms for level in report.levels)
    assert report.source["Conv"] == 4
    assert report.levels[2].operators["QLinearConv"] == 4
    assert report.levels[3].nodes < sum(report.source.values())
    assert report.same_bits is True
    assert report.load_cached_ms > 0
    assert report.hash_ms == 0, "a bundle's manifest holds the digest"
    assert "CPUExecutionProvider" in report.available


def test_the_command_prints_the_levels(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert command("zoo:bearing", "--optimise", "--deadline", "5") == 0
    told = capsys.readouterr().out
    assert "basic -> extended: " in told
    assert "4 QLinearConv" in told
    assert "the same bits" in told


def test_a_model_that_does_not_load_is_refused_by_the_child(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "wrong.onnx"
    path.write_bytes(model_bytes([node("Conv", "x missing", "y")], {}, [1, 1, 4, 4]))
    with pytest.raises(ModelRefused) as refusal:
        optimise(path, deadline_s=20)
    assert refusal.value.reason is RefusalReason.LOAD_FAILED


def test_the_child_ends_by_its_deadline() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelRefused) as refusal:
        optimise(BEARING, deadline_s=0.05)
    assert refusal.value.reason is RefusalReason.PROBE_TIMEOUT


def test_an_execution_provider_that_is_not_there_is_named() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=r"`Nowhere` is no execution provider of this onnxruntime \(it has: .*CPUExecutionProvider"):
        command("zoo:bearing", "--optimise", "--providers", "Nowhere,CPUExecutionProvider")


def test_only_onnx_has_levels() -> None:
    with pytest.raises(InputError, match=r"expected an \.onnx model, got dense_int8\.tflite"):
        optimise(ASSETS / "dense_int8.tflite")
