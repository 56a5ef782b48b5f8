"""Files as inputs of a bundle, read as its manifest declares: pictures, sound, signals and tables, through its preprocessing.

What the manifest does not declare is left to `models.inputs`, which goes by the shapes. Quantizing is the loaded model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload
from zipfile import BadZipFile

import msgspec
import numpy as np

from edge_runtime.bundle import Manifest, Port, Window
from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from edge_runtime.fitting import Fit, fit_input
from edge_runtime.recordings import KNOWN_LABELS, canonical
from edge_runtime.steps import Chain, Step, output_shape, parse_steps
from edge_runtime.types import Array, TensorInfo
from models import images, sound
from models.inputs import RAW_SUFFIXES, Options, Source, as_input, raw_values
from models.inputs import read as read_by_shape
from models.tables import TIME_COLUMNS, read_table
from models.tensors import element_count, shape_fits, shape_text

_RATE_TOLERANCE = 0.05
_MOST_CHANNELS = 4096
_KINDS = {
    "image": "a picture (.png, .jpg, .bmp, ...)",
    "audio": "a sound (.wav), or its samples as .npy, .npz or raw values",
    "signal": "a signal: .csv, .npy, .npz, .wav or raw values",
    "tabular": "a table: .csv, .npy or .npz",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """How one input is made from a file. `steps` and `window` are for everything but pictures."""

    port: Port
    tensor: TensorInfo
    window: Window | None
    steps: tuple[Step, ...]

    @property
    def kind(self) -> str:
        """What the file must hold."""
        return self.port.kind or "signal"

    @property
    def channels(self) -> int:
        """Rows of a window; 0 when the manifest leaves them open."""
        if self.port.channels or self.window is None or self.steps or -1 in self.tensor.shape[1:]:
            return len(self.port.channels)
        return element_count(self.tensor) // self.window.size


def declared_inputs(manifest: Manifest, tensors: Sequence[TensorInfo]) -> dict[str, Declared]:
    """What a manifest declares of each input of the graph, by name; inputs of which it says nothing but their shape are left out.

    Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE | UNSUPPORTED_FORMAT) when the manifest is not of this graph, or of a newer version.
    """
    require_ports(manifest.name, "input", manifest.inputs, tensors)
    steps = _steps(manifest)
    ports = {port.name: port for port in manifest.inputs}
    found = {}
    for tensor in tensors:
        port = ports.get(tensor.name)
        if port is not None and (port.kind or port.channels or manifest.window or steps):
            if port.kind == "image":
                images.declared_layout(tensor, port)
            found[tensor.name] = Declared(port, images.replace_shape(tensor, port.shape), manifest.window, steps)
    return found


def require_ports(name: str, what: str, ports: Sequence[Port], tensors: Sequence[TensorInfo]) -> None:
    """Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE) unless the manifest, where it lists ports, has each of the graph's as it is there."""
    known = {port.name: port for port in ports}
    for tensor in tensors if ports else ():
        port = known.get(tensor.name)
        if port is None:
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE, f"{name}: the graph has an {what} `{tensor.name}`, its manifest lists {', '.join(known)}"
            )
        if not _alike(port.shape, tensor.shape):
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE,
                f"{name}: {what} `{port.name}` is {shape_text(port.shape)} in the manifest and {shape_text(tensor.shape)} in the graph",
            )
        if port.dtype != tensor.dtype:
            raise ModelRefused(
                RefusalReason.WRONG_DTYPE, f"{name}: {what} `{port.name}` is {port.dtype} in the manifest and {tensor.dtype} in the graph"
            )


def require_fit(manifest: Manifest, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
    """Holds a whole manifest against its graph. Raises as `declared_inputs`."""
    declared_inputs(manifest, inputs)
    require_ports(manifest.name, "output", manifest.outputs, outputs)


def read(path: Path, declared: Declared, options: Options) -> Iterator[Source]:
    """Every source of one file; what `options` say goes before the manifest. Raises InputError naming what was expected and what came."""
    if not path.is_file():
        raise InputError(f"there is no input file {path}")
    try:
        yield from _sources(path, declared, options)
    except (InputError, ModelRefused):
        raise
    except (OSError, ValueError, EOFError, BadZipFile) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err


def _sources(path: Path, declared: Declared, options: Options) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if declared.kind == "image":
        yield from _picture(path, declared, options)
    elif suffix in images.SUFFIXES:
        raise _wrong_kind(path, declared)
    elif _is_ready(path, declared.tensor):
        yield from read_by_shape(path, (declared.tensor,), options)
    else:
        for name, rows, note in _signals(path, declared, options):
            yield _windowed(name, rows, note, declared, options)


def _picture(path: Path, declared: Declared, options: Options) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if suffix in images.SUFFIXES:
        port = declared.port
        if options.mean is not None or options.scale is not None:
            port = msgspec.structs.replace(port, mean=options.mean or (), std=options.scale or ())
        array, note = images.read_declared(path, declared.tensor, port)
        yield Source(path.name, [[array]], note)
    elif suffix in (".npy", ".npz", *RAW_SUFFIXES):
        yield from read_by_shape(path, (declared.tensor,), options)
    else:
        raise _wrong_kind(path, declared)


def _is_ready(path: Path, tensor: TensorInfo) -> bool:
    """Whether a file holds the input itself: an array of its name, or a .npy of its shape with three dimensions or more."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return tensor.name in archive.files
    if path.suffix.lower() != ".npy" or len(tensor.shape) < 3:
        return False
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return len(shape) == len(tensor.shape) and shape_fits(shape[1:], tensor.shape[1:])


def _signals(path: Path, declared: Declared, options: Options) -> Iterator[tuple[str, Array, str]]:
    """(source name, float32 [channels, n], note) of every recording in a file."""
    suffix, rate_hz = path.suffix.lower(), declared.port.rate_hz
    if suffix == ".wav":
        yield path.name, *_sound(path, declared)
    elif suffix in (".csv", ".txt") and declared.kind != "audio":
        yield path.name, *_columns(path, declared)
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            yield from _named(path, {name: archive[name] for name in archive.files}, declared)
    elif suffix == ".npy":
        yield path.name, _rows(path.name, np.load(path, allow_pickle=False), declared), ""
    elif suffix in RAW_SUFFIXES:
        values = raw_values(path, np.dtype(options.dtype or "float32"))
        taken = f", taken at {rate_hz:g} Hz" if rate_hz else ""
        yield path.name, _rows(path.name, values, declared), f"{values.size} raw {values.dtype} values{taken}"
    else:
        raise _wrong_kind(path, declared)


def _sound(path: Path, declared: Declared) -> tuple[Array, str]:
    """Audio is averaged to one channel and resampled; a signal keeps its channels and must have been recorded at the model's rate."""
    samples, rate_hz = sound.read_channels(path)
    wanted_hz = declared.port.rate_hz or float(rate_hz)
    if declared.kind != "audio":
        _require_rate(path, rate_hz, wanted_hz)
        return _rows(path.name, samples, declared), f"{rate_hz} Hz"
    note = f"{rate_hz} Hz sound in -1..1{', channels averaged' if len(samples) > 1 else ''}"
    single = sound.mono(samples)
    if wanted_hz != rate_hz:
        try:
            single, note = sound.resampled(single, rate_hz, wanted_hz), f"{note}, resampled to {wanted_hz:g} Hz"
        except InputError as err:
            raise InputError(f"{path}: {err}") from err
    return _rows(path.name, single, declared), note


def _columns(path: Path, declared: Declared) -> tuple[Array, str]:
    table, port = read_table(path, missing=True), declared.port
    if table.rate_hz and port.rate_hz:
        _require_rate(path, table.rate_hz, port.rate_hz)
    notes = [f"time column `{table.time}` left out"] if table.time else []
    if port.channels and (table.names or len(port.channels) != table.values.shape[1]):
        values, converted = table.select(port.channels, port.units or (port.unit,) * len(port.channels))
        return values.T, "; ".join([*notes, *converted])
    labels = [at for at, name in enumerate(table.names) if canonical(name) in KNOWN_LABELS]
    return _rows(path.name, np.delete(table.values, labels, axis=1).T, declared, table.names), "; ".join(notes)


def _named(path: Path, arrays: dict[str, Array], declared: Declared) -> Iterator[tuple[str, Array, str]]:
    """Arrays named as the manifest's channels are one recording; others are a recording each."""
    known = {canonical(name): name for name in arrays}
    channels = declared.port.channels
    if channels and all(canonical(name) in known for name in channels):
        chosen = [np.asarray(arrays[known[canonical(name)]]).reshape(-1) for name in channels]
        if len({len(values) for values in chosen}) > 1:
            raise InputError(f"{path}: the arrays {', '.join(channels)} differ in length")
        _require_times(path, arrays, declared.port.rate_hz)
        yield path.name, _float32(path.name, np.stack(chosen)), ""
    elif len(channels) > 1 and not any(values.ndim > 1 for values in arrays.values()):
        missing = [name for name in channels if canonical(name) not in known]
        raise InputError(f"{path}: expected arrays {', '.join(channels)}; missing: {', '.join(missing)} (there are: {', '.join(arrays)})")
    else:
        for name, values in arrays.items():
            if name not in TIME_COLUMNS:
                yield (path.name if len(arrays) == 1 else f"{path.name}[{name}]"), _rows(name, values, declared), ""


def _require_times(path: Path, arrays: dict[str, Array], wanted_hz: float) -> None:
    times = arrays.get("t")
    if times is not None and times.dtype.kind in "iuf" and times.size > 2 and wanted_hz:
        step = float(np.median(np.diff(times.astype(np.float64))))
        if 0 < step < 1e3:
            _require_rate(path, 1 / step, wanted_hz)


def _require_rate(path: Path, rate_hz: float, wanted_hz: float) -> None:
    if abs(rate_hz / wanted_hz - 1) > _RATE_TOLERANCE:
        raise InputError(f"{path}: expected a recording at {wanted_hz:g} Hz, as the model was made for; this one is at {rate_hz:.6g} Hz")


def _rows(name: str, values: Array, declared: Declared, columns: Sequence[str] = ()) -> Array:
    """Numbers as float32 [channels, n], turned where they lie the other way round."""
    port, channels = declared.port, declared.channels
    rows = values.reshape(1, -1) if values.ndim < 2 else values
    if rows.ndim > 2:
        rows = rows.reshape([size for size in rows.shape if size != 1] or [1])
        rows = rows[np.newaxis] if rows.ndim == 1 else rows
    if rows.ndim == 2 and channels and len(rows) != channels and rows.shape[1] == channels:
        rows = rows.T
    if rows.ndim != 2 or (channels and len(rows) != channels):
        names = f" ({', '.join(port.channels)})" if port.channels else ""
        wanted = f"{channels} channels{names}" if channels else "channels by samples"
        came = f"{len(columns)} columns" if columns else f"shape {shape_text(values.shape)}"
        raise InputError(f"{name}: input `{port.name}` takes {wanted}, got {came}")
    return _float32(name, rows)


def _float32(name: str, values: Array) -> Array:
    if values.dtype.kind not in "fiub":
        raise InputError(f"{name}: holds {values.dtype}, not numbers")
    return np.ascontiguousarray(values, np.float32)


def _windowed(name: str, rows: Array, note: str, declared: Declared, options: Options) -> Source:
    """Windows of a recording, each through the steps into the input. One with a missing value is left out and counted."""
    size, hop = _window(name, rows, declared, options)
    if rows.shape[1] < size:
        raise InputError(f"{name}: expected at least one window of {size} samples, got {rows.shape[1]}")
    starts = np.arange(0, rows.shape[1] - size + 1, hop)
    gaps = np.concatenate([[0], np.cumsum(~np.isfinite(rows).all(axis=0))])
    whole = starts[gaps[starts + size] == gaps[starts]]
    if not len(whole):
        raise InputError(f"{name}: every window of {size} samples holds a missing value")
    text = (
        f"{len(whole)} windows of {size} samples every {hop}" if len(starts) > 1 and size > 1 else f"{len(whole)} rows" if size == 1 else ""
    )
    lost = f"{len(starts) - len(whole)} left out for missing values" if len(whole) < len(starts) else ""
    steps = f"through {', '.join(step.text for step in declared.steps)}" if declared.steps else ""
    runs = Windows(name, rows, whole.tolist(), size, declared)
    return Source(name, runs, "; ".join(filter(None, (note, text, lost, steps))))


def _window(name: str, rows: Array, declared: Declared, options: Options) -> tuple[int, int]:
    """Samples of a window and between two: as told, as the manifest says, or as the input's shape leaves."""
    window = declared.window
    if options.window is not None:
        return options.window, options.hop or options.window
    if window is not None:
        return window.size, options.hop or window.hop
    size = _only_size(len(rows), rows.shape[1], declared)
    if size is None:
        raise InputError(
            f"{name}: the manifest names no window, and input `{declared.port.name}` ({shape_text(declared.tensor.shape)}) tells none "
            f"for {len(rows)} channels; say it with --window N"
        )
    return size, options.hop or size


def _only_size(channels: int, samples: int, declared: Declared) -> int | None:
    """The window that fills the input when there are no steps; the whole recording when the input takes any length."""
    shape = tuple(1 if size < 0 and axis == 0 else size for axis, size in enumerate(declared.tensor.shape))
    if -1 in shape:
        return samples
    values = int(np.prod(shape, dtype=np.int64))
    if declared.steps:
        return samples if _fits(channels, samples, declared) else None
    return values // channels if values % channels == 0 and values else None


def _fits(channels: int, samples: int, declared: Declared) -> bool:
    try:
        fit_input(output_shape(declared.steps, (channels, samples)), _real(declared.tensor))
    except InputError:
        return False
    return True


def _real(tensor: TensorInfo) -> TensorInfo:
    """Integers without a scale are laid out as float64 and become integers again where they are whole."""
    plain = tensor.dtype.startswith("float") or tensor.scale or tensor.axis_scales
    return tensor if plain else msgspec.structs.replace(tensor, dtype="float64")


class Windows(Sequence[Sequence[Array]]):
    """The windows of one recording as inputs, made when they are asked for: a long recording takes no more memory than it has."""

    def __init__(self, name: str, rows: Array, starts: list[int], size: int, declared: Declared) -> None:
        """Raises InputError or ModelRefused(WRONG_SHAPE) when the steps or the input do not take such a window."""
        shape = (len(rows), size)
        self._name = name
        self._rows = rows
        self._starts = starts
        self._size = size
        self._tensor = declared.tensor
        self._fit: Fit = fit_input(output_shape(declared.steps, shape), _real(declared.tensor))
        self._chain = Chain(declared.steps, shape, self._fit.target)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Sequence[Array]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[Array]]: ...

    def __getitem__(self, index: int | slice) -> Sequence[Array] | Sequence[Sequence[Array]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        start = self._starts[index]  # raises IndexError: it ends an iteration
        self._chain(self._rows[:, start : start + self._size])
        if not np.isfinite(self._fit.flat).all():
            raise InputError(f"{self._name}: window {index + 1} is NaN or infinite after preprocessing")
        return [as_input(self._fit.tensor.copy(), self._tensor, Path(self._name))]


def _steps(manifest: Manifest) -> tuple[Step, ...]:
    try:
        return parse_steps(manifest.preprocess)
    except InputError as err:
        raise ModelRefused(
            RefusalReason.UNSUPPORTED_FORMAT,
            f"{manifest.name}: its manifest asks for an {err}; update edge-runtime, or make the bundle again",
        ) from err


def _alike(declared: Sequence[int], found: Sequence[int]) -> bool:
    return len(declared) == len(found) and all(-1 in pair or pair[0] == pair[1] for pair in zip(declared, found, strict=True))


def _wrong_kind(path: Path, declared: Declared) -> InputError:
    return InputError(f"{path}: input `{declared.port.name}` takes {_KINDS[declared.kind]}; got `{path.suffix or path.name}`")
