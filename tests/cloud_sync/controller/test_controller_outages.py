"""The controller is killed, its database stops, its disk is full, its broker forgets: nothing is lost, nothing is there twice.

Real processes throughout: mosquitto, the sink by its command, SQLite and PostgreSQL, the gateway's own uplink.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.controller import queries
from cloud_sync.controller.address import parse_address
from cloud_sync.controller.broker import BrokerProcess
from cloud_sync.controller.engine import create_engine, open_database
from cloud_sync.controller.ingest import CRASH_VARIABLE
from cloud_sync.controller.postgres import PostgresWriter
from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import SystemClock
from edge_runtime.errors import StoreError
from edge_runtime.testing.postgres import PostgresServer

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SINK = """
import argparse, sys
from cloud_sync.controller.command import Command
parser = argparse.ArgumentParser()
Command().configure(parser)
sys.exit(Command().run(parser.parse_args()))
"""
_EAGER = UplinkSettings(ack_timeout_s=0.2, reconnect_base_s=0.05, reconnect_max_s=0.2)


class SinkProcess:
    """`edge-runtime controller sink`, with what it logs."""

    def __init__(self, port: int, database: str) -> None:
        self._arguments = ["sink", "--port", str(port), "--database", database, "--client-id", "sink"]
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.log = ""

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self, crash: str = "") -> dict[str, Any]:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _SINK,
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, CRASH_VARIABLE: crash},
        )
        self._reading = asyncio.ensure_future(self._read())
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            line = await self._process.stdout.readline()
        assert line, self.log
        return json.loads(line)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log += line.decode(errors="replace")

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            code = await self.process.wait()
        assert self._reading is not None
        await self._reading
        return code

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self.ended()


@pytest.fixture
async def sink_process(mosquitto: BrokerProcess, database_url: str) -> AsyncIterator[SinkProcess]:
    sink = SinkProcess(mosquitto.port, database_url)
    yield sink
    await sink.stop()


@pytest.fixture
def uplink(mosquitto: BrokerProcess, memory_outbox, background) -> Uplink:
    options = MqttOptions(host="127.0.0.1", port=mosquitto.port, client_id="gw", publish_timeout_s=2, connect_timeout_s=2)
    made = Uplink(memory_outbox, open_transport(options), GatewayTopics("acme", "gw"), "b", SystemClock(), settings=_EAGER)
    background(made.run())
    return made


async def held(url: str) -> dict[str, Any]:
    engine = create_engine(parse_address(url))
    try:
        return await queries.accounts(engine, "acme", "gw", recount=True)
    finally:
        await engine.dispose()


@pytest.mark.parametrize("point", ["before_commit", "before_ack"])
async def test_a_controller_killed_around_its_commit_loses_and_doubles_nothing(
    sink_process: SinkProcess, database_url: str, uplink: Uplink, memory_outbox, make_batch, until, point: str
) -> None:
    await sink_process.start(crash=point)
    await until(lambda: uplink.up)
    memory_outbox.add(*(make_batch("b", seq) for seq in range(0, 1000, 10)))
    assert await sink_process.ended() == -signal.SIGKILL
    before = await held(database_url)
    assert memory_outbox.delivered == 0
    assert (before["rows"] > 0) == (point == "before_ack")
    await sink_process.start()
    await until(lambda: not memory_outbox.rows)
    after = await held(database_url)
    assert (after["rows"], after["holes"], after["quarantined"]) == (1000, 0, 0)
    assert after["duplicates"] >= before["rows"]


async def test_postgres_that_stops_and_comes_back_only_delays(
    mosquitto: BrokerProcess, own_postgres: PostgresServer, uplink: Uplink, memory_outbox, make_batch, until
) -> None:
    url = own_postgres.database()
    sink = SinkProcess(mosquitto.port, url)
    await sink.start()
    memory_outbox.add(*(make_batch("b", seq) for seq in range(0, 200, 10)))
    await until(lambda: not memory_outbox.rows)
    for number, end in enumerate((own_postgres.stop, own_postgres.kill), 1):
        downs = sink.log.count("store_down")
        await asyncio.to_thread(end)
        memory_outbox.add(*(make_batch("b", seq) for seq in range(number * 200, number * 200 + 200, 10)))
        await until(lambda downs=downs: sink.log.count("store_down") > downs)
        assert len(memory_outbox.rows) == 20
        assert sink.process.returncode is None
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: not memory_outbox.rows)
        await until(lambda: sink.log.count("store_up") == sink.log.count("store_down"))
    found = await held(url)
    assert (found["rows"], found["holes"]) == (600, 0)
    await sink.stop()


async def test_a_full_disk_only_delays(mosquitto: BrokerProcess, tmp_path: Path, uplink: Uplink, memory_outbox, make_batch, until) -> None:
    """The kernel refuses to let the files grow, as at the end of a disk or a quota."""
    url = str(tmp_path / "controller.db")
    sink = SinkProcess(mosquitto.port, url)
    await sink.start()
    memory_outbox.add(*(make_batch("b", seq) for seq in range(0, 200, 10)))
    await until(lambda: not memory_outbox.rows)
    largest = max(path.stat().st_size for path in tmp_path.glob("controller.db*"))
    resource.prlimit(sink.process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    memory_outbox.add(*(make_batch("b", seq) for seq in range(200, 4200, 10)))
    await until(lambda: "store_down" in sink.log)
    assert memory_outbox.rows
    assert sink.process.returncode is None
    resource.prlimit(sink.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await until(lambda: not memory_outbox.rows)
    found = await held(url)
    assert (found["rows"], found["holes"]) == (4200, 0)
    await sink.stop()


async def test_a_broker_that_forgot_its_sessions_only_delays(
    mosquitto: BrokerProcess, tmp_path: Path, sink_process: SinkProcess, database_url: str, uplink: Uplink, memory_outbox, make_batch, until
) -> None:
    await sink_process.start()
    for number in range(3):
        memory_outbox.add(*(make_batch("b", seq) for seq in range(number * 1000, number * 1000 + 1000, 10)))
        await until(lambda: memory_outbox.delivered > 0)
        await asyncio.to_thread(mosquitto.kill)
        for saved in (tmp_path / "broker").glob("mosquitto.db*"):
            saved.unlink()
        await asyncio.to_thread(mosquitto.start)
    await until(lambda: not memory_outbox.rows)
    found = await held(database_url)
    assert (found["rows"], found["holes"]) == (3000, 0)


async def test_a_database_that_cannot_be_opened_is_named_at_the_start(mosquitto: BrokerProcess, tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database" * 1000)
    sink = SinkProcess(mosquitto.port, str(tmp_path / "junk.db"))
    with contextlib.suppress(AssertionError):
        await sink.start()
    assert await sink.ended() != 0
    assert "junk.db: expected a database of this controller" in sink.log


async def test_postgres_that_dies_within_a_transaction_is_a_store_that_is_down(own_postgres: PostgresServer) -> None:
    """asyncpg refuses to commit on a connection that is gone before the commit is awaited."""
    url = own_postgres.database()
    await (await open_database(url)).close()
    with contextlib.closing(PostgresWriter(parse_address(url))) as writer:

        def commit_behind_the_end() -> None:
            with writer.transaction():
                own_postgres.kill()
                with contextlib.suppress(StoreError):
                    writer.count("x", 1)

        with pytest.raises(StoreError, match="connection is closed"):
            await asyncio.to_thread(commit_behind_the_end)
        await asyncio.to_thread(own_postgres.start)

        def commit_again() -> None:
            with writer.transaction():
                writer.count("x", 1)

        await asyncio.to_thread(commit_again)
