"""Factors between the scales of a layer, as the two roundings store them: a float32 significand, or a fixed-point multiplier."""

from __future__ import annotations

import math

import numpy as np

from edge_runtime.types import Array
from models.export_c.network import Layer, Rounding

_SIGNIFICAND_BITS = 24
_MULTIPLIER_BITS = 31


def factors(layer: Layer, rounding: Rounding) -> tuple[Array, Array]:
    """(mult int32, shift int8) per output channel of a convolution."""
    given, made = layer.inputs[0].scale, layer.output.scale
    assert layer.weight_scales is not None
    scales = layer.weight_scales.astype(np.float32)
    if rounding is Rounding.HALF_EVEN:
        return significands([np.float32(np.float32(given * scale) / made) for scale in scales])
    fixed = layer.fixed_scales
    exact = [float(given) * float(scale) / float(made) for scale in scales] if fixed is None else list(fixed)
    return multipliers(exact)


def significands(scales: list[np.float32]) -> tuple[Array, Array]:
    """float32 factors as significand * 2^exponent with 24 bits."""
    found = [_significand(float(scale)) for scale in scales]
    return _columns(found)


def multipliers(scales: list[float]) -> tuple[Array, Array]:
    """Factors as multiplier / 2^31 * 2^shift."""
    return _columns([_multiplier(scale) for scale in scales])


def rounded_twice(value: int, multiplier: int, shift: int) -> int:
    """value * multiplier / 2^31 * 2^shift as the firmware's round_double computes it."""
    product = (value << max(shift, 0)) * multiplier
    high = (product + (1 << 30)) >> 31 if product >= 0 else -((-product + (1 << 30) - 1) >> 31)
    by = max(-shift, 0)
    mask = (1 << by) - 1
    return (high >> by) + ((high & mask) > (mask >> 1) + (high < 0))


def _significand(scale: float) -> tuple[int, int]:
    fraction, exponent = math.frexp(scale)
    significand, exponent = int(fraction * (1 << _SIGNIFICAND_BITS)), exponent - _SIGNIFICAND_BITS
    return (significand, exponent) if -128 <= exponent <= 127 and significand > 0 else (0, 0)


def _multiplier(scale: float) -> tuple[int, int]:
    """Factors below 2^-32 are taken as zero, those of 2^30 and more as the largest, as TensorFlow Lite does."""
    if scale == 0.0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(fraction * (1 << _MULTIPLIER_BITS) + 0.5)
    if multiplier == 1 << _MULTIPLIER_BITS:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -_MULTIPLIER_BITS:
        return 0, 0
    return (multiplier, shift) if shift <= 30 else ((1 << _MULTIPLIER_BITS) - 1, 30)


def _columns(pairs: list[tuple[int, int]]) -> tuple[Array, Array]:
    return np.array([pair[0] for pair in pairs], np.int32), np.array([pair[1] for pair in pairs], np.int8)
