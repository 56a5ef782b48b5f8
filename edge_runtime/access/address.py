"""Addresses to listen on, as the gateway file has them: `127.0.0.1:5683`, `[::1]:5683`, `0.0.0.0:5683`."""

from __future__ import annotations

import ipaddress
import re

from edge_runtime.errors import InputError

_LISTEN = re.compile(r"^(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})$")


def parse_listen(text: str, key: str) -> tuple[str, int]:
    """Host and port. Raises InputError for what is no IP address (or `localhost`) with a port."""
    found = _LISTEN.match(text)
    host = "" if found is None else found["six"] or found["host"]
    try:
        host = "127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))
    except ValueError:
        host = ""
    if found is None or not host or not 0 < int(found["port"]) < 65536:
        raise InputError(f"{key}: expected an IP address and a port such as 127.0.0.1:5683 or [::1]:5683, got `{text}`")
    return host, int(found["port"])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return ipaddress.ip_address(host).is_loopback
