"""npz: arrays `t` and one a channel, or plain arrays without times. Only numbers; sizes are checked before anything is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import InputError
from edge_runtime.recordings.recording import Column, Recording, Times, describe
from edge_runtime.recordings.times import epoch_scale

_PLAIN = "fiub"
_MOST_NS = 9.2e18


def read_npz(path: Path, max_bytes: int) -> list[Recording]:
    """The recordings of an npz. Raises InputError for anything but 1-D numbers, and for more than `max_bytes` unpacked."""
    arrays = _arrays(path, max_bytes)
    times = arrays.pop("t", None)
    if not arrays:
        raise InputError(f"{path}: expected at least one array{'' if times is None else ' besides `t`'}, got none")
    columns = {name: _numbers(values) for name, values in arrays.items()}
    if times is None:
        return [Recording(path, name, None, {name: values}, describe(None, {name: values})) for name, values in columns.items()]
    for name, values in columns.items():
        if len(values) != len(times):
            raise InputError(f"{path}:{name}: expected {len(times)} values like `t`, got {len(values)}")
    t_ns, words = _epoch_ns(path, times)
    return [Recording(path, path.stem, t_ns, columns, describe(t_ns, columns, time_format=words))]


def _arrays(path: Path, max_bytes: int) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            size = sum(member.file_size for member in members)
            if size > max_bytes:
                raise InputError(f"{path}: unpacks to {size} bytes, more than {max_bytes}; split the recording")
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    arrays[name] = _array(file, f"{path}:{name}", member.file_size)
            return arrays
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as err:
        raise InputError(f"{path}: not a readable npz of plain arrays: {err}") from err


def _array(file: IO[bytes], where: str, size: int) -> npt.NDArray[Any]:
    """One member. What its header promises is held against the member's size before memory is taken; nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]  # numpy 1.26 leaves it untyped
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"npy format {version[0]}.{version[1]} is not for plain numbers")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)  # type: ignore[no-untyped-call]  # numpy 1.26 leaves it untyped
    except ValueError as err:
        raise InputError(f"{where}: not a readable npz of plain arrays: {err}") from err
    if len(shape) != 1 or (dtype.kind not in _PLAIN and not (dtype.kind == "M" and where.endswith(":t"))):
        raise InputError(f"{where}: expected a 1-D array of numbers, got {dtype} of shape {shape}")
    expected = shape[0] * dtype.itemsize
    data = file.read(expected) if 0 <= expected <= size else b""
    if len(data) != expected:
        raise InputError(f"{where}: expected {expected} bytes as its header says, got fewer; the file is cut short or damaged")
    return np.frombuffer(data, dtype)


def _numbers(values: npt.NDArray[Any]) -> Column:
    """As float64; what is not finite is missing."""
    numbers = values.astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _epoch_ns(path: Path, times: npt.NDArray[Any]) -> tuple[Times, str]:
    if times.dtype.kind == "M":
        if np.isnat(times).any():
            raise InputError(f"{path}:t: expected times, got NaT")
        return times.astype("datetime64[ns]").astype(np.int64), str(times.dtype)
    if not np.isfinite(times).all():
        raise InputError(f"{path}:t: expected finite times, got NaN or infinity")
    scale, words = epoch_scale(float(np.median(np.abs(times.astype(np.float64)))) if len(times) else 0.0)
    if len(times) and float(np.abs(times.astype(np.float64)).max()) * scale > _MOST_NS:
        raise InputError(f"{path}:t: expected times of one unit ({words} by most of them), got one that 64-bit ns cannot hold")
    if times.dtype.kind in "iu":
        return times.astype(np.int64) * scale, words
    whole = np.floor(times.astype(np.float64))
    return whole.astype(np.int64) * scale + np.rint((times - whole) * scale).astype(np.int64), words
