"""The firmware's interpreter on this machine: the same C, built by the host's compiler. For tests, and to run a blob without a node."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np

from adapters.firmware.build import FOLDER
from edge_runtime.errors import AdapterError, InputError, MissingDependency
from edge_runtime.types import Array

SOURCES = tuple(sorted((FOLDER / "src").glob("nn*.c")))
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fwrapv", "-ffp-contract=off")

_FLAGS_AT, _UINT8_OUT = 7, 8
_ARENA_AT = 16


class MissingHostCompiler(MissingDependency):
    """No C compiler on this machine; the message says how to get one."""

    def __init__(self) -> None:
        super().__init__("a C compiler", "")
        self.msg = "the native interpreter needs a C compiler, and none was found. Install one: apt install gcc (Debian, Ubuntu)"


def host_compiler() -> str:
    """Raises MissingHostCompiler."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise MissingHostCompiler
    return found


class Interpreter:
    """Checks and runs blobs. Builds its library in `folder` when it is created (a second or two)."""

    def __init__(self, folder: Path) -> None:
        library = folder / "libnn.so"
        command = [host_compiler(), *FLAGS, "-fPIC", "-shared", "-o", str(library), *map(str, SOURCES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise AdapterError(f"{command[0]} failed ({done.returncode}):\n{done.stderr[-4000:]}")
        self._library = ctypes.CDLL(str(library))
        self._library.nn_check.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._library.nn_run.argtypes = [ctypes.c_void_p] * 4
        for count in (self._library.nn_input_count, self._library.nn_output_count):
            count.argtypes, count.restype = [ctypes.c_void_p], ctypes.c_uint32

    def check(self, blob: bytes, arena_bytes: int = 1 << 20) -> int:
        """0, or the status of PROTOCOL.md that says why not."""
        model = _aligned(blob)
        return int(self._library.nn_check(model.ctypes.data, len(blob), arena_bytes))

    def run(self, blob: bytes, inputs: Array) -> Array:
        """Outputs [n, values] of inputs [n, ...] in int8 or uint8, as stored. Raises InputError for a blob that is refused."""
        status = self.check(blob)
        if status != 0:
            raise InputError(f"expected a model blob, got one that is refused with status {status}")
        model = _aligned(blob)
        taken, made = (int(count(model.ctypes.data)) for count in (self._library.nn_input_count, self._library.nn_output_count))
        rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
        if rows.shape[1] != taken or rows.itemsize != 1:
            raise InputError(f"expected rows of {taken} bytes, got {rows.shape[1]} of {rows.dtype}")
        arena = np.zeros(-(-struct.unpack_from("<I", blob, _ARENA_AT)[0] // 8) + 1, np.uint64)
        outputs = np.zeros((len(rows), made), np.uint8 if blob[_FLAGS_AT] & _UINT8_OUT else np.int8)
        for row, output in zip(rows, outputs, strict=True):
            self._library.nn_run(model.ctypes.data, arena.ctypes.data, row.ctypes.data, output.ctypes.data)
        return outputs


def _aligned(blob: bytes) -> Array:
    """A copy of the blob at a multiple of 8."""
    copy = np.zeros(-(-len(blob) // 8), np.uint64)
    copy.view(np.uint8)[: len(blob)] = np.frombuffer(blob, np.uint8)
    return copy
