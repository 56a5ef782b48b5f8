"""Tries many models: `python trial.py MODULE:BACKEND FILE...` writes one JSON object, each file's outcome by its path.

The library is imported once; each file gets a fork with limits of its own, so one that crashes costs itself alone. Outcomes: `ran`,
`refused <reason>`, `signal <number>` and `raised <type>: <words>`; the last is a breach of the backend's contract.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from edge_runtime.errors import ModelRefused
from models.confinement import build_backend, limit_memory
from models.tensors import zeros

DEADLINE_S = 5
MEMORY_MB = 512


def outcome(backend: Any, path: Path) -> str:
    try:
        loaded = backend.load(path)
        loaded.run([zeros(tensor) for tensor in loaded.inputs])
    except ModelRefused as err:
        return f"refused {err.reason.value}"
    except Exception as err:  # noqa: BLE001 - every type but ModelRefused is what the test looks for
        return f"raised {type(err).__name__}: {err}"
    return "ran"


def forked(backend: Any, path: Path) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(DEADLINE_S)
            limit_memory(MEMORY_MB)
            os.write(writer, outcome(backend, path).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as words:
        found = words.read().decode()
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else found


if __name__ == "__main__":
    chosen = build_backend(sys.argv[1])
    sys.stdout.write(json.dumps({file: forked(chosen, Path(file)) for file in sys.argv[2:]}))
