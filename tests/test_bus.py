"""The bus calls handlers directly, by exact class, and a failing handler never stops the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from edge_runtime.bus import Bus


@dataclass
class Ping:
    n: int


@dataclass
class Pong(Ping):
    pass


def test_handlers_run_in_order_of_subscription_and_only_for_their_class() -> None:
    bus, seen = Bus(), []
    bus.subscribe(Ping, lambda event: seen.append(("first", event.n)))
    bus.subscribe(Ping, lambda event: seen.append(("second", event.n)))
    bus.publish(Ping(1))
    bus.publish(Pong(2))
    assert seen == [("first", 1), ("second", 1)]


def test_a_failing_handler_is_logged_once_and_the_others_still_run(caplog: pytest.LogCaptureFixture) -> None:
    bus, seen = Bus(), []

    def broken(event: Ping) -> None:
        raise RuntimeError("boom")

    bus.subscribe(Ping, broken)
    bus.subscribe(Ping, lambda event: seen.append(event.n))
    with caplog.at_level(logging.ERROR):
        for n in range(3):
            bus.publish(Ping(n))
    assert seen == [0, 1, 2]
    assert len(caplog.records) == 1


def test_unsubscribing_during_a_publish_is_safe() -> None:
    bus, seen = Bus(), []
    cancels = []

    def once(event: Ping) -> None:
        seen.append(event.n)
        cancels[0]()

    cancels.append(bus.subscribe(Ping, once))
    bus.publish(Ping(1))
    bus.publish(Ping(2))
    assert seen == [1]
