"""Where a gateway keeps what must survive, unless it is told; addresses of local sockets, however deep their folder."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST_ADDRESS = 107  # bytes, of a Unix socket


def default_state_dir() -> Path:
    """`/var/lib/edge-runtime` for root, else the XDG state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/edge-runtime")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "edge-runtime"


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """The `--state DIR` option that every command on durable state has."""
    parser.add_argument("--state", type=Path, default=default_state_dir(), metavar="DIR", help="state folder (default: %(default)s)")


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect a Unix socket to: the path, or, where it is longer than an address may be, one by its folder's descriptor.

    Raises OSError where the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
