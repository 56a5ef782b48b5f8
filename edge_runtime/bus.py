"""The in-process event bus: typed, synchronous, direct calls. It orders nothing and stores nothing.

`publish` calls every handler of exactly that event's class, in the order of subscription. A handler that raises is logged
once per handler and error type, and the others still run: a fault in a status page must not stop an actuator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

Event = TypeVar("Event")
Handler = Callable[[Any], None]

log = logging.getLogger(__name__)


class Bus:
    """Direct calls by event class: about 0.1 us a handler."""

    def __init__(self) -> None:
        self._handlers: dict[type, tuple[Handler, ...]] = {}
        self._failing: set[tuple[Handler, type]] = set()

    def subscribe(self, event: type[Event], handler: Callable[[Event], None]) -> Callable[[], None]:
        """Adds a handler; returns the call that takes it off again (safe during a publish)."""
        self._handlers[event] = (*self._handlers.get(event, ()), handler)

        def unsubscribe() -> None:
            self._handlers[event] = tuple(h for h in self._handlers[event] if h is not handler)

        return unsubscribe

    def publish(self, event: object) -> None:
        """Hands the event to its handlers, now, on this thread."""
        for handler in self._handlers.get(type(event), ()):
            try:
                handler(event)
            except Exception as err:  # noqa: BLE001 - border between independent modules: one must not stop another
                self._report(handler, err)

    def _report(self, handler: Handler, err: Exception) -> None:
        key = (handler, type(err))
        if key not in self._failing:
            self._failing.add(key)
            log.exception("bus handler failed handler=%s", getattr(handler, "__qualname__", handler))
