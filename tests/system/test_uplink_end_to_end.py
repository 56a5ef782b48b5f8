"""From the gateway's durable store through a real broker to the sink's database, with every part killed and the link in pieces.

The bar is the same everywhere: what was offered is in the database, each record once, and the ledger says so.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloud_sync.controller import queries
from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, start_broker
from cloud_sync.controller.engine import open_database
from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import SystemClock
from edge_runtime.records import RecordKind
from edge_runtime.store import Store
from edge_runtime.testing.chaos import ChaosFaults, ChaosProxy
from edge_runtime.types import Priority

pytestmark = pytest.mark.system

_SINK = """
import argparse, sys
from cloud_sync.controller.command import Command
parser = argparse.ArgumentParser()
Command().configure(parser)
sys.exit(Command().run(parser.parse_args()))
"""
_EAGER = UplinkSettings(ack_timeout_s=0.5, reconnect_base_s=0.05, reconnect_max_s=0.3)


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    if request.param == "amqtt":
        pytest.importorskip("amqtt")
    with start_broker(0, tmp_path / "broker", prefer=request.param) as process:
        yield process


class SinkProcess:
    """`edge-runtime controller sink` as a process of its own, to be killed."""

    def __init__(self, port: int, database: Path, protocol: str = "auto") -> None:
        self._arguments = ["sink", "--port", str(port), "--database", str(database), "--client-id", "sink", "--protocol", protocol]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> dict[str, object]:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _SINK, *self._arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            return json.loads(await self._process.stdout.readline())

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode


@asynccontextmanager
async def gateway(directory: Path, port: int, protocol: str = "auto") -> AsyncIterator[tuple[Store, Uplink]]:
    clock = SystemClock()
    store = Store.open(directory, clock=clock)
    options = MqttOptions(host="127.0.0.1", port=port, client_id="gw", publish_timeout_s=2, connect_timeout_s=2, protocol=protocol)  # type: ignore[arg-type]
    topics = GatewayTopics("default", "gw")

    def state() -> dict[str, object]:
        return {"ledger": store.ledger().as_dict(), "status": {}}

    uplink = Uplink(store.outbox, open_transport(options), topics, store.boot, clock, state=state, settings=_EAGER)
    running = asyncio.ensure_future(uplink.run())
    try:
        yield store, uplink
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()


async def until(condition: Callable[[], object], limit_s: float = 40.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


def offer(store: Store, records: int, priority: Priority = Priority.BULK) -> None:
    at = SystemClock().now()
    for n in range(records):
        store.offer(RecordKind.READING, at, ["vibration", "simulated", n, 0.5, "m/s2", 0], priority)


def protocol_of(broker: BrokerProcess) -> str:
    return "auto" if broker.kind == "mosquitto" else "3.1.1"


def check_rows(database: Path, store: Store, offered: int) -> None:
    """Every number once, under its boot; the ledger agrees."""
    rows = sqlite3.connect(database).execute("SELECT boot, seq FROM records ORDER BY boot, seq").fetchall()
    assert [row for row in rows if row[0] == store.boot] == [(store.boot, seq) for seq in range(1, offered + 1)]
    ledger = store.ledger()
    assert (ledger.offered, ledger.delivered, ledger.pending, ledger.dropped_total) == (offered, offered, 0, 0)


async def test_the_outbox_reaches_the_database(broker: BrokerProcess, tmp_path: Path) -> None:
    """Protocol `auto` throughout: MQTT 5 with mosquitto, MQTT 3.1.1 with amqtt."""
    sink = SinkProcess(broker.port, tmp_path / "sink.db")
    ready = await sink.start()
    assert ready["ready"] is True
    async with gateway(tmp_path / "gw", broker.port) as (store, uplink):
        offer(store, 5000)
        offer(store, 50, Priority.EVENT)
        await until(lambda: store.ledger().delivered == 5050)
        check_rows(tmp_path / "sink.db", store, 5050)
        uplink.report()
        database = await open_database(tmp_path / "sink.db")
        while (
            not (known := await queries.gateways(database.engine, "default"))
            or known[0]["state"].get("ledger", {}).get("delivered") != 5050
        ):
            await asyncio.sleep(0.01)
        assert known[0]["online"]
    while (await queries.gateways(database.engine, "default"))[0]["online"]:
        await asyncio.sleep(0.01)
    report = await queries.accounts(database.engine, "default", "gw")
    assert (report["rows"], report["holes"], report["dropped"], report["quarantined"]) == (5050, 0, {}, 0)
    await database.close()
    assert await sink.end() == 0


async def test_what_was_offered_while_there_was_no_broker_is_delivered_by_a_later_boot(broker: BrokerProcess, tmp_path: Path) -> None:
    broker.stop()
    async with gateway(tmp_path / "gw", broker.port) as (store, _):
        offer(store, 300)
        await store.flush()
        first = store.boot
    await asyncio.to_thread(broker.start)
    sink = SinkProcess(broker.port, tmp_path / "sink.db", protocol_of(broker))
    await sink.start()
    async with gateway(tmp_path / "gw", broker.port, protocol_of(broker)) as (store, _):
        offer(store, 200)
        await until(lambda: store.ledger().delivered == 500)
        database = await open_database(tmp_path / "sink.db")
        boots = (await queries.accounts(database.engine, "default", "gw"))["boots"]
        await database.close()
        assert {boot: facts["rows"] for boot, facts in boots.items()} == {first: 300, store.boot: 200}
    await sink.end()


@pytest.mark.slow
async def test_killing_the_broker_and_the_sink_loses_and_doubles_nothing(broker: BrokerProcess, tmp_path: Path) -> None:
    draw = random.Random(7)
    sink = SinkProcess(broker.port, tmp_path / "sink.db", protocol_of(broker))
    await sink.start()
    async with gateway(tmp_path / "gw", broker.port, protocol_of(broker)) as (store, uplink):
        for _ in range(8):
            offer(store, 500)
            await asyncio.sleep(draw.uniform(0, 0.2))
            if draw.random() < 0.5:
                await asyncio.to_thread(broker.kill)
                offer(store, 500)
                await asyncio.to_thread(broker.start)
            else:
                assert await sink.end(signal.SIGKILL) == -signal.SIGKILL
                offer(store, 500)
                await sink.start()
        await until(lambda: store.ledger().delivered == 8000)
        check_rows(tmp_path / "sink.db", store, 8000)
        assert uplink.counters()["batches_refused"] == 0
    await sink.end()


@pytest.mark.slow
@pytest.mark.parametrize("truncate", [False, True])
async def test_a_link_reset_every_few_hundred_milliseconds_loses_and_doubles_nothing(
    broker: BrokerProcess, tmp_path: Path, truncate: bool
) -> None:
    faults = ChaosFaults(reset_after_s=(0.1, 0.5), delay_s=(0.0, 0.004), truncate=truncate)
    async with ChaosProxy(broker.port, faults, seed=3) as proxy:
        sink = SinkProcess(proxy.port, tmp_path / "sink.db", protocol_of(broker))
        await sink.start()
        async with gateway(tmp_path / "gw", proxy.port, protocol_of(broker)) as (store, uplink):
            offered = 0
            while proxy.resets < 20:
                offer(store, 100)
                offered += 100
                await asyncio.sleep(0.02)
            await until(lambda: store.ledger().delivered == offered)
            check_rows(tmp_path / "sink.db", store, offered)
            assert uplink.counters()["connects"] > 5
        faults.reset_after_s = None
        await sink.end()


@pytest.mark.slow
async def test_a_link_that_swallows_bytes_is_given_up_and_made_again(tmp_path: Path, broker: BrokerProcess) -> None:
    async with ChaosProxy(broker.port) as proxy:
        sink = SinkProcess(broker.port, tmp_path / "sink.db", protocol_of(broker))
        await sink.start()
        async with gateway(tmp_path / "gw", proxy.port, protocol_of(broker)) as (store, uplink):
            await until(lambda: uplink.up)
            proxy.faults.swallow = True
            offer(store, 100)
            await until(lambda: not uplink.up)
            proxy.faults.swallow = False
            await until(lambda: store.ledger().delivered == 100)
            check_rows(tmp_path / "sink.db", store, 100)
        await sink.end()


async def test_two_sinks_share_the_telemetry(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with start_broker(0, tmp_path / "broker") as process:
        sinks = [SinkProcess(process.port, tmp_path / "sink.db") for _ in range(2)]
        for number, sink in enumerate(sinks):
            sink._arguments[-3] = f"sink-{number}"
            sink._arguments += ["--share", "ctl"]
            await sink.start()
        async with gateway(tmp_path / "gw", process.port) as (store, _):
            for _ in range(20):
                offer(store, 100)
                await store.flush()
            await until(lambda: store.ledger().delivered == 2000)
            check_rows(tmp_path / "sink.db", store, 2000)
        for sink in sinks:
            await sink.end()
