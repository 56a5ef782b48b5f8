"""Every operator that trains computes in torch what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.onnx import OnnxBackend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch", reason="torch is not installed: make test-train, or pip install -r requirements/train.txt")
pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)


def real(*shape: int) -> Array:
    return RNG.normal(0, 1, shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


IMAGE, ROWS = real(3, 4, 7, 9), real(5, 12)
POSITIVE = np.abs(IMAGE) + 0.1
CASES: list[tuple[str, list[Array], dict[str, Any]]] = [
    ("Add", [IMAGE, real(4, 1, 1)], {}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("BatchNormalization", [IMAGE, real(4), real(4), real(4), np.abs(real(4)) + 0.1], {"epsilon": 1e-3}),
    ("Clip", [IMAGE, np.float32(-0.5), np.float32(0.7)], {}),
    ("Concat", [IMAGE, real(3, 2, 7, 9)], {"axis": 1}),
    ("Conv", [IMAGE, real(8, 2, 3, 3), real(8)], {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]}),
    ("Conv", [IMAGE, real(6, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [IMAGE, real(6, 4, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [real(3, 2, 20), real(5, 2, 4), real(5)], {"pads": [1, 2]}),
    ("Div", [IMAGE, POSITIVE], {}),
    ("Elu", [IMAGE], {"alpha": 0.7}),
    ("Erf", [IMAGE], {}),
    ("Exp", [IMAGE], {}),
    ("Flatten", [IMAGE], {"axis": 2}),
    ("Flatten", [IMAGE], {"axis": -1}),
    ("Gelu", [IMAGE], {"approximate": "tanh"}),
    ("Gemm", [ROWS, real(6, 12), real(6)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [ROWS, real(5, 6)], {"transA": 1}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
    ("HardSigmoid", [IMAGE], {"alpha": 0.3, "beta": 0.4}),
    ("HardSwish", [3 * IMAGE], {}),
    ("Identity", [IMAGE], {}),
    ("LayerNormalization", [ROWS, real(12), real(12)], {"axis": -1}),
    ("LeakyRelu", [IMAGE], {"alpha": 0.2}),
    ("Log", [POSITIVE], {}),
    ("LogSoftmax", [ROWS], {"axis": 1}),
    ("MatMul", [ROWS, real(12, 7)], {}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("Mul", [IMAGE, real(9)], {}),
    ("Neg", [IMAGE], {}),
    ("PRelu", [IMAGE, real(4, 1, 1)], {}),
    ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}),
    ("Pow", [POSITIVE, np.float32(1.5)], {}),
    ("ReduceMax", [IMAGE, whole(2, 3)], {"keepdims": 0}),
    ("ReduceMean", [IMAGE, whole(1)], {}),
    ("ReduceSum", [IMAGE, whole(-1)], {"keepdims": 0}),
    ("Relu", [IMAGE], {}),
    ("Reshape", [IMAGE, whole(0, -1, 9)], {}),
    ("Sigmoid", [IMAGE], {}),
    ("Slice", [IMAGE, whole(1, 0), whole(-1, 8), whole(2, 3), whole(2, 3)], {}),
    ("Slice", [IMAGE, whole(2), whole(2**62), whole(3)], {}),
    ("Softmax", [ROWS], {"axis": -1}),
    ("Softplus", [IMAGE], {}),
    ("Split", [ROWS, whole(5, 7)], {"axis": 1}),
    ("Sqrt", [POSITIVE], {}),
    ("Squeeze", [real(3, 1, 4, 1), whole(1, -1)], {}),
    ("Sub", [IMAGE, real(4, 1, 1)], {}),
    ("Tanh", [IMAGE], {}),
    ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [ROWS], {}),
    ("Unsqueeze", [ROWS, whole(1, -1)], {}),
]


@pytest.mark.parametrize(("kind", "given", "attributes"), CASES, ids=[f"{kind}{i}" for i, (kind, _, _) in enumerate(CASES)])
def test_it_is_the_same_in_both(kind: str, given: list[Array], attributes: dict[str, Any], tmp_path: Path) -> None:
    from models.quantize.qat.operators import OPERATORS

    first, *rest = given
    names = [f"c{i}" for i in range(len(rest))]
    made = ["y", "z"] if kind == "Split" else ["y"]
    node = onnx.helper.make_node(kind, ["x", *names], made, **attributes)
    info, tensor = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    constants = [tensor(np.asarray(value), name) for name, value in zip(names, rest, strict=True)]
    graph = onnx.helper.make_graph([node], "one", [info("x", 1, list(first.shape))], [info(name, 1, None) for name in made], constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), str(tmp_path / "m.onnx"))
    expected = OnnxBackend().load(tmp_path / "m.onnx").run([first])
    got = OPERATORS[kind]([torch.from_numpy(np.array(value)) for value in given], attributes)
    for wanted, tensors in zip(expected, got if isinstance(got, tuple) else (got,), strict=True):
        assert tuple(tensors.shape) == wanted.shape
        np.testing.assert_allclose(tensors.numpy(), wanted, rtol=2e-5, atol=2e-5)


def test_none_is_left_out() -> None:
    from models.quantize.qat.operators import OPERATORS

    assert set(OPERATORS) - {kind for kind, _, _ in CASES} == {"Dropout"}


@pytest.mark.parametrize(
    ("kind", "given", "attributes", "named"),
    [
        ("Slice", [ROWS, whole(4), whole(0), whole(0), whole(-1)], {}, "step of -1"),
        ("Pad", [ROWS, whole(0, 1, 0, 1)], {"mode": "reflect"}, "mode `reflect`"),
    ],
)
def test_what_it_cannot_do_is_named(kind: str, given: list[Array], attributes: dict[str, Any], named: str) -> None:
    from models.quantize.qat.operators import OPERATORS

    with pytest.raises(InputError, match=named):
        OPERATORS[kind]([torch.from_numpy(np.array(value)) for value in given], attributes)


def test_a_batch_of_one_in_a_constant_shape_is_any_batch() -> None:
    from models.quantize.qat.operators import reshape

    assert reshape([torch.zeros(6, 4, 3), torch.tensor([1, 12])], {}).shape == (6, 12)
