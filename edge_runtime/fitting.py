"""How an array of channels and samples becomes a model's input tensor: decided once from the shapes, copied many times.

Outsiders may import it: `infer` and the gateway lay a window into a tensor in the same way. Quantizing is the loaded model's.
"""

from __future__ import annotations

import math

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.steps import Shape
from edge_runtime.types import Array, TensorInfo


class Fit:
    """Copies an array of one shape into the model's input tensor. The tensor is reused by the next call."""

    def __init__(self, shape: Shape, tensor_shape: Shape, transposed: bool, dtype: str) -> None:
        self.tensor: Array = np.zeros(tensor_shape, dtype)
        self.target: Array = self.tensor.reshape(shape[::-1]).T if transposed else self.tensor.reshape(shape)
        self.flat: Array = self.tensor.reshape(-1)

    def __call__(self, data: Array) -> Array:
        self.target[...] = data
        return self.tensor


def fit_input(shape: Shape, info: TensorInfo) -> Fit:
    """How an array of `shape`, [channels, samples] or [values], becomes the tensor `info`, decided once.

    Tried in this order: as it is, with dimensions of 1 put in or left out ([1,C,N], [C,N,1], [1,C,1,N]); transposed
    ([1,N,C]); flattened channel after channel ([1,C*N]). Free dimensions (-1) take what is needed.
    Raises ModelRefused: WRONG_SHAPE with both shapes, WRONG_DTYPE for an integer tensor without a quantization scale.
    """
    dense = tuple(size for size in shape if size != 1)
    for arrangement, transposed in ((dense, False), (dense[::-1], True), ((math.prod(shape),), False)):
        tensor_shape = _place(arrangement, info.shape)
        if tensor_shape is not None:
            return Fit(shape, tensor_shape, transposed, _float_dtype(info))
    raise ModelRefused(
        RefusalReason.WRONG_SHAPE,
        f"the pipeline gives {list(shape)}, the model's input `{info.name}` is {list(info.shape)}; "
        "change window.size, the input channels or preprocess, or use the model's own window",
    )


def _place(dense: Shape, tensor: Shape) -> Shape | None:
    """The tensor's shape with `dense` in it, in order, and 1 elsewhere; leading dimensions become 1 first."""
    if not tensor:
        return () if not dense else None
    last = tensor[-1]
    if dense and last in (-1, dense[-1]):
        rest = _place(dense[:-1], tensor[:-1])
        if rest is not None:
            return (*rest, dense[-1])
    if last in (-1, 1):
        rest = _place(dense, tensor[:-1])
        if rest is not None:
            return (*rest, 1)
    return None


def _float_dtype(info: TensorInfo) -> str:
    if info.dtype in ("float16", "float32", "float64"):
        return info.dtype
    if info.scale or info.axis_scales:
        return "float32"
    raise ModelRefused(
        RefusalReason.WRONG_DTYPE,
        f"the model's input `{info.name}` is {info.dtype} without a quantization scale; expected a float input or a quantized one",
    )
