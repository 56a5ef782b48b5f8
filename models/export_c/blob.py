"""Writes the blob that the firmware runs in place; its layout is that of adapters/firmware/PROTOCOL.md, "Model blob"."""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.export_c.arena import Arena
from models.export_c.network import Layer, Network, Operator, Rounding, Shape, refuse
from models.export_c.rounding import factors, multipliers, significands

MAGIC = 0x314E5245
FORMAT = 1
HEADER_BYTES = 96
LAYER_BYTES = 64
KEY_BYTES = 32
HMAC_BYTES = 32
DEVELOPMENT_KEY = bytes(range(KEY_BYTES))
MAX_LAYERS = 64

_LEAST_FACTOR = 2.0**-9
_SOFTMAX_RESERVE = 5.0
_LARGEST_FACTOR = 65_536

_HEADER = struct.Struct("<IHBBIIIHH4H4HfifiII16sI12x")
_LAYER = struct.Struct("<BBbb6HHHBBBBHHhhIIIIIII4x")
_ROUNDINGS = {Rounding.HALF_EVEN: 0, Rounding.DOUBLE: 1, Rounding.LITERT: 1}


@dataclass(frozen=True, slots=True)
class Parts:
    """Offsets of a layer's data in the blob, 0 where there is none, and its size."""

    weights: int = 0
    bias: int = 0
    mult: int = 0
    shift: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes, and what each layer takes of them beside its 64 bytes of description."""

    data: bytes
    parts: tuple[Parts, ...]


class _Data:
    """Constants behind the layers, at multiples of 4; equal ones are stored once."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._bytes = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, values: Array | None, dtype: str) -> int:
        if values is None:
            return 0
        raw = np.ascontiguousarray(values).astype(dtype).tobytes()
        if raw not in self._known:
            self._known[raw] = self._first + len(self._bytes)
            self._bytes += raw + bytes(-len(raw) % 4)
        return self._known[raw]

    def __len__(self) -> int:
        return len(self._bytes)

    def take(self) -> bytes:
        return bytes(self._bytes)


def write(network: Network, arena: Arena, rounding: Rounding, *, name: str, version: int, key: bytes) -> Blob:
    """The signed blob. Raises InputError for a key, a version or a depth that it cannot hold."""
    if len(key) != KEY_BYTES:
        raise InputError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
    if not 0 < version < 1 << 32:
        raise InputError(f"expected a model version from 1 to {(1 << 32) - 1}, got {version}")
    if len(network.layers) > MAX_LAYERS:
        raise InputError(f"the network has {len(network.layers)} layers, the firmware takes {MAX_LAYERS}")
    data = _Data(HEADER_BYTES + LAYER_BYTES * len(network.layers))
    parts = tuple(_constants(layer, rounding, data) for layer in network.layers)
    layers = b"".join(_describe(layer, part, arena) for layer, part in zip(network.layers, parts, strict=True))
    body = layers + data.take()
    size = HEADER_BYTES + len(body) + 4 + HMAC_BYTES
    content = _header(network, arena, rounding, name, version, size) + body
    return Blob(sign(content, key), parts)


def sign(content: bytes, key: bytes) -> bytes:
    """Header, layers and data with their CRC32 and their HMAC behind them."""
    checked = content + struct.pack("<I", zlib.crc32(content))
    return checked + hmac.digest(key, checked, hashlib.sha256)


def _header(network: Network, arena: Arena, rounding: Rounding, name: str, version: int, size: int) -> bytes:
    flags = network.input_first | network.output_first << 1 | network.input_unsigned << 2 | network.output_unsigned << 3
    given, made = network.input, network.output
    return _HEADER.pack(
        MAGIC, FORMAT, _ROUNDINGS[rounding], flags, size, version, arena.size_bytes, len(network.layers), 0,
        *_shape(given.shape), 0, *_shape(made.shape), 0,
        given.scale, given.zero + 128 * network.input_unsigned, made.scale, made.zero + 128 * network.output_unsigned,
        arena.offsets[given.name], arena.offsets[made.name],
        name.encode("ascii", "replace")[:16], sum(layer.macs for layer in network.layers),
    )  # fmt: skip


def _describe(layer: Layer, part: Parts, arena: Arena) -> bytes:
    window, given = layer.window, layer.inputs
    second = arena.offsets[given[1].name] if len(given) > 1 else 0
    return _LAYER.pack(
        layer.operator, layer.variant, layer.low, layer.high, *_shape(given[0].shape), *_shape(layer.output.shape),
        *window.kernel, *window.stride, *window.dilation, *window.pad, given[0].zero, layer.output.zero,
        arena.offsets[given[0].name], second, arena.offsets[layer.output.name],
        part.weights, part.bias, part.mult, part.shift,
    )  # fmt: skip


def _constants(layer: Layer, rounding: Rounding, data: _Data) -> Parts:
    before = len(data)
    weights, bias, mult, shift = _values(layer, rounding)
    kind = "<f4" if bias is not None and bias.dtype == np.float32 else "<i4"
    stored = "<f4" if layer.operator is Operator.SOFTMAX else "i1"
    parts = (data.add(weights, stored), data.add(bias, kind), data.add(mult, "<i4"), data.add(shift, "i1"))
    return Parts(*parts, size_bytes=len(data) - before)


def _values(layer: Layer, rounding: Rounding) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """Weights, bias, mult and shift, each None where the operator has none."""
    if layer.operator in (Operator.CONV, Operator.DEPTHWISE):
        return layer.weights, _folded(layer), *factors(layer, rounding)
    if layer.operator is Operator.AVERAGE_POOL:
        return _average(layer, rounding)
    if layer.operator is Operator.ADD:
        return _sum(layer)
    if layer.operator is Operator.SOFTMAX:
        return _exponentials(layer), _share_factor(layer), None, None
    return layer.table, None, None, None


def _folded(layer: Layer) -> Array:
    """The bias with -in_zero * sum(weights) in it, so that stored values can be multiplied as they are."""
    assert layer.weights is not None
    assert layer.bias is not None
    sums = layer.weights.reshape(len(layer.weights), -1).astype(np.int64).sum(axis=1)
    folded = layer.bias.astype(np.int64) - layer.inputs[0].zero * sums
    wrapped: Array = folded.astype(np.uint64).astype(np.uint32).view(np.int32)
    return wrapped


def _average(layer: Layer, rounding: Rounding) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    given, made = layer.inputs[0].scale, layer.output.scale
    taps = layer.window.kernel[0] * layer.window.kernel[1]
    if layer.variant == 1:
        return None, None, None, None
    if layer.variant == 2:
        return None, _words(layer, given, made), None, None
    if rounding is Rounding.HALF_EVEN:
        return None, None, *significands([np.float32(given / np.float32(made * np.float32(taps)))])
    return None, None, *multipliers([float(given) / (float(made) * taps)])


def _sum(layer: Layer) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    (first, second), made = layer.inputs, layer.output
    if layer.variant == 0:
        return None, _fused_sum(layer), None, None
    twice = 2.0 * max(float(first.scale), float(second.scale))
    scales = [float(first.scale) / twice, float(second.scale) / twice, twice / ((1 << 20) * float(made.scale))]
    return None, np.array([second.zero], np.int32), *multipliers(scales)


def _fused_sum(layer: Layer) -> Array:
    """The factors of x and y and what is added, in steps of 2^-32, computed as onnxruntime does with fused multiply-adds."""
    (first, second), made = layer.inputs, layer.output
    zeros = [tensor.zero + layer.offset for tensor in (first, second, made)]
    a, b = np.float32(first.scale / made.scale), np.float32(second.scale / made.scale)
    if not all(_LEAST_FACTOR <= factor <= 1 / _LEAST_FACTOR for factor in (a, b)):
        raise refuse(layer.node, "Add", f"scales that differ by more than {1 / _LEAST_FACTOR:g}; quantize it again")
    taken = np.float32(float(a) * zeros[0] + float(np.float32(b * np.float32(zeros[1]))))
    moved = np.float32(np.float32(zeros[2]) - taken)
    fixed = np.array([round(float(value) * (1 << 32)) for value in (a, b, moved)], np.int64)
    words: Array = np.array([*fixed.view(np.int32), layer.offset], np.int32)
    return words


def _words(layer: Layer, *values: np.float32) -> Array:
    """float32 values and the offset behind them, as the int32 words that they are."""
    words: Array = np.array([*np.array(values, np.float32).view(np.int32), layer.offset], np.int32)
    return words


def _exponentials(layer: Layer) -> Array:
    """exp(scale * (i - 255)), as the runtime's own table has it: onnxruntime's is larger by a factor that keeps its sum just finite."""
    steps = np.arange(256) - 255
    scale = np.float32(layer.inputs[0].scale)
    if layer.variant == 1:
        return np.exp((scale * steps.astype(np.float32)).astype(np.float64)).astype(np.float32)
    largest = float(np.float32(math.log(float(np.finfo(np.float32).max / np.float32(layer.output.shape.c)))))
    shift = max(0.0, largest - _SOFTMAX_RESERVE) / float(scale)
    table: Array = np.exp((steps + shift) * float(scale)).astype(np.float32)
    return table


def _share_factor(layer: Layer) -> Array:
    """What a share is multiplied by (onnxruntime takes the whole part of 1 / scale), or LiteRT's scale of the result."""
    scale = np.float32(layer.output.scale)
    if layer.variant == 1:
        return np.array([scale], np.float32)
    factor = np.floor(np.float32(1) / scale)
    if not 1 <= factor < _LARGEST_FACTOR:
        raise refuse(layer.node, "Softmax", f"a result in steps of {scale:g}; expected steps of 1/256 or so")
    return np.array([factor], np.float32)


def _shape(shape: Shape) -> tuple[int, int, int]:
    return shape.h, shape.w, shape.c
