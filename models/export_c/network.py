"""A quantized network between its file and its blob: int8 tensors with the channel last, layers in the order in which they run.

Knows no file format and no byte layout. Stored values are int8 throughout; a model of uint8 activations is moved by 128 on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.types import Array


class Rounding(StrEnum):
    """How sums become results, bit for bit.

    HALF_EVEN as onnxruntime and XNNPACK, in float32; DOUBLE as TensorFlow Lite Micro, CMSIS-NN and the reference kernels of TensorFlow
    Lite, in fixed point, rounded twice; LITERT as the reference kernels of LiteRT 2, which differ from DOUBLE in fully connected layers.
    """

    HALF_EVEN = "half-even"
    DOUBLE = "double"
    LITERT = "litert"


class Operator(IntEnum):
    """The operators of the firmware, by their number in the blob."""

    CONV = 1
    DEPTHWISE = 2
    MAX_POOL = 3
    AVERAGE_POOL = 4
    ADD = 5
    SOFTMAX = 6
    ARGMAX = 7
    TABLE = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """Height, width, channels; a signal has height 1, a vector only channels."""

    h: int
    w: int
    c: int

    @property
    def count(self) -> int:
        return self.h * self.w * self.c

    @property
    def mixed(self) -> bool:
        """True when channel first and channel last are different orders of its values."""
        return self.c > 1 and self.h * self.w > 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """real = scale * (stored - zero), stored in int8."""

    name: str
    shape: Shape
    scale: np.float32
    zero: int


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, stride and dilation as (h, w); padding before the first row and column."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Layer:
    """One step. `weights` [out][kh][kw][in] (depthwise: [out][kh][kw]) with a scale per output channel; `bias` is int32, unfolded.

    `variant` is that of the blob. `offset` is 128 where the runtime computes in uint8 what is stored here in int8.
    `fixed_scales`: multipliers that the format computes in its own way, in float64, for double rounding. `exact` tells whether the runtime
    that the rounding names computes it in integers too; if not, results may differ by one step where a value lies between two.
    """

    operator: Operator
    node: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    window: Window = field(default_factory=Window)
    weights: Array | None = None
    weight_scales: Array | None = None
    bias: Array | None = None
    fixed_scales: Array | None = None
    low: int = -128
    high: int = 127
    variant: int = 0
    table: Array | None = None
    offset: int = 0
    exact: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        if self.weights is None:
            return 0
        per_output = int(np.prod(self.weights.shape[1:]))
        return self.output.shape.count * per_output


@dataclass(slots=True)
class Network:
    """The whole. `input_first` and `output_first`: channel first outside; `input_unsigned`, `output_unsigned`: uint8 outside."""

    layers: list[Layer]
    input: Tensor
    output: Tensor
    input_first: bool = False
    output_first: bool = False
    input_unsigned: bool = False
    output_unsigned: bool = False
    notes: list[str] = field(default_factory=list)


def refuse(node: str, operator: str, why: str) -> ModelRefused:
    """The refusal of one operator, naming it."""
    return ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"operator {operator} (node `{node}`): {why}")
