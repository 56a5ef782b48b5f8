"""The child's side of `models.confined`: limits on itself, a way to build the backend, and one verdict on a private pipe.

The verdict goes to a copy of stdout; stdout itself becomes stderr, so a library that prints cannot spoil it.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import InputError, MissingDependency, ModelRefused
from models.confined import Verdict, is_out_of_memory, out_of_memory

MEBIBYTE = 1024 * 1024


def answer(work: Callable[[], msgspec.Struct], *, path: str, deadline_s: float, memory_mb: int, file_bytes: int = MEBIBYTE) -> int:
    """Does `work` within the time and writes its report, or the refusal it ended in; anything else is a crash to the parent.

    `work` limits its own memory (`limit_memory`) once the library is imported. `file_bytes` is the largest file it may write.
    """
    verdict_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit_time(deadline_s)
    _die_first()
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    with os.fdopen(verdict_fd, "wb") as out:
        out.write(msgspec.json.encode(_verdict(work, path, memory_mb)))
    return 0


def build_backend(specification: str) -> Any:
    """The backend of `module:attribute`, its library imported."""
    module, _, attribute = specification.partition(":")
    backend = getattr(importlib.import_module(module), attribute)()
    import_library = getattr(backend, "import_library", None)
    if import_library is not None:
        import_library()
    return backend


def limit_memory(memory_mb: int) -> float:
    """Limits the address space to what it is plus `memory_mb`; returns the resident MB now."""
    _lower(resource.RLIMIT_AS, _status_kb("VmSize") * 1024 + memory_mb * MEBIBYTE)
    return _status_kb("VmRSS") / 1024


def peak_mb() -> float:
    """The most memory that was resident in this process, MB."""
    return _status_kb("VmHWM") / 1024


def _verdict(work: Callable[[], msgspec.Struct], path: str, memory_mb: int) -> Verdict:
    try:
        return Verdict(report=work())
    except MissingDependency as err:
        return Verdict(missing=(err.library, err.extra))
    except ModelRefused as err:
        if not is_out_of_memory(err.__cause__ or err):
            return _refused(err)
    except InputError as err:
        return Verdict(invalid=str(err))
    except MemoryError:
        pass
    return _refused(out_of_memory(Path(path).name, memory_mb))


def _refused(err: ModelRefused) -> Verdict:
    return Verdict(refused=(err.reason.value, str(err).removeprefix(f"{err.reason.value}: ")))


def _limit_time(deadline_s: float) -> None:
    """Ends this process by itself should the parent die first; also when it only sleeps."""
    seconds = math.ceil(deadline_s) + 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, seconds)
    signal.alarm(seconds)


def _die_first() -> None:
    """Where memory runs out, the kernel is to end this process and not the gateway, whose score a child inherits."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (wanted, wanted))


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0
