"""Where a gateway keeps what must survive, unless it is told."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def default_state_dir() -> Path:
    """`/var/lib/edge-runtime` for root, else the XDG state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/edge-runtime")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "edge-runtime"


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """The `--state DIR` option that every command on durable state has."""
    parser.add_argument("--state", type=Path, default=default_state_dir(), metavar="DIR", help="state folder (default: %(default)s)")
