"""The `onnx` backend: onnxruntime on the CPU, one thread, no spinning, full graph optimisation. The only module that imports onnxruntime.

One thread without spinning costs 11 % of a core at 20 Hz where two spinning threads cost 83 %. Quantized (QDQ) graphs take and give
float32: the scales lie inside the graph. Not for graphs with text, sequences or maps at their border.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from edge_runtime.bundle import find_model
from edge_runtime.errors import InputError, MissingDependency, ModelRefused
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array, TensorInfo
from models.optimised import Key, OptimisedCache, cpu_flags, digest, instruction_sets
from models.runtime import Closed, Failures, InferenceRuntime, RuntimeModel
from models.screening import onnx_facts

CACHE_VARIABLE = "EDGE_RUNTIME_MODEL_CACHE"
PROVIDERS_VARIABLE = "EDGE_RUNTIME_ONNX_PROVIDERS"

Level = Literal["off", "basic", "extended", "all"]
LEVELS: tuple[Level, ...] = get_args(Level)

_CPU = "CPUExecutionProvider"
_WARNING, _ERROR = 2, 3
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})
_DTYPES = {"float": "float32", "double": "float64"}
_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


class OnnxBackend(InferenceRuntime):
    """Runs .onnx files. `providers` are onnxruntime execution providers, tried in order for each node.

    Default: those of the environment's EDGE_RUNTIME_ONNX_PROVIDERS (with commas between), else the CPU. With `cache`, or a folder in
    EDGE_RUNTIME_MODEL_CACHE, a graph is optimised once per machine. `level` below `all` is for comparison only.
    """

    name: ClassVar[str] = "onnx"
    library: ClassVar[str] = "onnxruntime"
    module: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def __init__(self, providers: Sequence[str] | None = None, cache: OptimisedCache | None = None, level: Level = "all") -> None:
        super().__init__()
        self._providers = list(providers) if providers is not None else _configured_providers()
        self._cache = cache if cache is not None else _configured_cache()
        self._level: Level = level

    def import_library(self) -> Failures:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as native
        except ImportError as err:
            raise MissingDependency(f"a working onnxruntime ({err})", self.extra) from err
        onnxruntime.set_default_logger_severity(_WARNING)
        return tuple(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception))

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that sessions are made with, first choice first."""
        return tuple(self._providers)

    def chosen_providers(self) -> tuple[str, ...]:
        """See `InferenceRuntime.chosen_providers`: the child that probes uses the same."""
        return self.providers

    def runtime(self) -> str:
        """Name and version of the runtime, such as `onnxruntime 1.32.0`."""
        self.import_library()
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def execution_providers(self) -> tuple[str, ...]:
        """The execution providers of the installed onnxruntime, best first."""
        self.import_library()
        import onnxruntime

        return tuple(onnxruntime.get_available_providers())

    def with_providers(self, names: Sequence[str]) -> OnnxBackend:
        """See `edge_runtime.ports.ChoosesProviders`."""
        self._require(names)
        return OnnxBackend(names, self._cache, self._level)

    def with_cache(self, folder: Path, max_bytes: int) -> OnnxBackend:
        """See `edge_runtime.ports.KeepsOptimised`."""
        return OnnxBackend(self._providers, OptimisedCache(folder, max_bytes), self._level)

    def save_optimised(self, path: Path, target: Path) -> None:
        """Writes the graph as this backend's level leaves it. Raises what `load` raises."""
        self.import_library()
        onnx_facts(path)
        self._session(path, 1, save=target)

    def _require(self, providers: Sequence[str]) -> None:
        known = self.execution_providers()
        absent = [name for name in providers if name not in known]
        if absent:
            raise InputError(f"`{absent[0]}` is no execution provider of this onnxruntime (it has: {', '.join(known)})")

    def _open(self, path: Path, threads: int) -> LoadedModel:
        facts = onnx_facts(path)
        session = self._session(path, threads) if self._cache is None else self._cached_session(path, threads, self._cache)
        return _OnnxModel(session, facts.precision, self.import_library())

    def _cached_session(self, path: Path, threads: int, cache: OptimisedCache) -> Any:
        """The session of the cached graph, or of the graph itself, which is kept on the way."""
        key = self._key(path)
        entry = cache.find(key)
        if entry is not None:
            try:
                return self._session(entry, threads, level="off")
            except self.import_library():
                cache.forget(entry)
        partial = cache.partial() if digest(path) == key.graph else None
        if partial is None:
            return self._session(path, threads)
        try:
            session = self._session(path, threads, save=partial)
        except self.import_library():
            cache.forget(partial)
            return self._session(path, threads)
        cache.keep(key, partial)
        return session

    def _key(self, path: Path) -> Key:
        return Key(_graph_digest(path), self.runtime(), cpu_flags(), self._level, self.providers)

    def _session(self, path: Path, threads: int, *, level: Level | None = None, save: Path | None = None) -> Any:
        import onnxruntime

        self._require(self._providers)
        options = _options(onnxruntime, threads, level or self._level)
        if save is not None:
            options.optimized_model_filepath = str(save)
            options.log_severity_level = _ERROR
        session = onnxruntime.InferenceSession(str(path), options, providers=self._providers)
        session.disable_fallback()
        return session


class _OnnxModel(RuntimeModel):
    def __init__(self, session: Any, precision: str, failures: Failures) -> None:
        super().__init__(_tensors(session.get_inputs()), _tensors(session.get_outputs()), precision, failures)
        self._session: Any = session
        self._input_names = [tensor.name for tensor in self.inputs]
        self._output_names = [tensor.name for tensor in self.outputs]

    def close(self) -> None:
        self._session = Closed()

    def _invoke(self, feeds: list[Array]) -> list[Array]:
        results: list[Array] = self._session.run(self._output_names, dict(zip(self._input_names, feeds, strict=True)))
        return results


def _configured_providers() -> list[str]:
    names = [name.strip() for name in os.environ.get(PROVIDERS_VARIABLE, "").split(",") if name.strip()]
    return names or [_CPU]


def _configured_cache() -> OptimisedCache | None:
    folder = os.environ.get(CACHE_VARIABLE)
    return OptimisedCache(Path(folder)) if folder else None


def _graph_digest(path: Path) -> str:
    """The graph's sha256: what its bundle's manifest says, which costs nothing, else computed."""
    try:
        _, bundle = find_model(path)
    except ModelRefused:
        bundle = None
    return bundle.manifest.files[bundle.manifest.model].sha256 if bundle is not None else digest(path)


def _options(onnxruntime: Any, threads: int, level: Level) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    options.log_severity_level = _WARNING
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if instruction_sets().isdisjoint(_DOT_PRODUCTS):
        # On older x86, sums of U8 x S8 products would saturate at 16 bits: another answer there. Asked for elsewhere, it halves the speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _tensors(arguments: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(argument.name, _shape(argument.shape), _dtype(argument.type)) for argument in arguments)


def _shape(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)


def _dtype(kind: str) -> str:
    """`tensor(float)` -> `float32`; kinds that numpy lacks keep onnxruntime's name and are refused by their port."""
    inner = kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind
    return _DTYPES.get(inner, inner)
