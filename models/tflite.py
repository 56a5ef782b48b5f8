"""The `tflite` backend: .tflite files on tflite-runtime 2.14, the last of its line. The only module that imports tflite_runtime.

For Python 3.11 and for armv7l, where LiteRT has no wheel. Needs numpy < 2: with numpy 2 it imports and then fails at the first model,
so it is refused here by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from edge_runtime.errors import MissingDependency
from edge_runtime.ports import LoadedModel
from models.interpreter import InterpreterModel
from models.runtime import Failures, InferenceRuntime


class TfliteRuntimeBackend(InferenceRuntime):
    """Runs .tflite files."""

    name: ClassVar[str] = "tflite"
    library: ClassVar[str] = "tflite-runtime"
    module: ClassVar[str] = "tflite_runtime"
    extra: ClassVar[str] = "tflite"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)

    def __init__(self) -> None:
        super().__init__()
        require_numpy_1(np.__version__)

    def import_library(self) -> Failures:
        try:
            import tflite_runtime.interpreter  # noqa: F401
        except ImportError as err:
            raise MissingDependency(f"a working tflite-runtime ({err})", self.extra) from err
        return ()

    def _open(self, path: Path, threads: int) -> LoadedModel:
        from tflite_runtime.interpreter import Interpreter

        return InterpreterModel(Interpreter, path, threads)


def require_numpy_1(version: str) -> None:
    """Raises MissingDependency unless this numpy is one that tflite-runtime 2.14 was built for."""
    if int(version.partition(".")[0]) >= 2:
        raise MissingDependency(
            f"numpy below 2, which tflite-runtime 2.14 needs (this is numpy {version}; the litert backend takes it),", "tflite"
        )
