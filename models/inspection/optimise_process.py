"""The child of `models.inspection.optimise`: `python -m models.inspection.optimise_process ORDER`. Only that module starts it."""

from __future__ import annotations

import mmap
import statistics
import sys
import time
from pathlib import Path

import msgspec

from edge_runtime.bundle import find_model
from edge_runtime.errors import ModelRefused
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array
from models.confined import is_out_of_memory
from models.confinement import MEBIBYTE, answer, limit_memory
from models.inspection import onnx
from models.inspection.optimise import LevelReport, OptimiseOrder, OptimiseReport, operator_counts
from models.onnx import LEVELS, Level, OnnxBackend
from models.optimised import OptimisedCache, digest
from models.tensors import zeros

ROUNDS = 20

_SHARE_OF_DEADLINE = 0.3
_LEAST_S, _MOST_S = 0.2, 8.0
_LOADS = 3


def main() -> int:
    """Obeys the order in argv. It may write files of four times the model's size and 16 MiB."""
    order = msgspec.json.decode(sys.argv[1], type=OptimiseOrder)
    file_bytes = 4 * Path(order.path).stat().st_size + 16 * MEBIBYTE
    return answer(lambda: _try(order), path=order.path, deadline_s=order.deadline_s, memory_mb=order.memory_mb, file_bytes=file_bytes)


def _try(order: OptimiseOrder) -> OptimiseReport:
    backends = {level: OnnxBackend(order.providers, level=level) for level in LEVELS}
    plain, cached = backends["all"], OnnxBackend(order.providers, OptimisedCache(Path(order.folder) / "cache"))
    plain.import_library()
    limit_memory(order.memory_mb)
    path = Path(order.path)
    *load_ms, cached_ms = _load_times([*backends.values(), cached], path)
    times = _take_turns({level: backend.load(path) for level, backend in backends.items()}, order.deadline_s)
    return OptimiseReport(
        runtime=plain.runtime(),
        providers=plain.providers,
        available=plain.execution_providers(),
        source=_operators(path),
        levels=tuple(_level(order, level, load_ms[index], times[level]) for index, level in enumerate(LEVELS)),
        load_cached_ms=cached_ms,
        hash_ms=_hash_ms(path),
        same_bits=_same_bits(plain, cached, path) if times["all"] else None,
    )


def _load_times(backends: list[OnnxBackend], path: Path) -> list[float]:
    """The lowest of a few loads with each, in turns, ms; the very first ones warm up and fill the cache."""
    rounds = [[_load_ms(backend, path) for backend in backends] for _ in range(1 + _LOADS)]
    return [round(min(times), 2) for times in zip(*rounds[1:], strict=True)]


def _load_ms(backend: OnnxBackend, path: Path) -> float:
    begin = time.perf_counter()
    model = backend.load(path)
    load_ms = (time.perf_counter() - begin) * 1e3
    model.close()
    return load_ms


def _hash_ms(path: Path) -> float:
    """What a load with the cache spends on the file's digest, ms; 0 for a bundle, whose manifest holds it."""
    if find_model(path)[1] is not None:
        return 0.0
    begin = time.perf_counter()
    digest(path)
    return round((time.perf_counter() - begin) * 1e3, 2)


def _take_turns(models: dict[Level, LoadedModel], deadline_s: float) -> dict[Level, list[float]]:
    """Milliseconds of every run, the levels taking turns so that a neighbour's noise falls on all of them."""
    inputs = [zeros(tensor) for tensor in models["all"].inputs]
    budget_s = min(_MOST_S, max(_LEAST_S, _SHARE_OF_DEADLINE * deadline_s))
    taken: dict[Level, list[float]] = {level: [] for level in models}
    ran = [_runs(model, inputs) for model in models.values()]
    if not all(ran):
        return taken
    stop = time.perf_counter() + budget_s
    while not taken["all"] or time.perf_counter() < stop:
        for level, model in models.items():
            taken[level] += _turn(model, inputs, budget_s / ROUNDS / len(models))
    return taken


def _runs(model: LoadedModel, inputs: list[Array]) -> bool:
    """Runs once; False when only its free dimensions can be to blame for the failure."""
    try:
        model.run(inputs)
    except ModelRefused as err:
        if any(-1 in tensor.shape[1:] for tensor in model.inputs) and not is_out_of_memory(err.__cause__ or err):
            return False
        raise
    return True


def _turn(model: LoadedModel, inputs: list[Array], seconds: float) -> list[float]:
    """One level's turn: at least one run, after one untimed when there is time for several."""
    times_ms: list[float] = []
    stop = time.perf_counter() + seconds
    while not times_ms or time.perf_counter() < stop:
        begin = time.perf_counter()
        model.run(inputs)
        times_ms.append((time.perf_counter() - begin) * 1e3)
    return times_ms[1:] or times_ms


def _level(order: OptimiseOrder, level: Level, load_ms: float, times_ms: list[float]) -> LevelReport:
    saved = Path(order.folder) / f"{level}.onnx"
    OnnxBackend(order.providers, level=level).save_optimised(Path(order.path), saved)
    operators = _operators(saved)
    saved.unlink()
    tenths = statistics.quantiles(times_ms, n=10) if len(times_ms) > 1 else (times_ms or [0.0]) * 9
    return LevelReport(
        level=level,
        nodes=sum(operators.values()),
        operators=operators,
        load_ms=load_ms,
        run_ms=round(statistics.median(times_ms), 4) if times_ms else 0.0,
        run_p10_ms=round(tenths[0], 4),
        run_p90_ms=round(tenths[-1], 4),
        runs=len(times_ms),
    )


def _same_bits(plain: OnnxBackend, cached: OnnxBackend, path: Path) -> bool:
    found: list[list[bytes]] = []
    for backend in (plain, cached):
        model = backend.load(path)
        found.append([output.tobytes() for output in model.run([zeros(tensor) for tensor in model.inputs])])
        model.close()
    return found[0] == found[1]


def _operators(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return operator_counts(onnx.inspect(content).operators)


if __name__ == "__main__":
    sys.exit(main())
