"""The link to a local broker: the client that the uplink has, on a connection of its own. The one place where the two packages meet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cloud_sync.mqtt import MqttOptions, MqttSession, open_transport
from cloud_sync.topics import matches
from edge_runtime.errors import InputError

__all__ = ["Address", "MqttOptions", "MqttSession", "matches", "open_transport", "parse_broker", "read_password"]

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class Address(NamedTuple):
    """Where a broker is; `tls` when it is reached by mqtts."""

    host: str
    port: int
    tls: bool


def parse_broker(name: str, url: str) -> Address:
    """`mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`. Raises InputError; a password in the URL is refused, for files are read by others."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as err:
        raise InputError(f"{name}.options.broker: {err}: `{url}`") from err
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise InputError(f"{name}.options.broker: expected mqtt://HOST:PORT or mqtts://HOST:PORT, got `{url}`")
    if parts.username or parts.password:
        raise InputError(f"{name}.options.broker: put who you are into `username` and `password_file`, not into the URL")
    return Address(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "mqtts")


def read_password(name: str, path: str | None) -> str | None:
    """The password in a file's first line. Raises InputError."""
    if path is None:
        return None
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{name}.options.password_file: cannot read {path}: {getattr(err, 'strerror', None) or 'not a text'}") from err
    return lines[0].strip() if lines else ""


def client_id(gateway: str) -> str:
    """A client id made of what every broker takes."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"edge-runtime-{gateway}")[:64]
