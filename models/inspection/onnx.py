"""Inspects an .onnx file: which operators compute in INT8 and which in float, parameters, multiply-accumulates. It executes nothing.

What is told here is what the file asks for: `models.inspection.optimise` tells what onnxruntime makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.types import TensorInfo
from models.inspection.onnx_reader import Graph, Model, Node, Value, read
from models.inspection.report import Arithmetic, OperatorCount, count_operators, product, total
from models.inspection.shapes import Shape, infer

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CONVERSIONS = frozenset({_QUANTIZE, _DEQUANTIZE, "DynamicQuantizeLinear"})
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QGemm", "QAttention", "QEmbed")
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid"})
_WITHOUT_ARITHMETIC = frozenset({"Constant", "Shape", "If", "Loop", "Scan"})
_CARRIED = frozenset({"float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int4", "uint4"})


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the walk found."""

    version: str
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[OperatorCount, ...]
    parameters: int
    macs: int
    macs_unknown: int


def inspect(data: memoryview) -> Inspected:
    """Walks a ModelProto. Raises Malformed when it cannot be one."""
    model = read(data)
    graph, arithmetic, shapes = model.graph, _Arithmetic(model.graph), infer(model.graph)
    counted = [_macs(node, shapes) for node in graph.nodes]
    return Inspected(
        version=_version(model),
        producer=model.producer,
        inputs=tuple(arithmetic.port(value) for value in graph.inputs if value.name not in graph.constants),
        outputs=tuple(arithmetic.port(value) for value in graph.outputs),
        operators=operators(graph, arithmetic.of),
        parameters=_parameters(graph),
        macs=total(macs for macs in counted if macs is not None),
        macs_unknown=counted.count(None),
    )


def operators(graph: Graph, arithmetic: Callable[[Node], Arithmetic]) -> tuple[OperatorCount, ...]:
    """Operators by kind; those outside the standard set with their domain."""
    return count_operators((operator_name(node), arithmetic(node)) for node in graph.nodes)


def operator_name(node: Node) -> str:
    """`Conv`, or `com.microsoft.FusedConv` for one outside the standard set."""
    return node.operator if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.operator}"


class _Arithmetic:
    """Reads the QuantizeLinear/DequantizeLinear pairs around operators as onnxruntime does when it fuses them."""

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.constants
        self._maker = {output: node for node in graph.nodes for output in node.outputs}
        self._takers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._takers.setdefault(name, []).append(node)

    def of(self, node: Node) -> Arithmetic:
        """What one operator computes in."""
        if node.operator in _CONVERSIONS:
            return "convert"
        if node.operator.startswith(_INTEGER):
            return "int8"
        if node.operator in _WITHOUT_ARITHMETIC:
            return "other"
        return "int8" if self._fused(node) else "float"

    def port(self, value: Value) -> TensorInfo:
        """An input or output with the scale that it is quantized by at once, where there is one."""
        shape = value.shape if value.shape is not None else ()
        scale = self._scale_at(value.name)
        return TensorInfo(value.name, shape, value.dtype) if scale is None else TensorInfo(value.name, shape, value.dtype, *scale)

    def _scale_at(self, name: str) -> tuple[float, int] | None:
        at_once = [node for node in self._takers.get(name, ()) if node.operator == _QUANTIZE]
        maker = self._maker.get(name)
        near = at_once[:1] or ([maker] if maker is not None and maker.operator == _DEQUANTIZE else [])
        if not near or len(near[0].inputs) < 2:
            return None
        scale, zero = ([*self._numbers(near[0], index)] for index in (1, 2))
        return (scale[0], int(zero[0]) if zero else 0) if len(scale) == 1 else None

    def _numbers(self, node: Node, index: int) -> tuple[float, ...]:
        constant = self._constants.get(node.inputs[index]) if index < len(node.inputs) else None
        return constant.values if constant is not None and constant.values is not None else ()

    def _fused(self, node: Node) -> bool:
        """Quantized on the way in and on the way out, an activation in between allowed."""
        if node.operator in _ACTIVATIONS and self._leads_to_quantize(node):
            maker = self._maker.get(node.inputs[0]) if node.inputs else None
            if maker is not None and maker.operator in _WEIGHTED:
                return self._takes_dequantized(maker)
        return self._takes_dequantized(node) and self._ends_quantized(node)

    def _takes_dequantized(self, node: Node) -> bool:
        needed = node.inputs[:2] if node.operator in _WEIGHTED else [name for name in node.inputs if name and name not in self._constants]
        return bool(needed) and all(self._is_dequantized(name) for name in needed)

    def _is_dequantized(self, name: str) -> bool:
        maker = self._maker.get(name)
        return maker is not None and maker.operator == _DEQUANTIZE

    def _ends_quantized(self, node: Node) -> bool:
        if node.operator in ("MatMul", "Gemm"):
            return True
        takers = [taker for name in node.outputs for taker in self._takers.get(name, ())]
        single = len(takers) == 1 and takers[0].operator in _ACTIVATIONS
        return self._leads_to_quantize(takers[0] if single and node.operator in _WEIGHTED else node)

    def _leads_to_quantize(self, node: Node) -> bool:
        takers = [taker for name in node.outputs for taker in self._takers.get(name, ())]
        return bool(takers) and all(taker.operator == _QUANTIZE for taker in takers)


def _version(model: Model) -> str:
    used = {node.domain or "ai.onnx" for node in model.graph.nodes}
    opsets = [f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets.items() if (domain or "ai.onnx") in used]
    return f"IR {model.ir_version}, opset {', '.join(opsets) or 'not said'}"


def _parameters(graph: Graph) -> int:
    """Weights and biases: constants of rank 1 and more that are neither shapes, indices nor quantization constants."""
    scales = {name for node in graph.nodes for name in _quantization_constants(node)}
    kept = (constant for name, constant in graph.constants.items() if name not in scales)
    return total(product(constant.shape) for constant in kept if constant.shape and constant.dtype in _CARRIED)


def _quantization_constants(node: Node) -> list[str]:
    if node.operator in (_QUANTIZE, _DEQUANTIZE):
        return node.inputs[1:3]
    if node.operator in ("QLinearConv", "QLinearMatMul"):
        return [name for index, name in enumerate(node.inputs) if index in (1, 2, 4, 5, 6, 7)]
    return []


def _macs(node: Node, shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-accumulates; 0 for operators that are neither convolution, matrix product nor recurrent, None when shapes do not say."""
    rule = _MACS.get(node.operator)
    if rule is None:
        return 0
    weight_at, count = rule
    if len(node.inputs) <= weight_at or not node.outputs:
        return None
    given, weight, made = (shapes.get(name) for name in (node.inputs[0], node.inputs[weight_at], node.outputs[0]))
    recurrent = shapes.get(node.inputs[2]) if node.operator in _RECURRENT and len(node.inputs) > 2 else ()
    return None if given is None or weight is None or made is None or recurrent is None else count(given, weight, made, recurrent)


def _of_conv(_: Shape, weight: Shape, made: Shape, __: Shape) -> int:
    return product(made) * product(weight[1:])


def _of_conv_transpose(given: Shape, weight: Shape, _: Shape, __: Shape) -> int:
    return product(given) * product(weight[1:])


def _of_matmul(given: Shape, _: Shape, made: Shape, __: Shape) -> int:
    return product(made) * (given[-1] if given else 1)


def _of_gemm(_: Shape, weight: Shape, made: Shape, __: Shape) -> int:
    return product(weight) * (made[0] if made else 1)


def _of_recurrent(given: Shape, weight: Shape, _: Shape, recurrent: Shape) -> int:
    return product(given[:2]) * (product(weight) + product(recurrent))


_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_MACS: dict[str, tuple[int, Callable[[Shape, Shape, Shape, Shape], int]]] = {
    "Conv": (1, _of_conv), "FusedConv": (1, _of_conv), "ConvInteger": (1, _of_conv), "QLinearConv": (3, _of_conv),
    "ConvTranspose": (1, _of_conv_transpose), "MatMul": (1, _of_matmul), "FusedMatMul": (1, _of_matmul),
    "MatMulInteger": (1, _of_matmul), "QLinearMatMul": (3, _of_matmul), "Gemm": (1, _of_gemm), "FusedGemm": (1, _of_gemm),
    **dict.fromkeys(_RECURRENT, (1, _of_recurrent)),
}  # fmt: skip
