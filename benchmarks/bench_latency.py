"""Sensor event -> decision -> durable on disk -> published -> at a subscriber, through mosquitto on the loopback, without inference.

    python -m benchmarks.bench_latency

Every event fires or releases a rule, so every event is a decision with a group commit of its own: the longest path there is. The
reference in the same run is a bare paho client that publishes 200 bytes at QoS 1 to the same broker, with nothing durable.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import row
from cloud_sync.controller.broker import BrokerProcess, start_broker
from cloud_sync.gateway import mqtt_uplink
from edge_runtime.clock import SystemClock
from edge_runtime.config.deployment import Deployment, RuleSpec, SensorSpec
from edge_runtime.config.gateway import SensorBinding
from edge_runtime.loop import LocalLoop
from edge_runtime.ports import SampleSink
from edge_runtime.store import Store
from edge_runtime.types import LinkSettings, Sample

_SUBSCRIBER = """
import json, sys, time
import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from edge_runtime.records import decode_batch
port, wanted, latencies = int(sys.argv[1]), int(sys.argv[2]), []
def now(): return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
def on_message(client, _, message):
    at = now()
    if message.topic == "bare":
        latencies.append(at - int(message.payload[:20]))
    else:
        envelope = msgspec.msgpack.decode(message.payload)
        for batch in envelope["batches"]:
            latencies.extend(at - record.mono_ns for record in decode_batch(batch[3]) if record.kind == "d")
        ack = {"v": 1, "boot": envelope["boot"], "batches": [batch[0] for batch in envelope["batches"]], "refused": []}
        client.publish(message.topic.replace("up/tlm", "dn/ack"), json.dumps(ack), qos=1)
    if len(latencies) >= wanted:
        client.disconnect()
client = Client(CallbackAPIVersion.VERSION2)
client.on_message = on_message
client.on_subscribe = lambda *_: print("ready", flush=True)
client.connect("127.0.0.1", port)
client.subscribe([("fl/v1/+/g/+/up/tlm", 1), ("bare", 1)])
client.loop_forever()
latencies.sort()
print(json.dumps({"p50": latencies[len(latencies) // 2] / 1e6, "p99": latencies[int(len(latencies) * 0.99)] / 1e6}))
"""


def run(events: int = 1500, rate_hz: float = 200.0) -> dict[str, Any]:
    """p50 and p99 in ms, and the in-process handler in us, each beside its reference."""
    with tempfile.TemporaryDirectory() as folder, start_broker(0, Path(folder) / "broker") as broker:
        bare = _bare(broker, events, rate_hz)
        ours, handler_us, busy_us = asyncio.run(_ours(broker, Path(folder), events, rate_hz))
    path = "event -> decision -> durable -> subscriber"
    rows = [
        row(f"{path}, p50 at {rate_hz:g}/s", ours["p50"], "ms", bare["p50"], "<= 0.5"),
        row(f"{path}, p99 at {rate_hz:g}/s", ours["p99"], "ms", bare["p99"], "<= 2"),
        row("in-process handler, one reading after another, p50", busy_us, "us", None, "<= 70"),
        row("in-process handler with a decision, woken every 5 ms, p50", handler_us, "us", None, "<= 70"),
    ]
    return {"broker": broker.kind, "rows": rows}


def _bare(broker: BrokerProcess, events: int, rate_hz: float) -> dict[str, float]:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    subscriber = _subscribe(broker, events)
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect(broker.host, broker.port)
    client.loop_start()
    for _ in range(events):
        client.publish("bare", f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020d}" + 180 * "x", qos=1)
        time.sleep(1 / rate_hz)
    result = _result(subscriber)
    client.loop_stop()
    return result


async def _ours(broker: BrokerProcess, folder: Path, events: int, rate_hz: float) -> tuple[dict[str, float], float, float]:
    clock = SystemClock()
    store = Store.open(folder / "store", clock=clock)
    loop = LocalLoop(clock, store, boot=store.boot, on_drop=store.count_drop)
    hot = RuleSpec(rule="hot", when="t > 50 degC")
    deployment = Deployment(schema=1, sensors={"t": SensorSpec(unit="degC", rate_hz=10_000)}, rules=(hot,))
    loop.configure(deployment, {"t": SensorBinding(adapter="a", channel="t")}, {}, {}, {}, {})
    settings = LinkSettings(host=broker.host, port=broker.port, tenant="bench", gateway="g", boot=store.boot, version="bench")
    uplink = mqtt_uplink(settings, store.outbox, clock, lambda: {"ledger": {}, "status": {}}, lambda up, detail: None)
    subscriber = await asyncio.to_thread(_subscribe, broker, events)
    running = asyncio.create_task(uplink.run())
    while not uplink.up:
        await asyncio.sleep(0.01)
    sink, handler = loop.ingest.sink("a"), []
    for index in range(events):
        begun = time.perf_counter_ns()
        sink(Sample("t", 100.0 if index % 2 == 0 else 0.0))
        handler.append(time.perf_counter_ns() - begun)
        await asyncio.sleep(1 / rate_hz)
    result = await asyncio.to_thread(_result, subscriber)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    busy_us = await _busy(sink)
    await store.close()
    return result, sorted(handler)[events // 2] / 1e3, busy_us


async def _busy(sink: SampleSink) -> float:
    """Median of the handler in us while readings come without a pause; one in a hundred changes a rule."""
    times = []
    for index in range(5000):
        begun = time.perf_counter_ns()
        sink(Sample("t", 100.0 if index // 100 % 2 == 0 else 0.0))
        times.append(time.perf_counter_ns() - begun)
        if index % 50 == 49:
            await asyncio.sleep(0)
    return sorted(times)[len(times) // 2] / 1e3


def _subscribe(broker: BrokerProcess, events: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SUBSCRIBER, str(broker.port), str(events)]
    subscriber = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert subscriber.stdout is not None
    subscriber.stdout.readline()
    return subscriber


def _result(subscriber: subprocess.Popen[str]) -> dict[str, float]:
    result: dict[str, float] = json.loads(subscriber.communicate(timeout=60)[0])
    return result


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
