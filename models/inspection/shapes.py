"""Tells the shapes inside an ONNX graph where they follow from the inputs' by simple arithmetic. What it cannot tell it leaves out.

A free first dimension is taken as 1. Enough for counting the arithmetic of convolutional, dense and recurrent networks; shapes that a
graph computes from data stay unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from models.inspection.onnx_reader import Constant, Graph, Node, Value
from models.inspection.report import product

Shape = tuple[int, ...]

_BROADCAST_NAMES = "Add Sub Mul Div Pow Max Min Sum Mean PRelu Where Equal Less Greater Mod"
_SAME_NAMES = """
    Abs BatchNormalization Cast Ceil Clip CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax MeanVarianceNormalization Mish Neg Not QuantizeLinear Reciprocal
    Relu Round Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu QLinearLeakyRelu QLinearSigmoid QLinearSoftmax
    QuickGelu DynamicQuantizeLinear
"""
_BROADCAST = frozenset(_BROADCAST_NAMES.split())
_SAME = frozenset(_SAME_NAMES.split())


def infer(graph: Graph) -> dict[str, Shape]:
    """The shapes that are known, by name of the value. Raises Malformed when a shape is absurd."""
    known: dict[str, Shape] = {name: constant.shape for name, constant in graph.constants.items()}
    for value in graph.values.values():
        shape = _static(value)
        if shape is not None:
            known.setdefault(value.name, shape)
    for node in graph.nodes:
        for name, shape in zip(node.outputs, _outputs(node, known, graph.constants), strict=False):
            if shape is not None and min(shape, default=0) >= 0:
                product(shape)
                known[name] = shape
    return known


def _static(value: Value) -> Shape | None:
    if value.shape is None or -1 in value.shape[1:]:
        return None
    return tuple(max(size, 1) if size < 0 else size for size in value.shape)


def _outputs(node: Node, known: Mapping[str, Shape], constants: Mapping[str, Constant]) -> Sequence[Shape | None]:
    if node.operator in _BROADCAST:
        return [_broadcast([known.get(name) for name in node.inputs])]
    given = known.get(node.inputs[0]) if node.inputs else None
    if given is None:
        return []
    if node.operator in _SAME:
        return [given]
    rule = _RULES.get(node.operator)
    if rule is None:
        return []
    try:
        return [rule(node, given, _Context(known, constants))]
    except (IndexError, ZeroDivisionError):
        return []


class _Context:
    """What a rule may ask about its node's other inputs."""

    def __init__(self, known: Mapping[str, Shape], constants: Mapping[str, Constant]) -> None:
        self._known, self._constants = known, constants

    def shape(self, node: Node, index: int) -> Shape | None:
        return self._known.get(node.inputs[index]) if index < len(node.inputs) else None

    def integers(self, node: Node, index: int, attribute: str) -> Shape | None:
        """Integers given as an attribute (older opsets) or as a constant input (newer ones)."""
        if attribute in node.ints:
            return node.ints[attribute]
        constant = self._constants.get(node.inputs[index]) if index < len(node.inputs) else None
        return None if constant is None or constant.values is None else tuple(int(value) for value in constant.values)


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    result = [1] * rank
    for shape in shapes:
        if shape is None:
            return None
        for index, size in enumerate(shape, rank - len(shape)):
            if result[index] == 1:
                result[index] = size
            elif size not in (1, result[index]):
                return None
    return tuple(result)


def _conv(weight: int) -> Callable[[Node, Shape, _Context], Shape | None]:
    def rule(node: Node, given: Shape, context: _Context) -> Shape | None:
        kernel = context.shape(node, weight)
        return None if kernel is None else (given[0], kernel[0], *_window(node, given[2:], kernel[2:], floor=True))

    return rule


def _conv_transpose(node: Node, given: Shape, context: _Context) -> Shape | None:
    kernel = context.shape(node, 1)
    if kernel is None or node.ints.get("output_shape") or node.texts.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    rank = len(given) - 2
    strides, dilations, pads, extra = (_spread(node, name, rank) for name in ("strides", "dilations", "pads", "output_padding"))
    sizes = [
        strides[i] * (given[2 + i] - 1) + extra[i] + (kernel[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[rank + i] for i in range(rank)
    ]
    return (given[0], kernel[1] * node.integer("group", 1), *sizes)


def _pool(node: Node, given: Shape, _: _Context) -> Shape | None:
    kernel = node.ints.get("kernel_shape", ())
    return (*given[:2], *_window(node, given[2:], kernel, floor=not node.integer("ceil_mode", 0)))


def _window(node: Node, sizes: Shape, kernel: Shape, *, floor: bool) -> list[int]:
    rank, auto_pad = len(sizes), node.texts.get("auto_pad", "NOTSET")
    strides, dilations, pads = (_spread(node, name, rank) for name in ("strides", "dilations", "pads"))
    made = []
    for i, size in enumerate(sizes):
        if auto_pad.startswith("SAME"):
            made.append(ceil(size / strides[i]))
            continue
        padded = size if auto_pad == "VALID" else size + pads[i] + pads[rank + i]
        steps = (padded - (kernel[i] - 1) * dilations[i] - 1) / strides[i]
        made.append(max(0, int(steps // 1 if floor else ceil(steps)) + 1))
    return made


def _spread(node: Node, name: str, rank: int) -> Shape:
    count, default = (2 * rank, 0) if name == "pads" else (rank, 0 if name == "output_padding" else 1)
    return node.ints.get(name) or (default,) * count


def _global_pool(_: Node, given: Shape, __: _Context) -> Shape:
    return (*given[:2], *[1] * (len(given) - 2))


def _gemm(node: Node, given: Shape, context: _Context) -> Shape | None:
    weight = context.shape(node, 1)
    if weight is None:
        return None
    rows = given[1] if node.integer("transA", 0) else given[0]
    return rows, weight[0] if node.integer("transB", 0) else weight[1]


def _matmul(second: int) -> Callable[[Node, Shape, _Context], Shape | None]:
    def rule(node: Node, given: Shape, context: _Context) -> Shape | None:
        other = context.shape(node, second)
        if other is None or len(given) < 2 or len(other) < 2:
            return None
        batch = _broadcast([given[:-2], other[:-2]])
        return None if batch is None else (*batch, given[-2], other[-1])

    return rule


def _flatten(node: Node, given: Shape, _: _Context) -> Shape:
    axis = node.integer("axis", 1)
    return product(given[:axis]), product(given[axis:])


def _reshape(node: Node, given: Shape, context: _Context) -> Shape | None:
    wanted = context.integers(node, 1, "shape")
    if wanted is None:
        return None
    sizes = [given[i] if size == 0 and not node.integer("allowzero", 0) else size for i, size in enumerate(wanted)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = product(given) // product([size for size in sizes if size != -1])
    return tuple(sizes)


def _transpose(node: Node, given: Shape, _: _Context) -> Shape:
    return tuple(given[axis] for axis in node.ints.get("perm", tuple(reversed(range(len(given))))))


def _squeeze(node: Node, given: Shape, context: _Context) -> Shape | None:
    axes = context.integers(node, 1, "axes")
    if axes is None:
        return tuple(size for size in given if size != 1) if len(node.inputs) < 2 else None
    gone = {axis % len(given) for axis in axes}
    return tuple(size for axis, size in enumerate(given) if axis not in gone)


def _unsqueeze(node: Node, given: Shape, context: _Context) -> Shape | None:
    axes = context.integers(node, 1, "axes")
    if axes is None:
        return None
    rank, rest = len(given) + len(axes), iter(given)
    new = {axis % rank for axis in axes}
    return tuple(1 if axis in new else next(rest, 1) for axis in range(rank))


def _concat(node: Node, given: Shape, context: _Context) -> Shape | None:
    shapes = [context.shape(node, index) for index in range(len(node.inputs))]
    axis = node.integer("axis", 0) % len(given)
    sizes = [shape[axis] for shape in shapes if shape is not None]
    return (*given[:axis], sum(sizes), *given[axis + 1 :]) if len(sizes) == len(shapes) else None


def _reduce(node: Node, given: Shape, context: _Context) -> Shape | None:
    axes = context.integers(node, 1, "axes")
    if axes is None and len(node.inputs) > 1:
        return None
    gone = {axis % len(given) for axis in axes} if axes else set(range(len(given)))
    kept = node.integer("keepdims", 1)
    return tuple(1 if axis in gone else size for axis, size in enumerate(given) if kept or axis not in gone)


def _pad(node: Node, given: Shape, context: _Context) -> Shape | None:
    pads = context.integers(node, 1, "pads")
    if pads is None or len(pads) != 2 * len(given):
        return None
    return tuple(size + pads[i] + pads[len(given) + i] for i, size in enumerate(given))


def _recurrent(node: Node, given: Shape, context: _Context) -> Shape | None:
    weight = context.shape(node, 2)
    return None if weight is None else (given[0], weight[0], given[1], weight[2])


_RULES: dict[str, Callable[[Node, Shape, _Context], Shape | None]] = {
    "Conv": _conv(1), "FusedConv": _conv(1), "ConvInteger": _conv(1), "QLinearConv": _conv(3), "ConvTranspose": _conv_transpose,
    "MaxPool": _pool, "AveragePool": _pool, "LpPool": _pool, "QLinearAveragePool": _pool,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "QLinearGlobalAveragePool": _global_pool,
    "Gemm": _gemm, "FusedGemm": _gemm, "MatMul": _matmul(1), "FusedMatMul": _matmul(1), "MatMulInteger": _matmul(1),
    "QLinearMatMul": _matmul(3), "Flatten": _flatten, "Reshape": _reshape, "Transpose": _transpose, "Squeeze": _squeeze,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
    "Unsqueeze": _unsqueeze, "Concat": _concat, "Pad": _pad, "ReduceMean": _reduce, "ReduceSum": _reduce, "ReduceMax": _reduce,
    "ReduceMin": _reduce, "ReduceL2": _reduce, "ReduceSumSquare": _reduce,
    "QLinearAdd": lambda node, given, context: _broadcast([given, context.shape(node, 3)]),
    "QLinearMul": lambda node, given, context: _broadcast([given, context.shape(node, 3)]),
}  # fmt: skip
