"""The factory behind the driver `coap`, and its options: a node of ours, or any CoAP device by a map of its resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from adapters.coap.client import TIMEOUT_S
from adapters.coap.device import CoapDevice, ResourceSpec, check_resources
from adapters.coap.node import CoapNode
from adapters.node.adapter import NodeAdapter, NodeOptions, check_options
from edge_runtime.clock import Clock
from edge_runtime.errors import InputError
from edge_runtime.options import decode_options


class Options(NodeOptions, frozen=True, kw_only=True):
    """`uri` is `coap://host[:port]`. With `resources` the device is not one of our nodes, and the map says what it has."""

    uri: str
    period_ms: int = 1000
    timeout_s: float = 4.0
    resources: dict[str, ResourceSpec] | None = None


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> NodeAdapter | CoapDevice:
    """Raises InputError on options that cannot be."""
    del clock  # a device has its own, and what it sends is timed when it arrives
    decoded = decode_options(options, Options, name)
    check_options(decoded, name)
    _check_uri(decoded.uri, name)
    if not 0.1 <= decoded.timeout_s <= 60:
        raise InputError(f"{name}.options.timeout_s: expected 0.1 to 60 seconds, got {decoded.timeout_s:g}")
    if decoded.resources is not None:
        check_resources(decoded.resources, name)
        return CoapDevice(name, decoded.uri, decoded.timeout_s, decoded.resources)
    return NodeAdapter(name, decoded, open_node(decoded.uri, decoded.timeout_s))


def open_node(uri: str, timeout_s: float = TIMEOUT_S) -> CoapNode:
    """A node of ours at this address, not open. Raises InputError for an address that is none."""
    _check_uri(uri, "node")
    return CoapNode(uri, timeout_s)


def _check_uri(uri: str, name: str) -> None:
    try:
        parts = urlsplit(uri)
        good = parts.scheme == "coap" and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/") and not parts.query
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{name}.options.uri: expected coap://host or coap://host:port, got `{uri}`")
