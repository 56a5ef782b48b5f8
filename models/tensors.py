"""Arrays at the border of a model: shape and dtype checks, INT8 in and out. Knows no runtime.

Rounding is half to even and saturating, as onnxruntime's QuantizeLinear and XNNPACK do it, so that a value quantized here and a
value quantized inside a graph are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.types import Array, FloatArray, TensorInfo

MAX_DIMENSIONS = 32  # of numpy 1; numpy 2 has 64


def is_quantized(tensor: TensorInfo) -> bool:
    """True when stored values stand for real ones by a scale."""
    return tensor.scale != 0.0 or bool(tensor.axis_scales)


def quantize(values: Array, tensor: TensorInfo) -> Array:
    """Real values to the stored dtype of `tensor`: rint(value / scale) + zero_point, saturated.

    Raises ModelRefused(RUN_FAILED) when a value is NaN: no integer stands for it.
    """
    scale, zero_point = _parameters(tensor, values.ndim)
    stored = np.divide(values, scale, dtype=np.float32)
    np.rint(stored, out=stored)
    stored += zero_point
    if stored.size and np.isnan(stored.min()):
        raise ModelRefused(
            RefusalReason.RUN_FAILED, f"input `{tensor.name}` holds NaN, which has no {tensor.dtype} value; mend the window first"
        )
    limits = np.iinfo(tensor.dtype)
    np.clip(stored, limits.min, limits.max, out=stored)
    return stored.astype(tensor.dtype)


def dequantize(stored: Array, tensor: TensorInfo) -> FloatArray:
    """Stored values to real ones, float32: scale * (stored - zero_point)."""
    scale, zero_point = _parameters(tensor, stored.ndim)
    values = stored.astype(np.float32)
    values -= zero_point
    values *= scale
    return values


@dataclass(frozen=True, slots=True)
class InputPort:
    """One input of a model, ready to take arrays. `fit` costs about 0.2 us when the array is already what the model wants."""

    tensor: TensorInfo
    dtype: np.dtype[Any]
    quantized: bool
    fixed: bool

    @classmethod
    def of(cls, tensor: TensorInfo) -> InputPort:
        """Raises ModelRefused(WRONG_DTYPE) when numpy has no such dtype."""
        return cls(tensor, numpy_dtype(tensor), is_quantized(tensor), -1 not in tensor.shape)

    def fit(self, array: Array) -> Array:
        """`array` as the runtime wants it. Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE) before the runtime sees a misfit."""
        if array.shape != self.tensor.shape and (self.fixed or not shape_fits(array.shape, self.tensor.shape)):
            raise wrong_shape(self.tensor, array.shape)
        if array.dtype == self.dtype:
            return array
        if array.dtype.kind == "f":
            if self.quantized:
                return quantize(array, self.tensor)
            if self.dtype.kind == "f":
                return array.astype(self.dtype)
        raise ModelRefused(RefusalReason.WRONG_DTYPE, f"input `{self.tensor.name}` takes {self._accepted()}, got {array.dtype}")

    def _accepted(self) -> str:
        return f"{self.tensor.dtype}, or float to be quantized" if self.quantized else self.tensor.dtype


def fit_all(ports: Sequence[InputPort], arrays: Sequence[Array]) -> list[Array]:
    """Each array through its port. Raises ModelRefused(WRONG_SHAPE) when the numbers differ."""
    if len(arrays) != len(ports):
        names = ", ".join(port.tensor.name for port in ports)
        raise ModelRefused(RefusalReason.WRONG_SHAPE, f"the model takes {len(ports)} inputs ({names}), got {len(arrays)}")
    return [port.fit(array) for port, array in zip(ports, arrays, strict=True)]


def shape_fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """True when `shape` is `wanted` with its free dimensions (-1) filled in."""
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def wrong_shape(tensor: TensorInfo, shape: Sequence[int]) -> ModelRefused:
    """The refusal for an array of another shape."""
    return ModelRefused(RefusalReason.WRONG_SHAPE, f"input `{tensor.name}` takes shape {shape_text(tensor.shape)}, got {shape_text(shape)}")


def shape_text(shape: Sequence[int]) -> str:
    """`1x1024x1`, with `?` for a free dimension; `scalar` for none."""
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"


def numpy_dtype(tensor: TensorInfo) -> np.dtype[Any]:
    """The numpy dtype of a tensor. Raises ModelRefused(WRONG_DTYPE) for one that numpy lacks (bfloat16, float8, int4, text)."""
    try:
        dtype: np.dtype[Any] = np.dtype(tensor.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise ModelRefused(
            RefusalReason.WRONG_DTYPE,
            f"`{tensor.name}` is {tensor.dtype}, which cannot be fed from here; export the model with float32 or int8",
        )
    return dtype


def check_rank(tensor: TensorInfo) -> None:
    """Raises ModelRefused(WRONG_SHAPE) for more dimensions than an array can have: a damaged file may say anything."""
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise ModelRefused(
            RefusalReason.WRONG_SHAPE,
            f"`{tensor.name}` has {len(tensor.shape)} dimensions, an array has {MAX_DIMENSIONS} at most; the file is damaged",
        )


def zeros(tensor: TensorInfo) -> Array:
    """An input of zeros, free dimensions taken as 1."""
    return np.zeros([max(size, 1) for size in tensor.shape], numpy_dtype(tensor))


def element_count(tensor: TensorInfo) -> int:
    """Values in one input, free dimensions taken as 1."""
    return int(np.prod([max(size, 1) for size in tensor.shape], dtype=np.int64))


def _parameters(tensor: TensorInfo, rank: int) -> tuple[Any, Any]:
    if not tensor.axis_scales:
        return np.float32(tensor.scale), np.float32(tensor.zero_point)
    shape = [1] * rank
    shape[tensor.axis] = -1
    scales: npt.NDArray[Any] = np.asarray(tensor.axis_scales, np.float32).reshape(shape)
    return scales, np.asarray(tensor.axis_zero_points, np.float32).reshape(shape)
