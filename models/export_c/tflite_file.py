"""The parts of a .tflite file that an export needs, read under bounds: tensors with constants and scales, operators with options.

Field numbers are those of the schema, version 3. It executes nothing and needs no TensorFlow Lite.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.types import Array
from models.inspection.flatbuffer import Buffer, Table
from models.inspection.tflite_operators import OPERATORS
from models.protobuf import Malformed

_MOST_BYTES = 64 * 1024 * 1024
_MOST_SCALES = 65_536
_DTYPES: dict[int, type[np.generic]] = {0: np.float32, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
_CUSTOM = 32


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor. `dtype` None: of a type that no supported operator has. `constant` None: computed."""

    name: str
    shape: tuple[int, ...]
    dtype: type[np.generic] | None
    scales: Array
    zeros: Array
    axis: int
    constant: Array | None


@dataclass(frozen=True, slots=True)
class FileOperator:
    """One operator; `inputs` has None where one is left out."""

    name: str
    label: str
    inputs: tuple[FileTensor | None, ...]
    outputs: tuple[FileTensor, ...]
    options: Table | None

    def integer(self, field: int, default: int, code: str = "<i") -> int:
        """An option of a number of 32 bits, or 8 with code `<b`."""
        return default if self.options is None else self.options.integer(field, code, default)

    def real(self, field: int, default: float) -> float:
        """An option of a float32."""
        bits = self.integer(field, struct.unpack("<i", struct.pack("<f", default))[0])
        value: float = struct.unpack("<f", struct.pack("<i", bits))[0]
        return value


@dataclass(frozen=True, slots=True)
class File:
    """The first subgraph of a file."""

    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]


def open_file(path: Path) -> File:
    """Raises ModelRefused(UNREADABLE)."""
    try:
        return _read(memoryview(path.read_bytes()))
    except Malformed as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} is not a whole model ({err}); copy or export it again") from err


def _read(data: memoryview) -> File:
    root = Buffer(data).root()
    graphs, codes, buffers = root.tables(2), root.tables(1), root.tables(4)
    if not graphs:
        raise Malformed("no subgraph")
    names = [_name(code) for code in codes]
    tensors = [_tensor(table, buffers) for table in graphs[0].tables(0)]
    operators = tuple(_operator(table, index, tensors, names) for index, table in enumerate(graphs[0].tables(3)))
    inputs, outputs = (tuple(t for t in _pick(graphs[0].numbers(field, "i"), tensors) if t is not None) for field in (1, 2))
    return File(inputs, outputs, operators)


def _name(code: Table) -> str:
    number = max(code.integer(0, "<b"), code.integer(3, "<i"))
    if number == _CUSTOM:
        return f"CUSTOM {code.text(1)}"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operator {number}"


def _operator(table: Table, index: int, tensors: list[FileTensor], names: list[str]) -> FileOperator:
    code = table.integer(0, "<I")
    if code >= len(names):
        raise Malformed(f"operator code {code} of {len(names)}")
    inputs, outputs = (_pick(table.numbers(field, "i"), tensors) for field in (1, 2))
    made = tuple(tensor for tensor in outputs if tensor is not None)
    if not made or len(made) != len(outputs):
        raise Malformed("an operator without an output")
    return FileOperator(names[code], made[0].name or f"#{index}", tuple(inputs), made, table.table(4))


def _pick(indices: tuple[int, ...], tensors: list[FileTensor]) -> list[FileTensor | None]:
    if any(index >= len(tensors) or index < -1 for index in indices):
        raise Malformed("a tensor that is not there")
    return [tensors[index] if index >= 0 else None for index in indices]


def _tensor(table: Table, buffers: list[Table]) -> FileTensor:
    shape = tuple(int(size) for size in table.numbers(0, "i", 16))
    dtype = _DTYPES.get(table.integer(1, "<b"))
    if min(shape, default=1) < 0:
        raise Malformed("a tensor of an impossible shape")
    quantization = table.table(4)
    scales, zeros, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    if quantization is not None:
        scales = np.array(quantization.numbers(2, "f", _MOST_SCALES), np.float32)
        zeros = np.array(quantization.numbers(3, "q", _MOST_SCALES), np.int64)
        axis = quantization.integer(6, "<i")
    if len(zeros) != len(scales):
        zeros = np.zeros(len(scales), np.int64)
    return FileTensor(table.text(3), shape, dtype, scales, zeros, axis, _constant(table, buffers, shape, dtype))


def _constant(table: Table, buffers: list[Table], shape: tuple[int, ...], dtype: type[np.generic] | None) -> Array | None:
    index = table.integer(2, "<I")
    if index >= len(buffers):
        raise Malformed(f"buffer {index} of {len(buffers)}")
    raw = buffers[index].bytes_of(0, _MOST_BYTES) if index else b""
    if not raw or dtype is None:
        return None
    count = 1
    for size in shape:
        count *= size
    if len(raw) != count * np.dtype(dtype).itemsize:
        raise Malformed(f"a constant of {len(raw)} bytes for shape {list(shape)}")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape)
