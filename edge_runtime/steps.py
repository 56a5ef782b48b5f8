"""Preprocessing named in a deployment or a model's manifest: text to steps, steps to array operations with their buffers made once.

A step works along the last axis (samples), channel by channel, and tells its output's shape, so that `check` can hold a
pipeline against its model without running it. One language for both documents: outsiders may import it. No window keeping, no model.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array, FloatArray

Shape = tuple[int, ...]
Kernel = Callable[[Array, Array], object]
"""`(x, out)`: writes the step's result into `out`. `x` and `out` may be one array when the step keeps the shape in place."""

_Parts = tuple[Callable[[Shape], Shape], Callable[[Shape], Kernel], bool]  # the fields of a Step after its text
_EPSILON = 1e-6
_FEW_ROWS = 8
_MOST_FRAMED = 16 * 1024 * 1024
SMALL = 8192  # above this a BLAS product may start threads
_TEXT = re.compile(r"^\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:\(([^()]*)\))?\s*$")


@dataclass(frozen=True, slots=True)
class Step:
    """One parsed step. `shape` raises InputError for an input it cannot take; `build` makes the kernel for that input."""

    text: str
    shape: Callable[[Shape], Shape]
    build: Callable[[Shape], Kernel]
    in_place: bool = True


def parse_steps(names: Sequence[str]) -> tuple[Step, ...]:
    """Steps of texts such as "standardize", "scale(0.5)", "clip(-1, 1)". Raises InputError naming the known steps."""
    return tuple(_parse(name) for name in names)


def output_shape(steps: Sequence[Step], shape: Shape) -> Shape:
    """Shape after all steps. Raises InputError naming the step that cannot take its input."""
    for step in steps:
        shape = step.shape(shape)
    return shape


def known_steps() -> tuple[str, ...]:
    """Every step as it is written, with its arguments."""
    return tuple(factory.usage for factory in _FACTORIES.values())


class NotFinite(InputError):
    """NaN or infinity where a model must not see it, or came out of one."""


def is_finite(values: FloatArray) -> bool:
    """Whether a 1-D array holds no NaN and no infinity. About 0.3 us for sensor-sized arrays."""
    if values.size <= SMALL and math.isfinite(values.dot(values)):
        return True
    return bool(np.isfinite(values).all())


class Chain:
    """Steps compiled for one input shape, ending in `target` (of `output_shape`); buffers in between are made once.

    Not thread-safe: one caller at a time.
    """

    def __init__(self, steps: Sequence[Step], shape: Shape, target: Array) -> None:
        self._target = target
        self._stages: list[tuple[Kernel, Array]] = []
        shapes = [shape]
        for step in steps:
            shapes.append(step.shape(shapes[-1]))
        if target.shape != shapes[-1]:
            raise InputError(f"preprocessing gives shape {shapes[-1]}, expected {target.shape}")
        buffer: Array = target
        for index in range(len(steps) - 1, -1, -1):
            self._stages.append((steps[index].build(shapes[index]), buffer))
            if index and not (steps[index].in_place and shapes[index] == shapes[index + 1]):
                buffer = np.empty(shapes[index], np.float32)
        self._stages.reverse()

    def __call__(self, data: FloatArray) -> None:
        """Fills the target. Overflow and invalid operations give infinities and NaN, never a warning: the caller looks."""
        if not self._stages:
            self._target[...] = data
            return
        with np.errstate(all="ignore"):
            for kernel, out in self._stages:
                kernel(data, out)
                data = out


@dataclass(frozen=True, slots=True)
class _Factory:
    usage: str
    make: Callable[..., _Parts]
    arguments: tuple[int, ...] = (0,)  # how many numbers it takes
    words: tuple[str, ...] = ()


def _parse(text: str) -> Step:
    match = _TEXT.match(text)
    factory = _FACTORIES.get(match[1]) if match else None
    if match is None or factory is None:
        near = difflib.get_close_matches(match[1] if match else text, _FACTORIES, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise InputError(f"unknown preprocessing step `{text}`{hint} Known: {', '.join(known_steps())}")
    arguments = [part.strip() for part in match[2].split(",")] if match[2] and match[2].strip() else []
    if factory.words:
        return _build_worded(text, factory, arguments)
    if len(arguments) not in factory.arguments:
        raise InputError(f"step `{text}`: expected `{factory.usage}`, got {len(arguments)} arguments")
    try:
        numbers = [float(argument) for argument in arguments]
    except ValueError:
        raise InputError(f"step `{text}`: expected numbers as in `{factory.usage}`") from None
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"step `{text}`: expected finite numbers as in `{factory.usage}`")
    try:
        return Step(text, *factory.make(*numbers))
    except InputError as err:
        raise InputError(f"step `{text}`: {err}") from None


def _build_worded(text: str, factory: _Factory, arguments: Sequence[str]) -> Step:
    if any(argument not in factory.words for argument in arguments) or len(arguments) > 1:
        raise InputError(f"step `{text}`: expected `{factory.usage}`, the argument one of: {', '.join(factory.words)}")
    return Step(text, *factory.make(*arguments))


def _same(shape: Shape) -> Shape:
    return shape


def _elementwise(kernel: Kernel) -> _Parts:
    return _same, lambda shape: kernel, True


def _means(x: Array) -> Array:
    """Exact for a constant row, so that silence stays silence."""
    means = np.add.reduce(x, axis=-1, keepdims=True, dtype=np.float64)
    means /= x.shape[-1]
    result: Array = means.astype(np.float32)
    return result


def _standardize() -> _Parts:
    def build(shape: Shape) -> Kernel:
        if len(shape) == 1:
            return _standardize_row
        return _standardize_rows if len(shape) == 2 and shape[0] <= _FEW_ROWS else _standardize_together

    return _same, build, True


def _standardize_rows(x: Array, out: Array) -> None:
    for row, into in zip(x, out, strict=True):
        _standardize_row(row, into)


def _standardize_row(x: Array, out: Array) -> None:
    """Three times as fast for one row as arrays of one element are."""
    count = x.size
    np.subtract(x, np.float32(float(np.add.reduce(x, dtype=np.float64)) / count), out=out)
    energy = float(out.dot(out)) if count <= SMALL else float(np.add.reduce(out * out))
    np.multiply(out, np.float32(1 / (math.sqrt(energy / count) + _EPSILON)), out=out)


def _standardize_together(x: Array, out: Array) -> None:
    np.subtract(x, _means(x), out=out)
    deviation = np.add.reduce(out * out, axis=-1, keepdims=True)
    deviation /= x.shape[-1]
    np.sqrt(deviation, out=deviation)
    deviation += _EPSILON
    np.divide(out, deviation, out=out)


def _demean() -> _Parts:
    def kernel(x: Array, out: Array) -> None:
        np.subtract(x, _means(x), out=out)

    return _elementwise(kernel)


def _detrend() -> _Parts:
    def build(shape: Shape) -> Kernel:
        count = shape[-1]
        ramp = np.arange(count, dtype=np.float64) - (count - 1) / 2
        energy = float(np.add.reduce(ramp * ramp)) or 1.0

        def kernel(x: Array, out: Array) -> None:
            mean = np.add.reduce(x, axis=-1, keepdims=True, dtype=np.float64) / count
            slope = np.add.reduce(x * ramp, axis=-1, keepdims=True) / energy
            np.subtract(x, mean + slope * ramp, out=out, casting="same_kind")

        return kernel

    return _same, build, True


def _minmax() -> _Parts:
    def kernel(x: Array, out: Array) -> None:
        low = np.minimum.reduce(x, axis=-1, keepdims=True)
        span = np.maximum.reduce(x, axis=-1, keepdims=True) - low
        span += _EPSILON
        np.subtract(x, low, out=out)
        np.divide(out, span, out=out)

    return _elementwise(kernel)


def _scale(factor: float) -> _Parts:
    by = np.float32(factor)
    return _elementwise(lambda x, out: np.multiply(x, by, out=out))


def _offset(amount: float) -> _Parts:
    by = np.float32(amount)
    return _elementwise(lambda x, out: np.add(x, by, out=out))


def _clip(low: float, high: float) -> _Parts:
    if low >= high:
        raise InputError(f"expected the lower bound first, got {low:g} >= {high:g}")
    floor, ceiling = np.float32(low), np.float32(high)

    def kernel(x: Array, out: Array) -> None:
        np.maximum(x, floor, out=out)
        np.minimum(out, ceiling, out=out)

    return _elementwise(kernel)


def _hann() -> _Parts:
    def build(shape: Shape) -> Kernel:
        weights = _hann_weights(shape[-1]).astype(np.float32)
        return lambda x, out: np.multiply(x, weights, out=out)

    return _same, build, True


def _rfft_magnitude(option: str = "") -> _Parts:
    def kernel(x: Array, out: Array) -> None:
        np.abs(np.fft.rfft(x, axis=-1), out=out, casting="same_kind")
        if option == "log":
            np.log1p(out, out=out)

    return lambda shape: (*shape[:-1], shape[-1] // 2 + 1), lambda shape: kernel, False


def _rms() -> _Parts:
    def kernel(x: Array, out: Array) -> None:
        out[...] = np.add.reduce(x * x, axis=-1)
        out /= x.shape[-1]
        np.sqrt(out, out=out)

    return lambda shape: shape[:-1] or (1,), lambda shape: kernel, False


def _abs() -> _Parts:
    return _elementwise(lambda x, out: np.abs(x, out=out))


def _log1p() -> _Parts:
    return _elementwise(lambda x, out: np.log1p(x, out=out))


def _float32() -> _Parts:
    return _elementwise(_copy)


def _transpose() -> _Parts:
    return lambda shape: shape[::-1], lambda shape: lambda x, out: _copy(x.T, out), False


def _flatten() -> _Parts:
    return lambda shape: (math.prod(shape),), lambda shape: lambda x, out: _copy(x.reshape(-1), out), False


def _diff() -> _Parts:
    def shape_of(shape: Shape) -> Shape:
        if shape[-1] < 2:
            raise InputError(f"step `diff` needs at least 2 samples, the input has shape {shape}")
        return (*shape[:-1], shape[-1] - 1)

    def kernel(x: Array, out: Array) -> None:
        np.subtract(x[..., 1:], x[..., :-1], out=out)

    return shape_of, lambda shape: kernel, False


def _log_mel(rate_hz: float, frame: float, hop: float, bands: float, low_hz: float = 20.0, high_hz: float = 0.0) -> _Parts:
    """ln(1e-6 + power in `bands` triangles of the HTK mel scale) of Hann frames: [..., n] to [..., frames, bands]."""
    size, step, count = _whole(frame, "frame", 8192), _whole(hop, "hop", 1_048_576), _whole(bands, "bands", 256)
    high_hz = high_hz or rate_hz / 2
    if not 0 <= low_hz < high_hz <= rate_hz / 2:
        raise InputError(f"expected 0 <= low < high <= rate / 2 = {rate_hz / 2:g} Hz, got {low_hz:g} and {high_hz:g}")
    filters = _mel_filters(rate_hz, size, count, low_hz, high_hz)
    weights = _hann_weights(size)

    def shape_of(shape: Shape) -> Shape:
        if shape[-1] < size:
            raise InputError(f"step `log_mel` needs at least one frame of {size} samples, the input has shape {shape}")
        frames = 1 + (shape[-1] - size) // step
        if frames * size > _MOST_FRAMED:
            raise InputError(f"step `log_mel` cuts {frames} frames of {size} samples, more than {_MOST_FRAMED} in all; use a longer hop")
        return (*shape[:-1], frames, count)

    def kernel(x: Array, out: Array) -> None:
        frames = np.lib.stride_tricks.sliding_window_view(x, size, axis=-1)[..., ::step, :]
        spectrum = np.fft.rfft(frames * weights, axis=-1)
        power = spectrum.real**2 + spectrum.imag**2
        np.log(power @ filters + 1e-6, out=out, casting="same_kind")

    return shape_of, lambda shape: kernel, False


def _mel_filters(rate_hz: float, size: int, bands: int, low_hz: float, high_hz: float) -> Array:
    """Triangles with peak 1 over the bins of an rfft of `size`, [bins, bands]."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate_hz)[:, np.newaxis]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    if not filters.any(axis=0).all():
        raise InputError(f"some of {bands} bands hold no frequency in frames of {size} samples; ask for fewer, or for longer frames")
    return filters


def _dct(count: float) -> _Parts:
    """The first `count` coefficients of the orthonormal DCT-II: with `log_mel` before it, MFCCs."""
    kept = _whole(count, "count", 256)

    def shape_of(shape: Shape) -> Shape:
        if not kept <= shape[-1] <= 8192:
            raise InputError(f"step `dct` keeps {kept} coefficients of at most 8192 values, the input has shape {shape}")
        return (*shape[:-1], kept)

    def build(shape: Shape) -> Kernel:
        size = shape[-1]
        angles = math.pi / size * (np.arange(size)[:, np.newaxis] + 0.5) * np.arange(kept)
        matrix = np.cos(angles) * math.sqrt(2 / size)
        matrix[:, 0] = math.sqrt(1 / size)

        def kernel(x: Array, out: Array) -> None:
            out[...] = x @ matrix

        return kernel

    return shape_of, build, False


def _whole(value: float, name: str, most: int) -> int:
    if value != int(value) or not 1 <= value <= most:
        raise InputError(f"expected a whole number from 1 to {most} as `{name}`, got {value:g}")
    return int(value)


def _hann_weights(count: int) -> Array:
    """Periodic."""
    weights: Array = 0.5 - 0.5 * np.cos(np.arange(count, dtype=np.float64) * (2 * math.pi / count))
    return weights


def _copy(x: Array, out: Array) -> None:
    if x is not out:
        out[...] = x


_FACTORIES: dict[str, _Factory] = {
    "standardize": _Factory("standardize", _standardize),
    "demean": _Factory("demean", _demean),
    "detrend": _Factory("detrend", _detrend),
    "minmax": _Factory("minmax", _minmax),
    "scale": _Factory("scale(x)", _scale, (1,)),
    "offset": _Factory("offset(x)", _offset, (1,)),
    "clip": _Factory("clip(low, high)", _clip, (2,)),
    "hann": _Factory("hann", _hann),
    "rfft_magnitude": _Factory("rfft_magnitude(log)", _rfft_magnitude, words=("log",)),
    "log_mel": _Factory("log_mel(rate_hz, frame, hop, bands[, low_hz, high_hz])", _log_mel, (4, 6)),
    "dct": _Factory("dct(count)", _dct, (1,)),
    "abs": _Factory("abs", _abs),
    "rms": _Factory("rms", _rms),
    "log1p": _Factory("log1p", _log1p),
    "diff": _Factory("diff", _diff),
    "flatten": _Factory("flatten", _flatten),
    "transpose": _Factory("transpose", _transpose),
    "float32": _Factory("float32", _float32),
}
