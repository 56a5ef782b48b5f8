"""Operators of ONNX (opset 13 to 21) in torch, as the standard has them. Quantizes nothing.

A leading 1 in a constant shape is taken as the batch, so that graphs exported for one sample train in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_runtime.errors import InputError

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Any], Attributes], Any]


def convolve(x: Sequence[Any], attributes: Attributes) -> Tensor:
    """Conv of one to three dimensions."""
    value, weight, rank = x[0], x[1], x[1].dim() - 2
    stride, dilation = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    value = _padded(value, attributes, weight.shape[2:], stride, dilation, 0.0)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(value, weight, _optional(x, 2), stride, 0, dilation, attributes.get("group", 1))


def gemm(x: Sequence[Any], attributes: Attributes) -> Tensor:
    a = x[0].t() if attributes.get("transA") else x[0]
    b = x[1].t() if attributes.get("transB") else x[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    bias = _optional(x, 2)
    return product if bias is None else product + attributes.get("beta", 1.0) * bias


def normalize(x: Sequence[Any], attributes: Attributes) -> Tensor:
    """BatchNormalization with the statistics of the graph."""
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], False, 0.0, attributes.get("epsilon", 1e-5))


def layer_normalize(x: Sequence[Any], attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", -1) % x[0].dim()
    return F.layer_norm(x[0], x[0].shape[axis:], x[1], _optional(x, 2), attributes.get("epsilon", 1e-5))


def max_pool(x: Sequence[Any], attributes: Attributes) -> Tensor:
    kernel = attributes["kernel_shape"]
    stride, dilation = (attributes.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    value = _padded(x[0], attributes, kernel, stride, dilation, float("-inf"))
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(value, kernel, stride, 0, dilation, bool(attributes.get("ceil_mode", 0)))


def average_pool(x: Sequence[Any], attributes: Attributes) -> Tensor:
    kernel = attributes["kernel_shape"]
    stride = attributes.get("strides", [1] * len(kernel))
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(attributes.get("ceil_mode", 0))
    padded = _padded(x[0], attributes, kernel, stride, [1] * len(kernel), 0.0)
    sums = function(padded, kernel, stride, 0, ceil)
    if attributes.get("count_include_pad", 0) or padded.shape == x[0].shape:
        return sums
    inside = _padded(torch.ones_like(x[0]), attributes, kernel, stride, [1] * len(kernel), 0.0)
    return sums / function(inside, kernel, stride, 0, ceil)


def clip(x: Sequence[Any], attributes: Attributes) -> Tensor:
    low, high = _optional(x, 1), _optional(x, 2)
    return x[0] if low is None and high is None else torch.clamp(x[0], low, high)


def reshape(x: Sequence[Any], attributes: Attributes) -> Tensor:
    shape = [int(size) for size in x[1]]
    if not attributes.get("allowzero"):
        shape = [x[0].shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if shape and shape[0] == 1 and x[0].dim() and x[0].shape[0] != 1:
        shape[0] = x[0].shape[0]
    return x[0].reshape(shape)


def flatten(x: Sequence[Any], attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x[0].dim() if axis < 0 else axis
    rows = 1
    for size in x[0].shape[:axis]:
        rows *= size
    return x[0].reshape(rows, -1)


def squeeze(x: Sequence[Any], attributes: Attributes) -> Tensor:
    axes = _axes(x, 1)
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def unsqueeze(x: Sequence[Any], attributes: Attributes) -> Tensor:
    axes = _axes(x, 1) or []
    value, rank = x[0], x[0].dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def split(x: Sequence[Any], attributes: Attributes) -> tuple[Tensor, ...]:
    axis, sizes = attributes.get("axis", 0), _axes(x, 1)
    if sizes is None:
        return tuple(torch.chunk(x[0], attributes["num_outputs"], axis))
    return tuple(torch.split(x[0], sizes, axis))


def cut(x: Sequence[Any], attributes: Attributes) -> Tensor:
    """Slice with steps of one or more."""
    starts, ends = _axes(x, 1) or [], _axes(x, 2) or []
    axes, steps = _axes(x, 3) or list(range(len(starts))), _axes(x, 4) or [1] * len(starts)
    value = x[0]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise InputError(f"Slice with a step of {step} cannot be trained; expected 1 or more")
        places = [slice(None)] * value.dim()
        places[axis] = slice(start, end if end < 2**31 - 1 else None, step)
        value = value[tuple(places)]
    return value


def pad(x: Sequence[Any], attributes: Attributes) -> Tensor:
    mode, pads = attributes.get("mode", "constant"), _axes(x, 1) or []
    if mode != "constant" or _optional(x, 3) is not None:
        raise InputError(f"Pad in mode `{mode}` or along given axes cannot be trained; expected constants on all axes")
    half = len(pads) // 2
    pairs = [size for i in reversed(range(half)) for size in (pads[i], pads[half + i])]
    fill = _optional(x, 2)
    return F.pad(x[0], pairs, value=0.0 if fill is None else float(fill))


def reduced(function: Any) -> Operator:
    """ReduceMean and its like."""

    def reduce(x: Sequence[Any], attributes: Attributes) -> Tensor:
        axes = _axes(x, 1) or attributes.get("axes") or list(range(x[0].dim()))
        return function(x[0], dim=tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _padded(value: Tensor, attributes: Attributes, kernel: Sequence[int], stride: Any, dilation: Any, fill: float) -> Tensor:
    """Explicit padding, as `pads` or `auto_pad` say."""
    kind, rank = attributes.get("auto_pad", "NOTSET"), len(kernel)
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank)
        for i, size in enumerate(value.shape[2:]):
            steps = -(-size // stride[i])
            total = max(0, (steps - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - size)
            small, large = total // 2, total - total // 2
            pads[i], pads[rank + i] = (small, large) if kind == "SAME_UPPER" else (large, small)
    if not any(pads):
        return value
    pairs = [size for i in reversed(range(rank)) for size in (pads[i], pads[rank + i])]
    return F.pad(value, pairs, value=fill)


def _optional(x: Sequence[Any], index: int) -> Any:
    return x[index] if len(x) > index else None


def _axes(x: Sequence[Any], index: int) -> list[int] | None:
    found = _optional(x, index)
    return None if found is None else [int(value) for value in found.reshape(-1)]


def _first(function: Callable[[Any], Any]) -> Operator:
    return lambda x, attributes: function(x[0])


def _both(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda x, attributes: function(x[0], x[1])


def _spatial(function: Callable[[Any, tuple[int, ...]], Any]) -> Operator:
    return lambda x, attributes: function(x[0], tuple(range(2, x[0].dim())))


OPERATORS: dict[str, Operator] = {
    "Add": _both(torch.add),
    "AveragePool": average_pool,
    "BatchNormalization": normalize,
    "Clip": clip,
    "Concat": lambda x, attributes: torch.cat(list(x), attributes["axis"]),
    "Conv": convolve,
    "Div": _both(torch.div),
    "Dropout": _first(lambda x: x),
    "Elu": lambda x, attributes: F.elu(x[0], attributes.get("alpha", 1.0)),
    "Erf": _first(torch.erf),
    "Exp": _first(torch.exp),
    "Flatten": flatten,
    "Gelu": lambda x, attributes: F.gelu(x[0], approximate=attributes.get("approximate", "none")),
    "Gemm": gemm,
    "GlobalAveragePool": _spatial(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _spatial(lambda x, axes: x.amax(axes, keepdim=True)),
    "HardSigmoid": lambda x, a: torch.clamp(a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5), 0.0, 1.0),
    "HardSwish": _first(F.hardswish),
    "Identity": _first(lambda x: x),
    "LayerNormalization": layer_normalize,
    "LeakyRelu": lambda x, attributes: F.leaky_relu(x[0], attributes.get("alpha", 0.01)),
    "Log": _first(torch.log),
    "LogSoftmax": lambda x, attributes: F.log_softmax(x[0], attributes.get("axis", -1)),
    "MatMul": _both(torch.matmul),
    "MaxPool": max_pool,
    "Mul": _both(torch.mul),
    "Neg": _first(torch.neg),
    "PRelu": lambda x, attributes: torch.where(x[0] < 0, x[0] * x[1], x[0]),
    "Pad": pad,
    "Pow": _both(torch.pow),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceSum": reduced(torch.sum),
    "Relu": _first(F.relu),
    "Reshape": reshape,
    "Sigmoid": _first(torch.sigmoid),
    "Slice": cut,
    "Softmax": lambda x, attributes: F.softmax(x[0], attributes.get("axis", -1)),
    "Softplus": _first(F.softplus),
    "Split": split,
    "Sqrt": _first(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": _both(torch.sub),
    "Tanh": _first(torch.tanh),
    "Transpose": lambda x, attributes: x[0].permute(attributes.get("perm") or list(reversed(range(x[0].dim())))),
    "Unsqueeze": unsqueeze,
}
"""By name. Each takes its inputs (None where absent) and attributes."""
