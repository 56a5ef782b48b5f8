"""Runs a module of this package in a process of its own under limits, so that a model that aborts, hangs or eats memory harms nobody.

The caller's side; the child's is `models.confinement`. The child is a fresh interpreter, never a fork of the gateway. It gets an
address-space limit, a CPU limit, an alarm and a private pipe for its verdict.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason

_TIMEOUT_SIGNALS = (signal.SIGALRM, signal.SIGXCPU)
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "length_error", "MemoryError")
_STDERR_BYTES = 65_536
_NOT_INHERITED = ("EDGE_RUNTIME_MODEL_CACHE",)


class Verdict(msgspec.Struct, frozen=True):
    """What the child found: one of the four, or nothing when it died before it could tell. `report` is plain data."""

    report: Any = None
    refused: tuple[str, str] | None = None
    missing: tuple[str, str] | None = None
    invalid: str | None = None


class Confined(msgspec.Struct, frozen=True):
    """A job for a child: `python -m module order` about the model in `path`."""

    module: str
    order: str
    path: Path
    deadline_s: float
    memory_mb: int


def run(job: Confined) -> Any:
    """The child's report, as plain data. Blocks.

    Raises ModelRefused(PROBE_CRASHED | PROBE_TIMEOUT | PROBE_MEMORY), or the ModelRefused, InputError or MissingDependency
    that the child ended in.
    """
    with tempfile.TemporaryFile() as words, _start(job, words) as child:
        try:
            output, _ = child.communicate(timeout=job.deadline_s)
        except subprocess.TimeoutExpired as err:
            raise _timed_out(job) from err
        finally:
            child.kill()
        return _judge(job, child.returncode, output, _tail(words))


async def run_async(job: Confined) -> Any:
    """As `run`, without blocking the loop. A cancelled call takes its child down with it."""
    import asyncio

    with tempfile.TemporaryFile() as words:
        child = await asyncio.create_subprocess_exec(
            *_command(job), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=_environment(), start_new_session=True
        )
        try:
            output, _ = await asyncio.wait_for(child.communicate(), job.deadline_s)
        except TimeoutError as err:
            raise _timed_out(job) from err
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        return _judge(job, child.returncode or 0, output, _tail(words))


def out_of_memory(name: str, memory_mb: int) -> ModelRefused:
    """The refusal for a model that wants more than it may have."""
    return ModelRefused(RefusalReason.PROBE_MEMORY, f"{name} needs more than the {memory_mb} MB it may have")


def is_out_of_memory(err: BaseException) -> bool:
    """True when an error of a native library means that memory ran out."""
    return isinstance(err, MemoryError) or any(mark in str(err) for mark in _OUT_OF_MEMORY)


def _start(job: Confined, words: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(job), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=_environment(), start_new_session=True
    )


def _command(job: Confined) -> list[str]:
    return [sys.executable, "-P", "-m", job.module, job.order]


def _environment() -> dict[str, str]:
    """Python finds this very package first; no thread pools, no arenas: both only inflate what is measured. No shared cache."""
    root = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([root, inherited] if inherited else [root])
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "EDGE_RUNTIME_NATIVE_LOGS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**kept, **quiet, "PYTHONPATH": path}


def _judge(job: Confined, code: int, output: bytes, words: str) -> Any:
    name = job.path.name
    if code < 0:
        raise _killed(job, -code, words)
    try:
        verdict = msgspec.json.decode(output, type=Verdict)
    except msgspec.MsgspecError as err:
        message = f"{name}: the probe ended with code {code} and no verdict: {_last_line(words)}"
        raise ModelRefused(RefusalReason.PROBE_CRASHED, message) from err
    if verdict.missing is not None:
        raise MissingDependency(*verdict.missing)
    if verdict.invalid is not None:
        raise InputError(verdict.invalid)
    if verdict.refused is not None:
        reason, message = verdict.refused
        raise ModelRefused(RefusalReason(reason), message)
    if verdict.report is None:
        raise ModelRefused(RefusalReason.PROBE_CRASHED, f"{name}: the probe gave no verdict: {_last_line(words)}")
    return verdict.report


def _killed(job: Confined, number: int, words: str) -> ModelRefused:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number in _TIMEOUT_SIGNALS:
        return _timed_out(job)
    if number == signal.SIGKILL:
        return ModelRefused(
            RefusalReason.PROBE_MEMORY, f"{job.path.name}: the probe was killed ({name}), as the kernel does when memory runs out"
        )
    if any(mark in words for mark in _OUT_OF_MEMORY):
        return out_of_memory(job.path.name, job.memory_mb)
    return ModelRefused(RefusalReason.PROBE_CRASHED, f"{job.path.name} kills the process that runs it ({name}): {_last_line(words)}")


def _timed_out(job: Confined) -> ModelRefused:
    return ModelRefused(RefusalReason.PROBE_TIMEOUT, f"{job.path.name} did not load and run within {job.deadline_s:g} s")


def _tail(words: IO[bytes]) -> str:
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _STDERR_BYTES))
    return words.read().decode("utf-8", "replace")


def _last_line(words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip() and not line.startswith(("INFO:", "VERBOSE:"))]
    return lines[-1].strip()[:300] if lines else "it said nothing"
