"""The one module that writes slots: five primitive steps, each of which a test may stop, count or fail.

A step is done when the call returns, and on the disk only after `sync` of the file and of its folder. Nothing here knows what it writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Step = Callable[[str, Path], None]
"""`(step, path)`, told before and after every primitive: `make`, `write`, `sync`, `rename`, `remove`, with `before:` or `after:`."""

_SCRATCH = ".new-"


def _untold(step: str, path: Path) -> None:
    pass


class Disk:
    """Durable writes. Every method raises OSError."""

    def __init__(self, told: Step = _untold) -> None:
        self._told = told
        self.written_bytes = 0

    def put(self, path: Path, data: bytes) -> None:
        """The file holds `data`, or what it held before, whenever the power goes; on the disk on return."""
        scratch = path.with_name(_SCRATCH + path.name)
        self._write(scratch, data)
        self._sync(scratch)
        self._rename(scratch, path)
        self._sync(path.parent)

    def put_folder(self, folder: Path, files: dict[str, bytes]) -> None:
        """The folder is there with all its files, or not at all; on the disk on return. One that was there is replaced."""
        scratch = folder.with_name(_SCRATCH + folder.name)
        self.remove(scratch)
        self._make(scratch)
        for name, data in files.items():
            self._write(scratch / name, data)
            self._sync(scratch / name)
        self._sync(scratch)
        self.remove(folder)
        self._rename(scratch, folder)
        self._sync(folder.parent)

    def make(self, folder: Path) -> None:
        """The folder is there, on the disk on return."""
        if not folder.is_dir():
            self._make(folder)
            self._sync(folder.parent)

    def remove(self, path: Path) -> None:
        """The file or folder is gone, on the disk at some time; one that is not there is left so."""
        if not path.exists() and not path.is_symlink():
            return
        self._told("before:remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        self._told("after:remove", path)

    def scratch(self, folder: Path) -> list[Path]:
        """What a writer that died has left in a folder."""
        return sorted(folder.glob(f"{_SCRATCH}*")) if folder.is_dir() else []

    def _make(self, folder: Path) -> None:
        self._told("before:make", folder)
        folder.mkdir(mode=0o700)
        self._told("after:make", folder)

    def _write(self, path: Path, data: bytes) -> None:
        self._told("before:write", path)
        path.write_bytes(data)
        self.written_bytes += len(data)
        self._told("after:write", path)

    def _sync(self, path: Path) -> None:
        self._told("before:sync", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._told("after:sync", path)

    def _rename(self, source: Path, target: Path) -> None:
        self._told("before:rename", source)
        source.rename(target)
        self._told("after:rename", target)
