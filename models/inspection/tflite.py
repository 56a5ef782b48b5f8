"""Inspects a .tflite file by walking its bytes. It executes nothing and needs no TensorFlow Lite runtime.

Field numbers and names are those of the schema, version 3 (https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.types import TensorInfo
from models.inspection.flatbuffer import Buffer, Table
from models.inspection.report import Arithmetic, OperatorCount, count_operators, product, total
from models.inspection.tflite_operators import OPERATORS
from models.protobuf import Malformed

_DTYPES = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64", "complex128", "uint64",
    "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_QUANTIZED = ("int8", "uint8", "int16")
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_CUSTOM = 32
_MAX_SCALES = 1_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a subgraph. `stored` is the size in bytes of its constant value, 0 for a computed one."""

    info: TensorInfo
    stored: int

    @property
    def quantized(self) -> bool:
        """True when its stored integers stand for real values."""
        return self.info.dtype in _QUANTIZED and (self.info.scale != 0 or bool(self.info.axis_scales))


@dataclass(frozen=True, slots=True)
class Model:
    """What the walk found, subgraphs taken together."""

    version: str
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[OperatorCount, ...]
    precision: str
    parameters: int
    macs: int
    macs_unknown: int


@dataclass(frozen=True, slots=True)
class _Operator:
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def read(data: memoryview) -> Model:
    """Walks a Model table. Raises Malformed when it cannot be one."""
    root = Buffer(data).root()
    names = [_operator_name(code) for code in root.tables(1)]
    stored = [buffer.size_of(0) or buffer.integer(2, "<Q") for buffer in root.tables(4)]
    graphs = root.tables(2)
    if not graphs:
        raise Malformed("no subgraph")
    tensors = [[_tensor(table, stored) for table in graph.tables(0)] for graph in graphs]
    operators = [op for graph, own in zip(graphs, tensors, strict=True) for op in _operators(graph, own, names)]
    counted = [_macs(operator) for operator in operators]
    inputs, outputs = ([tensor.info for tensor in _pick(graphs[0].numbers(field, "i"), tensors[0])] for field in (1, 2))
    return Model(
        version=f"TFLite schema {root.integer(0, '<I')}{_runtime_version(root)}",
        producer=root.text(3),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        operators=count_operators((operator.name, _arithmetic(operator)) for operator in operators),
        precision=_precision(inputs, [tensor for own in tensors for tensor in own]),
        parameters=total(product(tensor.info.shape) for own in tensors for tensor in own if _is_parameter(tensor)),
        macs=total(macs for macs in counted if macs is not None),
        macs_unknown=counted.count(None),
    )


def _operator_name(code: Table) -> str:
    number = max(code.integer(0, "<b"), code.integer(3, "<i"))
    if number == _CUSTOM:
        return f"CUSTOM {code.text(1)}".strip()
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"UNKNOWN {number}"


def _tensor(table: Table, stored: Sequence[int]) -> Tensor:
    shape = tuple(int(size) for size in table.numbers(7, "i", 64) or table.numbers(0, "i", 64))
    code, buffer = table.integer(1, "<b"), table.integer(2, "<I")
    if buffer and buffer >= len(stored):
        raise Malformed(f"buffer {buffer} of {len(stored)}")
    dtype = _DTYPES[code] if 0 <= code < len(_DTYPES) else f"type {code}"
    return Tensor(_with_scales(TensorInfo(table.text(3), shape, dtype), table.table(4)), stored[buffer] if buffer else 0)


def _with_scales(info: TensorInfo, quantization: Table | None) -> TensorInfo:
    if quantization is None:
        return info
    scales = tuple(float(scale) for scale in quantization.numbers(2, "f", _MAX_SCALES))
    zeros = tuple(int(zero) for zero in quantization.numbers(3, "q", _MAX_SCALES)) or (0,) * len(scales)
    if len(zeros) != len(scales):
        raise Malformed(f"{len(zeros)} zero points for {len(scales)} scales")
    if len(scales) == 1 and info.dtype not in _FLOATS:
        return TensorInfo(info.name, info.shape, info.dtype, scales[0], zeros[0])
    if len(scales) > 1:
        axis = quantization.integer(6, "<i")
        return TensorInfo(info.name, info.shape, info.dtype, axis_scales=scales, axis_zero_points=zeros, axis=axis)
    return info


def _operators(graph: Table, tensors: Sequence[Tensor], names: Sequence[str]) -> Iterator[_Operator]:
    for table in graph.tables(3):
        index = table.integer(0, "<I")
        if index >= len(names):
            raise Malformed(f"operator code {index} of {len(names)}")
        yield _Operator(names[index], _pick(table.numbers(1, "i"), tensors), _pick(table.numbers(2, "i"), tensors))


def _pick(indices: Sequence[Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of an operator; -1 stands for one left out."""
    if any(index >= len(tensors) or index < -1 for index in indices):
        raise Malformed("a tensor that is not there")
    return [tensors[index] for index in indices if index >= 0]


def _arithmetic(operator: _Operator) -> Arithmetic:
    """By the tensors computed on the way; weights alone in INT8 leave an operator float."""
    if operator.name in ("QUANTIZE", "DEQUANTIZE"):
        return "convert"
    computed = [tensor for tensor in (*operator.inputs, *operator.outputs) if not tensor.stored]
    if any(tensor.info.dtype in _FLOATS for tensor in computed):
        return "float"
    return "int8" if any(tensor.quantized for tensor in computed) else "other"


def _macs(operator: _Operator) -> int | None:
    """Multiply-accumulates; 0 for operators that are neither convolution nor matrix product, None when shapes do not say."""
    if len(operator.inputs) < 2 or not operator.outputs:
        return 0
    given, weights = operator.inputs[0].info.shape, operator.inputs[1].info.shape
    made = operator.outputs[0].info.shape
    if operator.name in ("CONV_2D", "CONV_3D"):
        return product(made) * product(weights[1:]) if operator.name == "CONV_2D" else product(made) * product(weights[:-1])
    if operator.name == "DEPTHWISE_CONV_2D":
        return product(made) * product(weights[1:3])
    if operator.name == "TRANSPOSE_CONV" and len(operator.inputs) > 2:
        return product(operator.inputs[2].info.shape) * product(weights[:3])
    if operator.name == "FULLY_CONNECTED" and weights:
        return product(given) // max(weights[-1], 1) * product(weights) or product(weights)
    if operator.name == "BATCH_MATMUL" and given:
        return product(made) * max(given[-1], 1)
    return None if operator.name.startswith(("UNIDIRECTIONAL", "BIDIRECTIONAL", "LSTM", "RNN", "SVDF")) else 0


def _is_parameter(tensor: Tensor) -> bool:
    """Constant, and not a shape or an index: integers of 32 and 64 bits count only with a scale."""
    scaled = tensor.info.scale != 0 or bool(tensor.info.axis_scales)
    return tensor.stored > 0 and (scaled or tensor.info.dtype in (*_FLOATS, "int8", "uint8", "int16", "int4"))


def _precision(inputs: Sequence[TensorInfo], tensors: Sequence[Tensor]) -> str:
    for info in inputs:
        if info.scale or info.axis_scales:
            return info.dtype
    inside = {tensor.info.dtype for tensor in tensors if tensor.quantized}
    return next((dtype for dtype in _QUANTIZED if dtype in inside), inputs[0].dtype if inputs else "float32")


def _runtime_version(root: Table) -> str:
    """The oldest runtime that knows all operators, where the maker noted it."""
    buffers = root.tables(4)
    for entry in root.tables(6):
        index = entry.integer(1, "<I")
        if entry.text(0) == "min_runtime_version" and index < len(buffers):
            noted = buffers[index].bytes_of(0, 16).rstrip(b"\0").decode("ascii", "replace")
            return f", needs runtime {noted}" if noted else ""
    return ""
