"""Tries a model in a process of its own, so that one that aborts, hangs or eats memory harms nobody. The caller's side.

The child (`models.probe_process`) is a fresh interpreter, never a fork of the gateway. It gets an address-space limit, a CPU limit,
an alarm and a private pipe for its verdict. A report holds as long as the model's digest and the runtime do: keep it by both.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO

import msgspec

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import ProbeReport

DEADLINE_S = 20.0
MEMORY_MB = 1024

_TIMEOUT_SIGNALS = (signal.SIGALRM, signal.SIGXCPU)
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "length_error", "MemoryError")
_STDERR_BYTES = 65_536


class Verdict(msgspec.Struct, frozen=True):
    """What the child found: one of the three, or nothing when it died before it could tell."""

    report: ProbeReport | None = None
    refused: tuple[str, str] | None = None
    missing: tuple[str, str] | None = None


class Order(msgspec.Struct, frozen=True):
    """What the child shall do. `backend` is `module:attribute` of a ModelBackend class."""

    path: str
    backend: str
    deadline_s: float
    memory_mb: int


def probe(path: Path, backend: str, *, deadline_s: float = DEADLINE_S, memory_mb: int = MEMORY_MB) -> ProbeReport:
    """Loads and runs `path` in a child process and waits for it. `backend` is a registered name or `module:attribute`.

    Raises ModelRefused(PROBE_CRASHED | PROBE_TIMEOUT | PROBE_MEMORY) or whatever refusal the load or the run ended in.
    """
    order = Order(str(path), _specification(backend), deadline_s, memory_mb)
    with tempfile.TemporaryFile() as words, _start(order, words) as child:
        try:
            output, _ = child.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired as err:
            raise _timed_out(path, deadline_s) from err
        finally:
            child.kill()
        return _judge(path, child.returncode, output, _tail(words), order)


async def probe_async(path: Path, backend: str, *, deadline_s: float = DEADLINE_S, memory_mb: int = MEMORY_MB) -> ProbeReport:
    """As `probe`, without blocking the loop. A cancelled call takes its child down with it."""
    order = Order(str(path), _specification(backend), deadline_s, memory_mb)
    with tempfile.TemporaryFile() as words:
        child = await asyncio.create_subprocess_exec(
            *_command(order), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=_environment(), start_new_session=True
        )
        try:
            output, _ = await asyncio.wait_for(child.communicate(), deadline_s)
        except TimeoutError as err:
            raise _timed_out(path, deadline_s) from err
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        return _judge(path, child.returncode or 0, output, _tail(words), order)


def _start(order: Order, words: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(order), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=_environment(), start_new_session=True
    )


def _command(order: Order) -> list[str]:
    return [sys.executable, "-P", "-m", "models.probe_process", msgspec.json.encode(order).decode()]


def _environment() -> dict[str, str]:
    """Python finds this very package first; no thread pools, no arenas: both only inflate what is measured."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited] if inherited else [root])
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "EDGE_RUNTIME_NATIVE_LOGS": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": path}


def _specification(backend: str) -> str:
    if ":" in backend:
        return backend
    for point in entry_points(group="edge_runtime.model_backends", name=backend):
        return point.value
    raise InputError(f"`{backend}` is not a registered model backend")


def _judge(path: Path, code: int, output: bytes, words: str, order: Order) -> ProbeReport:
    if code < 0:
        raise _killed(path, -code, words, order)
    try:
        verdict = msgspec.json.decode(output, type=Verdict)
    except msgspec.MsgspecError as err:
        message = f"{path.name}: the probe ended with code {code} and no verdict: {_last_line(words)}"
        raise ModelRefused(RefusalReason.PROBE_CRASHED, message) from err
    if verdict.missing is not None:
        raise MissingDependency(*verdict.missing)
    if verdict.refused is not None:
        reason, message = verdict.refused
        raise ModelRefused(RefusalReason(reason), message)
    if verdict.report is None:
        raise ModelRefused(RefusalReason.PROBE_CRASHED, f"{path.name}: the probe gave no verdict: {_last_line(words)}")
    return verdict.report


def _killed(path: Path, number: int, words: str, order: Order) -> ModelRefused:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number in _TIMEOUT_SIGNALS:
        return _timed_out(path, order.deadline_s)
    if number == signal.SIGKILL:
        return ModelRefused(
            RefusalReason.PROBE_MEMORY, f"{path.name}: the probe was killed ({name}), as the kernel does when memory runs out"
        )
    if any(mark in words for mark in _OUT_OF_MEMORY):
        return out_of_memory(path.name, order.memory_mb)
    return ModelRefused(RefusalReason.PROBE_CRASHED, f"{path.name} kills the process that runs it ({name}): {_last_line(words)}")


def out_of_memory(name: str, memory_mb: int) -> ModelRefused:
    """The refusal for a model that wants more than it may have."""
    return ModelRefused(RefusalReason.PROBE_MEMORY, f"{name} needs more than the {memory_mb} MB it may have")


def is_out_of_memory(err: BaseException) -> bool:
    """True when an error of a native library means that memory ran out."""
    return isinstance(err, MemoryError) or any(mark in str(err) for mark in _OUT_OF_MEMORY)


def _timed_out(path: Path, deadline_s: float) -> ModelRefused:
    return ModelRefused(RefusalReason.PROBE_TIMEOUT, f"{path.name} did not load and run within {deadline_s:g} s")


def _tail(words: IO[bytes]) -> str:
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _STDERR_BYTES))
    return words.read().decode("utf-8", "replace")


def _last_line(words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip() and not line.startswith(("INFO:", "VERBOSE:"))]
    return lines[-1].strip()[:300] if lines else "it said nothing"
