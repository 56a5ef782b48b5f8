"""The uplink as the gateway builds it from settings: it tells the controller of the gateway, and refuses what cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cloud_sync.controller.broker import BrokerProcess
from cloud_sync.gateway import mqtt_uplink
from cloud_sync.mqtt import MqttOptions, open_transport
from edge_runtime.clock import SystemClock
from edge_runtime.errors import InputError
from edge_runtime.types import LinkSettings
from tests.cloud_sync.conftest import MemoryOutbox


def settings(**changes: Any) -> LinkSettings:
    return LinkSettings(**{"host": "127.0.0.1", "port": 1, "tenant": "t", "gateway": "gw", "boot": "b1", "version": "0", **changes})


async def test_it_publishes_a_retained_status_and_tells_that_it_is_up(
    any_broker: BrokerProcess, memory_outbox: MemoryOutbox, until: Callable[..., Any], background: Callable[..., Any]
) -> None:
    told: list[bool] = []
    link = settings(port=any_broker.port)
    uplink = mqtt_uplink(link, memory_outbox, SystemClock(), lambda: {"ledger": {}, "status": {}}, lambda up, _: told.append(up))
    running = background(uplink.run())
    await until(lambda: told == [True] and uplink.up)
    seen: dict[str, Any] = {}
    watcher = await open_transport(MqttOptions(host=any_broker.host, port=any_broker.port, client_id="watcher")).connect()
    await watcher.subscribe("fl/v1/t/g/gw/up/status", lambda _, payload: seen.update(json.loads(payload)))
    await until(lambda: seen)
    assert seen["boot"] == "b1"
    await watcher.close()
    assert uplink.health().ok
    running.cancel()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"protocol": "4"}, "protocol"), ({"cert": "/c.pem", "key": "/k.pem"}, "needs tls.ca")],
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, Any], named: str, memory_outbox: MemoryOutbox) -> None:
    with pytest.raises(InputError, match=named):
        mqtt_uplink(settings(**wrong), memory_outbox, SystemClock(), dict, lambda up, detail: None)
