"""A fleet that comes back all at once, and queues of the broker that overflow: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, start_broker
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.sink import Sink
from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import SystemClock

pytestmark = [pytest.mark.system, pytest.mark.slow]

EAGER = UplinkSettings(ack_timeout_s=0.5, reconnect_base_s=0.05, reconnect_max_s=0.5)
SMALL = msgspec.structs.replace(EAGER, ack_timeout_s=0.05, max_message_bytes=600)
_SINK = "import sys; from edge_runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"


def link(broker: BrokerProcess, name: str) -> Any:
    return open_transport(MqttOptions(host=broker.host, port=broker.port, client_id=name, publish_timeout_s=5, connect_timeout_s=5))


def uplink(broker: BrokerProcess, name: str, outbox: Any, settings: UplinkSettings = EAGER) -> Uplink:
    return Uplink(outbox, link(broker, name), GatewayTopics("acme", name), "b", SystemClock(), settings=settings)


def rows(path: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT gateway, count(*) FROM records GROUP BY gateway ORDER BY gateway").fetchall()


async def test_a_storm_of_reconnects_loses_and_doubles_nothing(
    mosquitto: BrokerProcess, tmp_path: Path, background, make_batch, memory_outbox, until: Callable[..., Any]
) -> None:
    """Sixty gateways lose the broker at once, three times, with data on its way."""
    names = [f"gw-{number:02}" for number in range(60)]
    outboxes = {name: type(memory_outbox)() for name in names}
    database = await open_database(tmp_path / "controller.db")
    writer = database.writer()
    background(Sink(link(mosquitto, "sink"), writer).run())
    for name in names:
        background(uplink(mosquitto, name, outboxes[name]).run())
    for storm in range(3):
        for outbox in outboxes.values():
            outbox.add(*(make_batch("b", storm * 50 + seq) for seq in range(0, 50, 10)))
        await until(lambda storm=storm: sum(outbox.delivered for outbox in outboxes.values()) > storm * 300)
        await asyncio.to_thread(mosquitto.kill)
        await asyncio.to_thread(mosquitto.start)
    await until(lambda: not any(outbox.rows for outbox in outboxes.values()), 50.0)
    writer.close()
    await database.close()
    assert rows(tmp_path / "controller.db") == [(name, 150) for name in names]


async def test_what_a_full_queue_drops_is_sent_again(
    tmp_path: Path, background, make_batch, memory_outbox, until: Callable[..., Any]
) -> None:
    """The broker acknowledges what it then drops: its queue for a controller that stands still has five places."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    tight = {"max_queued_messages": "5", "max_inflight_messages": "1"}
    with start_broker(0, tmp_path / "broker", extra=tight) as broker:
        arguments = ["controller", "sink", "--port", str(broker.port), "--database", str(tmp_path / "sink.db"), "--client-id", "sink"]
        sink = await asyncio.create_subprocess_exec(sys.executable, "-c", _SINK, *arguments, stdout=asyncio.subprocess.PIPE)
        try:
            assert sink.stdout is not None
            assert await sink.stdout.readline()
            os.kill(sink.pid, signal.SIGSTOP)
            memory_outbox.add(*(make_batch("b", seq) for seq in range(0, 300, 10)))
            talker = uplink(broker, "gw-1", memory_outbox, SMALL)
            background(talker.run())
            await until(lambda: talker.counters()["retransmissions"] > 8)
            assert not memory_outbox.delivered
            os.kill(sink.pid, signal.SIGCONT)
            await until(lambda: not memory_outbox.rows, 40.0)
        finally:
            os.kill(sink.pid, signal.SIGCONT)
            sink.terminate()
            await sink.communicate()
    assert rows(tmp_path / "sink.db") == [("gw-1", 300)]
