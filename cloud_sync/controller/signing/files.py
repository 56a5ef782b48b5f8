"""Files that are replaced whole: one (`replace`), or many as one step that a killed process leaves done or not begun (`replace_all`).

A change is written and synced in a folder of its own, which is renamed when complete: from then on `recover` finishes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_STAGING = ".staging"
_STAGED = ".staged"
_LAST = "timestamp.json"


def replace(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes, syncs and renames: `path` is the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    _write(part, data, mode)
    part.replace(path)
    sync_folder(path.parent)


def replace_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replaces files of `folder` as one step, `timestamp.json` last. The caller holds the lock."""
    recover(folder)
    staging = folder / _STAGING
    staging.mkdir()
    for name, data in contents.items():
        _write(staging / name, data, 0o644)
    sync_folder(staging)
    staging.rename(folder / _STAGED)
    sync_folder(folder)
    recover(folder)


def recover(folder: Path) -> None:
    """Finishes a change that was complete and drops one that was not. The caller holds the lock."""
    staged = folder / _STAGED
    if staged.is_dir():
        for path in sorted(staged.iterdir(), key=lambda path: (path.name == _LAST, path.name)):
            path.replace(folder / path.name)
        sync_folder(folder)
        staged.rmdir()
        sync_folder(folder)
    shutil.rmtree(folder / _STAGING, ignore_errors=True)


def is_changing(folder: Path) -> bool:
    """Whether a change stands unfinished, here or in another process."""
    return (folder / _STAGED).exists() or (folder / _STAGING).exists()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock against other processes and threads until left; waits for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
