"""The factory behind the driver `microcontroller`, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapters.node.adapter import NodeAdapter, NodeOptions, check_options
from adapters.serial_port import Line
from edge_runtime.clock import Clock
from edge_runtime.errors import MissingDependency
from edge_runtime.options import decode_options

if TYPE_CHECKING:
    from adapters.microcontroller.node import SerialNode


class Options(NodeOptions, frozen=True, kw_only=True):
    """`port` is a device file, `socket://host:port` or `rfc2217://host:port`; `baud` is that of the wire."""

    port: str
    baud: int = 115_200


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> NodeAdapter:
    """Raises InputError on options that cannot be, MissingDependency without pyserial and cobs."""
    del clock  # the node has its own, and what it sends is timed when it arrives
    decoded = decode_options(options, Options, name)
    check_options(decoded, name)
    Line(port=decoded.port, baud=decoded.baud).check(name)
    return NodeAdapter(name, decoded, open_node(decoded.port, decoded.baud))


def open_node(port: str, baud: int) -> SerialNode:
    """A node on this port, not open. Raises InputError for a port that cannot be, MissingDependency without cobs."""
    Line(port=port, baud=baud).check("node")
    try:
        from adapters.microcontroller.node import SerialNode
    except ImportError as err:
        raise MissingDependency("cobs", "serial") from err
    return SerialNode(port, baud)
