"""The verifier's child: `python -m cloud_sync.trust.verify_process [MEMORY_MB]`.

A Request on each line of stdin, an Answer on each of stdout; ends when stdin does. Only `cloud_sync.trust.verifier` starts it. It
limits its own memory, processor time and file sizes.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from cloud_sync.trust.exchange import TURN_DEADLINE_S, Answer, Request
from edge_runtime.errors import DeploymentReason, DeploymentRefused

MEMORY_MB = 192

_CPU_S = 300
_FILE_BYTES = 8 * 1024 * 1024
_MEBIBYTE = 1024 * 1024
_LINE_BYTES = 1024 * 1024
_OUT_OF_MEMORY = Answer(refused=DeploymentReason.MALFORMED.value, message="the verifier ran out of memory on it")


def main() -> int:
    """Obeys stdin until it ends."""
    words = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, _CPU_S)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    memory_mb = int(sys.argv[1]) if len(sys.argv) > 1 else MEMORY_MB
    limited = False
    while line := sys.stdin.buffer.readline(_LINE_BYTES):
        signal.alarm(TURN_DEADLINE_S + 1)
        if not limited:
            limited = _import_and_limit(memory_mb)
        words.write(msgspec.json.encode(_answer(line)) + b"\n")
        words.flush()
        signal.alarm(0)
    return 0


def _import_and_limit(memory_mb: int) -> bool:
    """Loads the libraries, then limits what their use may take on top of them."""
    try:
        import cloud_sync.trust.judge  # noqa: F401
    except ModuleNotFoundError:
        return False
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_mb * _MEBIBYTE)
    return True


def _answer(line: bytes) -> Answer:
    try:
        return _judge(msgspec.json.decode(line, type=Request))
    except DeploymentRefused as err:
        if _starved(err):
            return _OUT_OF_MEMORY
        return Answer(refused=err.reason.value, message=str(err).removeprefix(f"{err.reason.value}: "))
    except ModuleNotFoundError as err:
        return Answer(missing=((err.name or "tuf").split(".")[0], "sync"))
    except MemoryError:
        return _OUT_OF_MEMORY
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            return Answer(refused=DeploymentReason.NO_SPACE.value, message=f"the trust folder cannot be written: {err}")
        return Answer(failed=f"the trust folder or root cannot be used: {err}")


def _starved(err: BaseException | None) -> bool:
    """Whether memory ran out somewhere below an error that a library made of it."""
    return err is not None and (isinstance(err, MemoryError) or _starved(err.__cause__))


def _judge(request: Request) -> Answer:
    from cloud_sync.trust.judge import judge
    from cloud_sync.trust.updater import NotFetched

    try:
        return Answer(desired=judge(request))
    except NotFetched as err:
        return Answer(need=err.names)


def _limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (wanted, wanted))


if __name__ == "__main__":
    sys.exit(main())
