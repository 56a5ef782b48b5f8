"""A gateway process with CoAP resources: a reading is pushed, a rule fires on it, and the observer of its decisions hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adapters.coap.client import CoapClient
from edge_runtime.access.local import ask
from edge_runtime.errors import AdapterDisconnected
from tests.adapters.coap.board import CLIENT

pytestmark = pytest.mark.slow

WAIT_S = 40.0
GATEWAY = """\
schema: 1
gateway: {{id: gw-1}}
adapters:
  plant: {{driver: simulated}}
sensors:
  level: {{adapter: coap_server, channel: tank}}
  temp: {{adapter: plant, channel: pump/temperature}}
actuators:
  valve: {{adapter: plant, channel: pump/valve}}
coap:
  listen: 127.0.0.1:{port}
  notify_interval_s: 0.05
  ingest:
    tank: {{unit: mm, minimum: 0, maximum: 4000}}
deployment: deployment.yaml
"""
DEPLOYMENT = """\
schema: 1
revision: 1
sensors:
  level: {unit: cm, rate_hz: 10, stale_after_s: 600}
  temp: {unit: degC, rate_hz: 5}
actuators:
  valve: {states: [closed, open], safe_state: closed}
rules:
  - rule: overflow
    when: level > 300 cm
    then: {open: valve}
"""


class Running(NamedTuple):
    process: subprocess.Popen[str]
    port: int
    state: Path
    log: Path

    async def until(self, condition: Any) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(ConnectionError):
                    status: dict[str, Any] = await asyncio.to_thread(ask, self.state, "/status")
                    if status["ready"] and condition(status):
                        return status
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@contextlib.asynccontextmanager
async def running(tmp_path: Path, port: int) -> AsyncIterator[Running]:
    (tmp_path / "gateway.yaml").write_text(GATEWAY.format(port=port))
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    command = [sys.executable, "-m", "edge_runtime", "run", "--config", str(tmp_path / "gateway.yaml"), "--state", str(tmp_path / "s")]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, text=True) as process:
        try:
            yield Running(process, port, tmp_path / "s", tmp_path / "log")
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
async def gateway(tmp_path: Path, port: int) -> AsyncIterator[Running]:
    async with running(tmp_path, port) as one:
        yield one


def connected(status: dict[str, Any]) -> bool:
    return all(status["adapters"][name]["connected"] for name in ("coap_server", "plant"))


async def test_a_pushed_reading_makes_a_decision_that_is_observed(gateway: Running) -> None:
    await gateway.until(connected)
    client = CoapClient(f"coap://127.0.0.1:{gateway.port}", WAIT_S)
    await client.open()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def observe() -> None:
        async for answer in client.observe("/decisions"):
            heard.put_nowait(json.loads(answer.payload))

    observing = asyncio.create_task(observe())
    assert await asyncio.wait_for(heard.get(), WAIT_S) == {"count": 0, "last": None}
    await gateway.until(lambda status: status["adapters"]["coap_server"]["counters"]["observers"] == 1)
    async with asyncio.timeout(WAIT_S):
        while (answer := await client.put("/ingest/tank", b"3500")).code == (5, 3):  # the rules are not in force yet
            await asyncio.sleep(0.05)
    assert answer.code == (2, 4), answer
    decided = await asyncio.wait_for(heard.get(), WAIT_S)
    assert (decided["count"], decided["last"]["rule"], decided["last"]["kind"]) == (1, "overflow", "fired")
    assert decided["last"]["premises"][0]["value"] == 350.0, "pushed in mm, decided in cm"
    assert (await client.get("/readings/level")).payload == b"350 cm"
    status = await gateway.until(lambda status: status["actuators"]["valve"]["state"] == "open")
    assert status["actuators"]["valve"]["decision"] == decided["last"]["id"]
    assert json.loads((await client.get("/actuators")).payload) == status["actuators"]
    assert (await client.put("/ingest/tank", b"4001")).code == (4, 0)
    observing.cancel()
    await asyncio.wait([observing])
    await client.close()


async def test_libcoap_is_told_the_same_as_the_local_api(gateway: Running) -> None:
    if CLIENT is None:
        pytest.skip("libcoap's client is not installed: apt install libcoap3-bin")
    await gateway.until(lambda status: connected(status) and "temp" in status["channels"])
    command = [CLIENT, "-B", "10", "-b", "256", f"coap://127.0.0.1:{gateway.port}/status"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    said, status = json.loads(done.stdout), await asyncio.to_thread(ask, gateway.state, "/status")
    assert said.keys() == status.keys()
    assert (said["boot"], said["slots"], said["tenant"]) == (status["boot"], status["slots"], status["tenant"])
    for path in ("/ledger", "/readings", "/decisions", "/actuators"):
        command[-1] = f"coap://127.0.0.1:{gateway.port}{path}"
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
        assert json.loads(done.stdout).keys() == (await asyncio.to_thread(ask, gateway.state, path)).keys()


async def test_a_taken_port_stops_nothing_and_is_taken_up_when_free(tmp_path: Path, port: int) -> None:
    with contextlib.ExitStack() as held:
        other = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        other.bind(("127.0.0.1", port))
        async with running(tmp_path, port) as gateway:
            status = await gateway.until(lambda status: "another process has it" in status["adapters"]["coap_server"]["detail"])
            assert status["adapters"]["plant"]["connected"]
            held.close()
            await gateway.until(connected)
            gateway.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(gateway.process.wait, 20) == 0
    client = CoapClient(f"coap://127.0.0.1:{port}", 0.2)
    await client.open()
    with pytest.raises(AdapterDisconnected):
        await client.get("/status")
    await client.close()
