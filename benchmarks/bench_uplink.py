"""Uplink throughput, latency and CPU, from the gateway's store through mosquitto to the sink's database, beside a bare paho publisher.

    python benchmarks/bench_uplink.py [--records N]

`rows_of_one` sends one reading per outbox row, `batched` what the store's group commit makes of the same readings. CPU is that of this
process (store, uplink and MQTT session) per reading; the sink and the broker are processes of their own on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.rows import row
from cloud_sync.controller.broker import BrokerProcess, start_broker
from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.session import Uplink
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import SystemClock
from edge_runtime.ports import Outbox
from edge_runtime.records import Record, RecordKind, encode_batch, encode_body
from edge_runtime.store import Store
from edge_runtime.types import Priority

_PAYLOAD_BYTES = 200
_SINK = """
import argparse, sys
from cloud_sync.controller.command import Command
parser = argparse.ArgumentParser()
Command().configure(parser)
sys.exit(Command().run(parser.parse_args()))
"""


def run(records: int = 50_000) -> dict[str, Any]:
    """Rows beside a bare paho publisher in the same run; takes about 20 s."""
    with tempfile.TemporaryDirectory() as name, start_broker(0, Path(name) / "broker") as broker:
        folder = Path(name)
        bare = bare_paho(broker, min(records, 10_000))
        session = asyncio.run(session_publish(broker, min(records, 10_000)))
        singly = asyncio.run(rows_of_one(broker, folder, min(records, 20_000)))
        packed = asyncio.run(batched(broker, folder, records))
        delay = asyncio.run(latency(broker, folder, 1500, 500.0))
    rows = [
        row("MQTT session, QoS 1 messages of 200 bytes", session["per_s"], "1/s", bare["per_s"], ">= 5,000"),
        row("the same, CPU per message", session["cpu_us"], "us", bare["cpu_us"]),
        row("readings store -> broker -> database, packed", packed["per_s"], "1/s", None, ">= 5,000"),
        row("the same, CPU of the gateway per reading", packed["cpu_us"], "us"),
        row("the same, bytes on the wire per reading", packed["bytes_per_record"], "byte"),
        row("readings store -> broker -> database, one a row", singly["per_s"], "1/s"),
        row("offer -> durable -> at the controller, p50 at 500/s", delay["p50_ms"], "ms"),
        row("offer -> durable -> at the controller, p99 at 500/s", delay["p99_ms"], "ms", None, "<= 5"),
        row("readings lost", singly["lost"] + packed["lost"] + delay["lost"], "", None, "0"),
    ]
    return {"broker": broker.kind, "rows": rows}


def bare_paho(broker: BrokerProcess, messages: int) -> dict[str, float]:
    """The reference: paho's own thread, its own queue, nothing durable, nobody listening."""
    from paho.mqtt.client import Client, MQTTProtocolVersion
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, "bare", protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(broker.host, broker.port)
    client.loop_start()
    payload, started, cpu = bytes(_PAYLOAD_BYTES), time.perf_counter(), time.process_time()
    sent = [client.publish("bare", payload, qos=1) for _ in range(messages)]
    for info in sent:
        info.wait_for_publish()
    figures = _rates(messages, started, cpu)
    client.disconnect()
    client.loop_stop()
    return figures


async def session_publish(broker: BrokerProcess, messages: int) -> dict[str, float]:
    """Our MQTT session alone, in its window."""
    session = await open_transport(MqttOptions(host=broker.host, port=broker.port, client_id="session")).connect()
    payload, started, cpu = bytes(_PAYLOAD_BYTES), time.perf_counter(), time.process_time()
    todo = iter(range(messages))

    async def lane() -> None:
        for _ in todo:
            await session.publish("session", payload)

    await asyncio.gather(*(lane() for _ in range(session.max_inflight)))
    figures = _rates(messages, started, cpu)
    await session.close()
    return figures


class _Row:
    def __init__(self, boot: str, seq: int) -> None:
        self.boot, self.first_seq, self.count = boot, seq, 1
        self.data = encode_batch([Record(seq, RecordKind.READING, seq, seq, -1, encode_body(_body(seq)))])


class _Rows:
    """An outbox in memory with one reading per row."""

    def __init__(self, boot: str, count: int) -> None:
        self.rows = {seq: _Row(boot, seq) for seq in range(count)}
        self.waiting = list(self.rows)
        self.empty = asyncio.Event()

    async def peek(self, max_batches: int, after: int = 0) -> Sequence[tuple[int, _Row]]:
        taken, self.waiting = self.waiting[:max_batches], self.waiting[max_batches:]
        return [(seq, self.rows[seq]) for seq in taken]

    async def acknowledge(self, boot: str, first_seqs: Sequence[int]) -> int:
        gone = sum(self.rows.pop(seq, None) is not None for seq in first_seqs)
        if not self.rows:
            self.empty.set()
        return gone

    def release(self, row_ids: Sequence[int]) -> None:
        self.waiting = [*row_ids, *self.waiting]

    async def wait(self) -> None:
        if not self.waiting:
            await asyncio.Event().wait()


async def rows_of_one(broker: BrokerProcess, folder: Path, records: int) -> dict[str, float]:
    async with _sink(broker, folder / "one.db") as database:
        outbox = _Rows("one", records)
        uplink = _uplink(broker, outbox, "one", "gw-one")
        started, cpu = time.perf_counter(), time.process_time()
        running = asyncio.ensure_future(uplink.run())
        await outbox.empty.wait()
        figures = _rates(records, started, cpu) | {"mqtt_messages": uplink.counters()["messages"]}
        await _stop(running)
        return figures | {"lost": records - _count(database)}


async def batched(broker: BrokerProcess, folder: Path, records: int) -> dict[str, float]:
    """Readings offered to the durable store while the uplink runs; the time is from the first offer to the last acknowledgement."""
    async with _sink(broker, folder / "batched.db") as database:
        clock = SystemClock()
        store = Store.open(folder / "gw", clock=clock)
        uplink = _uplink(broker, store.outbox, store.boot, "gw-batched")
        running = asyncio.ensure_future(uplink.run())
        await _until(lambda: uplink.up)
        started, cpu = time.perf_counter(), time.process_time()
        for seq in range(records):
            store.offer(RecordKind.READING, clock.now(), _body(seq), Priority.BULK)
            if seq % 100 == 99:
                await asyncio.sleep(0)
        await _until(lambda: store.ledger().pending == 0)
        counters = uplink.counters()
        figures = _rates(records, started, cpu) | {"mqtt_messages": counters["messages"], "bytes_per_record": counters["bytes"] / records}
        figures["dropped"] = store.ledger().dropped_total
        await _stop(running)
        await store.close()
        return figures | {"lost": records - _count(database)}


async def latency(broker: BrokerProcess, folder: Path, records: int, rate_hz: float) -> dict[str, float]:
    """Offer to arrival at the sink's writer, durable first: store commit, MQTT, broker, sink."""
    async with _sink(broker, folder / "latency.db") as database:
        clock = SystemClock()
        store = Store.open(folder / "gw-latency", clock=clock)
        uplink = _uplink(broker, store.outbox, store.boot, "gw-latency")
        running = asyncio.ensure_future(uplink.run())
        await _until(lambda: uplink.up)
        cpu, due = time.process_time(), time.perf_counter()
        for seq in range(records):
            store.offer(RecordKind.READING, clock.now(), _body(seq), Priority.EVENT, urgent=True)
            due += 1 / rate_hz
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await _until(lambda: store.ledger().pending == 0)
        cpu_us = (time.process_time() - cpu) / records * 1e6
        await _stop(running)
        await store.close()
        with sqlite3.connect(database) as db:
            delays = sorted((late - at) / 1e6 for late, at in db.execute("SELECT received_wall_ns, wall_ns FROM records"))
    return {
        "p50_ms": round(statistics.median(delays), 3),
        "p99_ms": round(delays[int(len(delays) * 0.99)], 3),
        "max_ms": round(delays[-1], 3),
        "cpu_us": round(cpu_us, 1),
        "lost": records - len(delays),
    }


def _body(seq: int) -> list[object]:
    return ["vibration", "simulated", seq, 0.125 * seq, "m/s2", 0]


def _uplink(broker: BrokerProcess, outbox: Outbox | _Rows, boot: str, name: str) -> Uplink:
    transport = open_transport(MqttOptions(host=broker.host, port=broker.port, client_id=name))
    return Uplink(outbox, transport, GatewayTopics("bench", name), boot, SystemClock())


@asynccontextmanager
async def _sink(broker: BrokerProcess, database: Path) -> AsyncIterator[Path]:
    arguments = ["sink", "--port", str(broker.port), "--database", str(database)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _SINK, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield database
    finally:
        process.terminate()
        await process.communicate()


async def _stop(running: asyncio.Future[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def _until(condition: Any, limit_s: float = 120.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


def _count(database: Path) -> int:
    with sqlite3.connect(database) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])


def _rates(count: int, started: float, cpu: float) -> dict[str, float]:
    elapsed_s = time.perf_counter() - started
    return {"per_s": round(count / elapsed_s), "cpu_us": round((time.process_time() - cpu) / count * 1e6, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    print(json.dumps(run(parser.parse_args().records), indent=2))
