"""What LiteRT and tflite-runtime have in common: the TensorFlow Lite interpreter's Python interface. Imports neither.

Every run starts from the model's initial state: variable tensors (an LSTM's memory) are reset first, so a result depends on its
window alone. XNNPACK is used where the library brings it.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.types import Array, TensorInfo
from models.runtime import Closed, RuntimeModel
from models.tensors import is_quantized, numpy_dtype

_CHATTER = (b"INFO:", b"VERBOSE:")
_STDERR = 2
_stderr_lock = threading.Lock()


class InterpreterModel(RuntimeModel):
    """One .tflite model in one interpreter."""

    def __init__(self, create: Callable[..., Any], path: Path, threads: int) -> None:
        with without_chatter():
            self._interpreter: Any = create(model_path=str(path), num_threads=threads)
            _allocate(self._interpreter)
        sources, sinks = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        inputs = tuple(_tensor(detail) for detail in sources)
        super().__init__(inputs, tuple(_tensor(detail) for detail in sinks), _precision(self._interpreter, inputs))
        for tensor in self.outputs:
            numpy_dtype(tensor)
        self._sources = [detail["index"] for detail in sources]
        self._sinks = [detail["index"] for detail in sinks]
        self._shapes = [tuple(int(size) for size in detail["shape"]) for detail in sources]
        self._may_resize = any(-1 in tensor.shape for tensor in inputs)

    def close(self) -> None:
        self._interpreter = Closed()

    def _invoke(self, feeds: list[Array]) -> list[Array]:
        interpreter = self._interpreter
        if self._may_resize:
            self._resize([feed.shape for feed in feeds])
        interpreter.reset_all_variables()
        for index, feed in zip(self._sources, feeds, strict=True):
            interpreter.set_tensor(index, feed)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._sinks]

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        for index, shape in zip(self._sources, shapes, strict=True):
            self._interpreter.resize_tensor_input(index, shape)
        _allocate(self._interpreter)
        self._shapes = shapes


def _allocate(interpreter: Any) -> None:
    """Raises MemoryError where LiteRT fails without a word because its tensors do not fit into the memory this process may have."""
    try:
        interpreter.allocate_tensors()
    except RuntimeError as err:
        wanted = sum(int(np.prod(detail["shape"], dtype=np.int64)) * _item_bytes(detail) for detail in interpreter.get_tensor_details())
        if str(err) or wanted <= _room_bytes():
            raise
        raise MemoryError(f"its tensors take {wanted // 2**20} MB, more than this process may have") from err


def _item_bytes(detail: dict[str, Any]) -> int:
    return int(np.dtype(detail["dtype"]).itemsize)


def _room_bytes() -> float:
    """How much the address space of this process may still grow."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float("inf") if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()


def _tensor(detail: dict[str, Any]) -> TensorInfo:
    parameters = detail["quantization_parameters"]
    scales, zero_points = parameters["scales"], parameters["zero_points"]
    shape = detail.get("shape_signature", ())
    signature = tuple(int(size) for size in (shape if len(shape) else detail["shape"]))
    name, dtype = detail["name"], np.dtype(detail["dtype"]).name
    if len(scales) > 1:
        axis, spread = int(parameters["quantized_dimension"]), tuple(map(int, zero_points))
        return TensorInfo(name, signature, dtype, axis_scales=tuple(map(float, scales)), axis_zero_points=spread, axis=axis)
    if len(scales) == 1 and dtype.startswith(("int", "uint")):
        return TensorInfo(name, signature, dtype, float(scales[0]), int(zero_points[0]))
    return TensorInfo(name, signature, dtype)


def _precision(interpreter: Any, inputs: Sequence[TensorInfo]) -> str:
    """The dtype of the quantized input, else of the quantized tensors inside, else of the input."""
    for tensor in inputs:
        if is_quantized(tensor):
            return tensor.dtype
    details = interpreter.get_tensor_details()
    inside = {np.dtype(detail["dtype"]).name for detail in details if len(detail["quantization_parameters"]["scales"])}
    for dtype in ("int8", "uint8", "int16"):
        if dtype in inside:
            return dtype
    return inputs[0].dtype if inputs else "float32"


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps the libraries' own INFO lines off stderr; every other line written meanwhile, by whomever, comes out at the end.

    They offer no log level to Python. With EDGE_RUNTIME_NATIVE_LOGS set nothing is held back (the probe: a crash must keep its words).
    """
    if os.environ.get("EDGE_RUNTIME_NATIVE_LOGS"):
        yield
        return
    with _stderr_lock, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        real = os.dup(_STDERR)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(real, _STDERR)
            os.close(real)
            held.seek(0)
            for line in held:
                if not line.startswith(_CHATTER):
                    os.write(_STDERR, line)
