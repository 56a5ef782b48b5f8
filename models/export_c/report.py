"""What a model costs on the node: flash, RAM, multiply-accumulates and predicted instructions, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from models.export_c.arena import Arena
from models.export_c.blob import HMAC_BYTES, LAYER_BYTES, Blob
from models.export_c.network import Layer, Network, Operator, Rounding

_NAMES = {Operator.CONV: "conv", Operator.DEPTHWISE: "depthwise conv", Operator.MAX_POOL: "max pool", Operator.AVERAGE_POOL: "average pool"}


class LayerReport(msgspec.Struct, frozen=True):
    """One layer. `flash_bytes` with its description; `instructions` are predicted for a Cortex-M3 and are no time."""

    node: str
    operator: str
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    macs: int
    flash_bytes: int
    instructions: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole model. Shapes are (h, w, c); real = scale * (stored - zero point) as the outside sees it."""

    name: str
    version: int
    rounding: str
    flash_bytes: int
    arena_bytes: int
    macs: int
    instructions: int
    input: tuple[int, int, int]
    input_dtype: str
    input_scale: float
    input_zero_point: int
    output: tuple[int, int, int]
    output_dtype: str
    output_scale: float
    output_zero_point: int
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...]


def report(network: Network, written: Blob, placed: Arena, rounding: Rounding, name: str, version: int) -> Report:
    """Counts."""
    layers = tuple(
        _layer(layer, LAYER_BYTES + part.size_bytes, rounding) for layer, part in zip(network.layers, written.parts, strict=True)
    )
    given, made = network.input, network.output
    return Report(
        name=name,
        version=version,
        rounding=rounding.value,
        flash_bytes=len(written.data),
        arena_bytes=placed.size_bytes,
        macs=sum(layer.macs for layer in layers),
        instructions=sum(layer.instructions for layer in layers) + _copies(network),
        input=(given.shape.h, given.shape.w, given.shape.c),
        input_dtype="uint8" if network.input_unsigned else "int8",
        input_scale=float(given.scale),
        input_zero_point=given.zero + 128 * network.input_unsigned,
        output=(made.shape.h, made.shape.w, made.shape.c),
        output_dtype="uint8" if network.output_unsigned else "int8",
        output_scale=float(made.scale),
        output_zero_point=made.zero + 128 * network.output_unsigned,
        layers=layers,
        notes=tuple(network.notes),
    )


def lines(found: Report) -> Iterator[str]:
    """For people."""
    yield f"{found.name} version {found.version}: {found.flash_bytes:,} bytes of flash ({HMAC_BYTES + 4} of them CRC and signature)"
    yield f"  rounding      {found.rounding}"
    yield f"  arena         {found.arena_bytes:,} bytes of RAM"
    yield f"  arithmetic    {found.macs:,} multiply-accumulates, about {found.instructions:,} instructions on a Cortex-M3 (not a time)"
    for side in ("input", "output"):
        shape = "x".join(map(str, getattr(found, side)))
        scale, zero = getattr(found, f"{side}_scale"), getattr(found, f"{side}_zero_point")
        yield f"  {side:13s} {shape} {getattr(found, f'{side}_dtype')}, scale {scale:.6g}, zero point {zero}"
    yield f"  {'layer':32s} {'operator':15s} {'input':>12s} {'output':>12s} {'macs':>10s} {'flash':>8s} {'instructions':>13s}"
    for layer in found.layers:
        shapes = ["x".join(map(str, shape)) for shape in (layer.input, layer.output)]
        yield (
            f"  {layer.node[:32]:32s} {layer.operator:15s} {shapes[0]:>12s} {shapes[1]:>12s} "
            f"{layer.macs:>10,} {layer.flash_bytes:>8,} {layer.instructions:>13,}"
        )
    yield from (f"  note          {note}" for note in found.notes)


def _layer(layer: Layer, flash: int, rounding: Rounding) -> LayerReport:
    given, made = layer.inputs[0].shape, layer.output.shape
    name = _NAMES.get(layer.operator, layer.operator.name.lower())
    if layer.operator is Operator.CONV and layer.window.kernel == (1, 1) and given.h * given.w == 1:
        name = "fully connected"
    instructions = predict(layer, rounding)
    return LayerReport(layer.node, name, (given.h, given.w, given.c), (made.h, made.w, made.c), layer.macs, flash, instructions)


def predict(layer: Layer, rounding: Rounding) -> int:
    """Instructions of a layer, fitted to counts on the emulated Cortex-M3; whole networks come within a tenth."""
    given, made = layer.inputs[0].shape, layer.output.shape
    rows, columns = layer.window.kernel
    once = 0 if rounding is Rounding.HALF_EVEN else _FLOAT_ROUNDING
    if layer.operator is Operator.CONV:
        channels = made.c + made.c % 2
        pairs = made.h * made.w * channels // 2
        return round(pairs * rows * (6.6 * columns * given.c + 80) + made.count * (118 - once) + made.h * made.w * 66)
    if layer.operator is Operator.DEPTHWISE:
        return round(layer.macs * 15.5 + made.count * (176 - once))
    if layer.operator is Operator.ARGMAX:
        return 10 * given.count
    per_value, per_tap = _COST[layer.operator, layer.variant]
    return made.count * (per_value + per_tap * rows * columns)


def _copies(network: Network) -> int:
    return 12 * (network.input.shape.count + network.output.shape.count)


_FLOAT_ROUNDING = 19
_COST = {
    (Operator.MAX_POOL, 0): (53, 19),
    (Operator.AVERAGE_POOL, 0): (131, 16),
    (Operator.AVERAGE_POOL, 1): (72, 16),
    (Operator.AVERAGE_POOL, 2): (361, 130),
    (Operator.ADD, 0): (194, 0),
    (Operator.ADD, 1): (126, 0),
    (Operator.SOFTMAX, 0): (438, 0),
    (Operator.SOFTMAX, 1): (211, 0),
    (Operator.TABLE, 0): (9, 0),
}
