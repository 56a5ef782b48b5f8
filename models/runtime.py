"""What every backend of this package shares: screening, named refusals, the probe. A backend adds one module that overrides `_open`."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Never

from edge_runtime.bundle import find_model
from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel
from edge_runtime.steps import parse_steps
from edge_runtime.types import Array, ProbeReport, TensorInfo
from models.declared import require_fit
from models.probe import GoldenRuns, probe_async
from models.screening import screen
from models.tensors import InputPort, check_rank, dequantize, fit_all, is_quantized

Failures = tuple[type[Exception], ...]

COMMON_FAILURES: Failures = (ValueError, RuntimeError, MemoryError)


class InferenceRuntime(ABC):
    """One inference library behind `edge_runtime.ports.ModelBackend`.

    Building one costs nothing but a look for the library: MissingDependency when it is absent. The library is imported at the first `load`.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        if importlib.util.find_spec(self.module) is None:
            raise MissingDependency(self.library, self.extra)

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """See `ModelBackend.load`. In the calling process: a model never seen before belongs into `probe` first."""
        screen(path, self.suffixes)
        require_known_preprocessing(path)
        failures: Failures = (*self.import_library(), *COMMON_FAILURES, OSError)
        try:
            return self._open(path, threads)
        except InputError:
            raise
        except failures as err:
            raise ModelRefused(RefusalReason.LOAD_FAILED, f"{self.library} does not load {path.name}: {first_line(err)}") from err

    async def probe(self, path: Path, *, deadline_s: float = 20.0, memory_mb: int = 1024) -> ProbeReport:
        """See `ModelBackend.probe`. A bundle's golden runs are run too: ModelRefused(GOLDEN_MISMATCH) when they come out otherwise."""
        screen(path, self.suffixes)
        require_known_preprocessing(path)
        bundle = find_model(path)[1]
        backend = f"{type(self).__module__}:{type(self).__qualname__}"
        report = await probe_async(
            path, backend, deadline_s=deadline_s, memory_mb=memory_mb, golden=GoldenRuns.of(bundle), providers=self.chosen_providers()
        )
        if bundle is not None:
            require_fit(bundle.manifest, report.inputs, report.outputs)
        return report

    def chosen_providers(self) -> tuple[str, ...]:
        """The execution providers that this backend was told to use; none where there is nothing to choose."""
        return ()

    @abstractmethod
    def import_library(self) -> Failures:
        """Imports the library; returns its own exception types. Raises MissingDependency."""

    @abstractmethod
    def _open(self, path: Path, threads: int) -> LoadedModel:
        """Loads a screened file; may raise whatever the library raises."""


class RuntimeModel(ABC):
    """A loaded model: checks on the way in, dequantizes on the way out, wraps the library's errors once."""

    def __init__(self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], precision: str, failures: Failures = ()) -> None:
        for tensor in (*inputs, *outputs):
            check_rank(tensor)
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._precision = precision
        self._failures: Failures = (*failures, *COMMON_FAILURES)
        self._ports = [InputPort.of(tensor) for tensor in inputs]
        self._quantized_outputs = [index for index, tensor in enumerate(outputs) if is_quantized(tensor)]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self._outputs

    @property
    def precision(self) -> str:
        """What the model computes in: `int8`, `uint8`, `int16`, `float16`, `float32`."""
        return self._precision

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `LoadedModel.run`."""
        feeds = fit_all(self._ports, inputs)
        try:
            results = self._invoke(feeds)
        except self._failures as err:
            raise ModelRefused(RefusalReason.RUN_FAILED, f"the model failed while running: {first_line(err)}") from err
        for index in self._quantized_outputs:
            results[index] = dequantize(results[index], self._outputs[index])
        return results

    @abstractmethod
    def close(self) -> None:
        """Lets the library's memory go; safe to call twice. `run` raises ModelRefused(RUN_FAILED) afterwards."""

    @abstractmethod
    def _invoke(self, feeds: list[Array]) -> list[Array]:
        """One run on checked arrays; the results are the caller's own."""


def require_known_preprocessing(path: Path) -> None:
    """A bundle whose manifest asks for steps that this version does not know would run and give wrong numbers.

    Raises ModelRefused(UNSUPPORTED_FORMAT) naming the step. A manifest that cannot be read is another's to judge.
    """
    try:
        bundle = find_model(path)[1]
    except ModelRefused:
        return
    try:
        parse_steps(bundle.manifest.preprocess if bundle is not None else ())
    except InputError as err:
        raise ModelRefused(
            RefusalReason.UNSUPPORTED_FORMAT, f"{path.name}: its manifest asks for an {err}; update edge-runtime, or make the bundle again"
        ) from err


class Closed:
    """Stands where the session of a closed model was: to use it fails like a run, with a word."""

    def __getattr__(self, name: str) -> Never:
        raise RuntimeError("it is closed; load it again")


def first_line(err: BaseException) -> str:
    """The first line of a library's message, at most 300 characters."""
    lines = str(err).strip().splitlines()
    return lines[0][:300] if lines else type(err).__name__
