"""What the blob and the firmware can hold: a network beyond it is refused here, by node, rather than on the node by a number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from models.export_c.network import Layer, Network, Operator, Shape, Tensor, refuse

MAX_SIDE = 65_535
MAX_VALUES = 1 << 20
MAX_TAPS = 32_768
MAX_WORK = 20_000_000
_MAX_STEP = 255
_MAX_PAD = 32_767


def require(network: Network) -> None:
    """Raises ModelRefused(UNSUPPORTED_FORMAT) naming the node, TOO_LARGE when one run would take the node too many steps."""
    for layer in network.layers:
        for why in (*_tensors(layer), *_window(layer), *_shapes(layer), *_constants(layer)):
            raise refuse(layer.node, layer.operator.name.lower().replace("_", " "), why)
    work = sum(_work(layer) for layer in network.layers)
    if work > MAX_WORK:
        raise ModelRefused(RefusalReason.TOO_LARGE, f"one run takes {work:,} steps, the node's firmware allows {MAX_WORK:,}")


def _tensors(layer: Layer) -> Iterator[str]:
    for tensor in (*layer.inputs, layer.output):
        if not _fits(tensor.shape):
            sides = f"{tensor.shape.h}x{tensor.shape.w}x{tensor.shape.c}"
            yield f"a tensor of {sides}; expected sides from 1 to {MAX_SIDE} and {MAX_VALUES} values at most"
        if not _scaled(tensor):
            yield f"scale {tensor.scale} and zero point {tensor.zero}; expected a finite scale above 0 and a zero point of 8 bits"
        elif not np.isfinite(tensor.scale / layer.output.scale):
            yield f"scales {tensor.scale} and {layer.output.scale} too far apart"


def _fits(shape: Shape) -> bool:
    return min(shape.h, shape.w, shape.c) >= 1 and max(shape.h, shape.w, shape.c) <= MAX_SIDE and shape.count <= MAX_VALUES


def _scaled(tensor: Tensor) -> bool:
    return bool(np.isfinite(tensor.scale)) and float(tensor.scale) > 0 and -128 <= tensor.zero <= 127


def _window(layer: Layer) -> Iterator[str]:
    window = layer.window
    if min(window.kernel) < 1 or max(window.kernel) > MAX_SIDE or _taps(layer) > MAX_TAPS:
        yield f"a kernel of {window.kernel[0]}x{window.kernel[1]}; expected 1 to {MAX_TAPS} values in all"
    if min(*window.stride, *window.dilation) < 1 or max(*window.stride, *window.dilation) > _MAX_STEP:
        yield f"stride {window.stride} and dilation {window.dilation}; expected 1 to {_MAX_STEP}"
    if not 0 <= min(window.pad) <= max(window.pad) <= _MAX_PAD:
        yield f"padding {window.pad}; expected 0 to {_MAX_PAD}"


def _shapes(layer: Layer) -> Iterator[str]:
    given, made, window = layer.inputs[0].shape, layer.output.shape, layer.window
    if layer.operator in (Operator.ADD, Operator.SOFTMAX, Operator.TABLE) and any(tensor.shape != made for tensor in layer.inputs):
        yield f"from {given.h}x{given.w}x{given.c} to {made.h}x{made.w}x{made.c}; expected one shape"
    if layer.operator in (Operator.MAX_POOL, Operator.AVERAGE_POOL) and given.c != made.c:
        yield f"from {given.c} channels to {made.c}"
    ends = ((made.h, given.h), (made.w, given.w))
    reaches = ((out - 1) * window.stride[axis] + window.kernel[axis] <= size for axis, (out, size) in enumerate(ends))
    if layer.operator is Operator.AVERAGE_POOL and not all(reaches):
        yield "an average that reaches over the edge of its input"


def _constants(layer: Layer) -> Iterator[str]:
    if layer.weights is None or layer.weight_scales is None:
        return
    channels, given = layer.output.shape.c, layer.inputs[0].shape.c
    expected = (channels, *layer.window.kernel, *((given,) if layer.operator is Operator.CONV else ()))
    if layer.weights.shape != expected:
        yield f"weights {list(layer.weights.shape)}; expected {list(expected)}"
    elif layer.operator is Operator.DEPTHWISE and channels % given:
        yield f"{channels} channels from {given}"
    factors = layer.inputs[0].scale * layer.weight_scales.astype(np.float32) / layer.output.scale
    if not np.all(np.isfinite(factors)) or np.any(factors < 0):
        yield "scales of weights that are not finite numbers from 0 on, or too far from that of the result"


def _taps(layer: Layer) -> int:
    taps = layer.window.kernel[0] * layer.window.kernel[1]
    return taps * layer.inputs[0].shape.c if layer.operator is Operator.CONV else taps


def _work(layer: Layer) -> int:
    """As nn_check counts it."""
    windowed = layer.operator in (Operator.CONV, Operator.DEPTHWISE, Operator.MAX_POOL, Operator.AVERAGE_POOL)
    return layer.output.shape.count * (1 + (_taps(layer) if windowed else 0))
