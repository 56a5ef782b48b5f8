"""The `onnx` backend: onnxruntime on the CPU, one thread, no spinning, full graph optimisation. The only module that imports onnxruntime.

One thread without spinning costs 11 % of a core at 20 Hz where two spinning threads cost 83 %. Quantized (QDQ) graphs take and give
float32: the scales lie inside the graph. Not for graphs with text, sequences or maps at their border.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from edge_runtime.errors import MissingDependency
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array, TensorInfo
from models.runtime import Failures, InferenceRuntime, RuntimeModel
from models.screening import onnx_facts

_WARNING = 2
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxBackend(InferenceRuntime):
    """Runs .onnx files. `providers` are onnxruntime execution providers, tried in order."""

    name: ClassVar[str] = "onnx"
    library: ClassVar[str] = "onnxruntime"
    module: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def __init__(self, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        super().__init__()
        self._providers = list(providers)

    def import_library(self) -> Failures:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as native
        except ImportError as err:
            raise MissingDependency(f"a working onnxruntime ({err})", self.extra) from err
        onnxruntime.set_default_logger_severity(_WARNING)
        return tuple(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception))

    def _open(self, path: Path, threads: int) -> LoadedModel:
        import onnxruntime

        facts = onnx_facts(path)
        session = onnxruntime.InferenceSession(str(path), _options(onnxruntime, threads), providers=self._providers)
        session.disable_fallback()
        return _OnnxModel(session, facts.precision, self.import_library())


class _OnnxModel(RuntimeModel):
    def __init__(self, session: Any, precision: str, failures: Failures) -> None:
        super().__init__(_tensors(session.get_inputs()), _tensors(session.get_outputs()), precision, failures)
        self._session = session
        self._input_names = [tensor.name for tensor in self.inputs]
        self._output_names = [tensor.name for tensor in self.outputs]

    def close(self) -> None:
        self._session = None

    def _invoke(self, feeds: list[Array]) -> list[Array]:
        results: list[Array] = self._session.run(self._output_names, dict(zip(self._input_names, feeds, strict=True)))
        return results


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _WARNING
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _tensors(arguments: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(argument.name, _shape(argument.shape), _dtype(argument.type)) for argument in arguments)


def _shape(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)


def _dtype(kind: str) -> str:
    """`tensor(float)` -> `float32`; kinds that numpy lacks keep onnxruntime's name and are refused by their port."""
    inner = kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind
    return _DTYPES.get(inner, inner)
