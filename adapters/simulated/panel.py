"""The plant's panel: a small JSON file through which people, scripts and other processes break and repair the plant.

    {"faults": {"outer_race": 0.8, "pump2.blocked_valve": 1}, "actuators": {"pump/valve": "closed"}}

A fault without a pump's name is every pump's. The plant writes the positions of its actuators, so that a valve stays where it
was when the gateway's process is killed and comes back. A panel that cannot be read changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_MAX_BYTES = 65_536


class Panel:
    """One panel file; without a path it is always empty and remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None

    def changed(self) -> dict[str, Any] | None:
        """The panel's content when it changed since last asked, else None."""
        if self._path is None:
            return None
        with suppress(OSError):
            info = self._path.stat()
            stamp = (info.st_mtime_ns, info.st_ino)
            if stamp != self._stamp:
                self._stamp = stamp
                return self._read()
        return None

    def write_actuators(self, positions: dict[str, str]) -> None:
        """Writes the actuators' positions and keeps the rest, atomically."""
        if self._path is None:
            return
        content = self._read() or {}
        content["actuators"] = positions
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            scratch.write_text(json.dumps(content))
            scratch.replace(self._path)
        except OSError as err:
            log.warning("panel cannot be written path=%s error=%s", self._path, err.strerror)

    def _read(self) -> dict[str, Any] | None:
        assert self._path is not None
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES} bytes")
            content = json.loads(self._path.read_text())
            if not isinstance(content, dict):
                raise ValueError(f"expected an object, got {type(content).__name__}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as err:
            log.warning("panel is not read path=%s error=%s", self._path, err)
            return None
        return content
