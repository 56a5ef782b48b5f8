"""Tells systemd how the service is: ready, alive, reloading, stopping. The sd_notify(3) protocol, without a library.

It only speaks; when to say what is the app's. Outside systemd every call is a no-op that returns False.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Self


class Notifier:
    """The line to the service manager. Cheap and never blocks: one non-blocking datagram a call.

    `address` is a Unix socket path, or `@name` for an abstract one; None: nobody listens. `watchdog_s` is how long the manager waits for
    `alive` before it kills the service; None: it does not watch.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address or None
        self._watchdog_s = watchdog_s
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them. A watchdog meant for another process is not ours."""
        return cls(environment.get("NOTIFY_SOCKET"), _watchdog_s(environment))

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call `alive`: half of what the manager waits (sd_watchdog_enabled(3)); None when it does not watch."""
        return self._watchdog_s / 2 if self._watchdog_s is not None else None

    def ready(self, text: str = "") -> bool:
        """Start-up (or a reload) is done. `text` becomes the status line."""
        return self._send("READY=1", *_status(text))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def alive(self) -> bool:
        """The loop still turns; call it from the loop itself, or it proves nothing."""
        return self._send("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, text: str = "") -> bool:
        """A graceful stop begins."""
        return self._send("STOPPING=1", *_status(text))

    def extend_timeout(self, seconds: float) -> bool:
        """Asks for `seconds` more of start or stop time from now."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def close(self) -> None:
        """Lets the socket go. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> bool:
        """True when the manager's socket took the datagram."""
        if self._address is None or not assignments:
            return False
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return False
        return True


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    period = environment.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or int(period) == 0:
        return None
    owner = environment.get("WATCHDOG_PID")
    if owner is not None and owner != str(os.getpid()):
        return None
    return int(period) / 1e6
