"""What a node does for a gateway, whatever it is reached over. The UART and CoAP implement it; the adapter and the commands ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from adapters.node.messages import Hello, LineState, ModelState, NodeReading, Notice, Result

Progress = Callable[[int, int], None]
"""`(bytes sent, bytes in all)`"""


class NodeEvents(Protocol):
    """Takes what a node says by itself. Called on the loop; returns at once; never raises."""

    def on_reading(self, reading: NodeReading) -> None: ...

    def on_result(self, result: Result) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...

    def on_lost(self, reason: str) -> None:
        """The link is gone; what is asked from now on fails."""
        ...


class Node(Protocol):
    """One sensor node. Every call raises AdapterDisconnected without an answer, NodeRefused when the node said no."""

    async def open(self, events: NodeEvents) -> None:
        """Raises AdapterDisconnected when nobody answers."""
        ...

    async def close(self) -> None:
        """Lets go of the link; may be called again."""
        ...

    async def hello(self) -> Hello: ...

    async def model(self) -> ModelState: ...

    async def read(self) -> NodeReading: ...

    async def subscribe(self, period_ms: int, *, readings: bool, results: bool) -> None:
        """The node speaks every `period_ms` through the events of `open`; 0 ends it."""
        ...

    async def infer(self, stored: bytes = b"") -> Result:
        """One inference on these input bytes, or on the node's own window of samples."""
        ...

    async def actuate(self, line: int, level: int, lease_ms: int) -> int:
        """The line's level now. A lease of 0 gives it back to its safe level."""
        ...

    async def level(self, line: int) -> int: ...

    async def lines(self) -> tuple[LineState, ...]: ...

    async def stats(self) -> dict[str, int]: ...

    async def upload(self, blob: bytes, version: int, progress: Progress) -> None:
        """Brings a model into the free slot and has it checked there; what runs is not touched."""
        ...

    async def trial(self, confirm_s: int) -> None:
        """Resets the node into the uploaded model."""
        ...

    async def confirm(self) -> None: ...

    async def rollback(self) -> None: ...

    def counters(self) -> dict[str, int]: ...

    def describe(self) -> str:
        """How the link does, for people."""
        ...
