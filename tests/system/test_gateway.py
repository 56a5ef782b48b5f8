"""The gateway as a process: it starts without a network, acts, survives what its hardware and disk do, and stops with everything kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from edge_runtime.store import read_ledger
from tests.system.conftest import Site


def valve(status: dict[str, Any]) -> str:
    return str(status["actuators"]["valve"]["state"])


async def test_it_boots_and_acts_with_no_network_at_all(site: Site) -> None:
    await site.start_gateway()
    status = await site.until(lambda s: valve(s) == "open")
    assert status["link"]["up"] is False
    assert status["pipelines"]["bearing"]["label"] == "normal"
    assert status["ledger"]["pending"] > 0


async def test_it_stops_gracefully_keeps_what_is_pending_and_leaves_the_valve_safe(site: Site) -> None:
    await site.start_gateway()
    await site.until(lambda s: valve(s) == "open")
    await site.stop("gateway")
    ledger = read_ledger(site.state_dir)
    assert ledger.balanced
    assert ledger.pending == ledger.offered > 0
    assert '"pump/valve": "closed"' in site.panel.read_text()
    await site.start_gateway()
    status = await site.until(lambda s: valve(s) == "open")
    assert status["ledger"]["offered"] > ledger.offered


async def test_a_second_gateway_on_the_same_state_is_refused(site: Site) -> None:
    await site.start_gateway()
    command = [
        sys.executable,
        "-m",
        "edge_runtime",
        "run",
        "--config",
        str(site.directory / "gateway.yaml"),
        "--state",
        str(site.state_dir),
    ]
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert str(site.processes["gateway"].pid) in second.stderr
    assert second.stdout == ""


async def test_a_broken_deployment_is_refused_at_reload_and_a_sound_one_taken_while_readings_flow(site: Site) -> None:
    await site.start_gateway()
    await site.until(lambda s: valve(s) == "open")
    site.edit("deployment.yaml", "revision: 1", "revision: 2\nnonsense: true")
    os.kill(site.processes["gateway"].pid, signal.SIGHUP)
    await site.until(lambda s: "reload refused" in site.log())
    assert "nonsense" in site.log()
    before = await site.until(lambda s: s["deployment"]["revision"] == 1)
    site.edit("deployment.yaml", "\nnonsense: true", "")
    os.kill(site.processes["gateway"].pid, signal.SIGHUP)
    after = await site.until(lambda s: s["deployment"]["revision"] == 2 and s["pipelines"]["bearing"]["count"] > 3)
    assert after["ledger"]["offered"] > before["ledger"]["offered"]
    assert after["ledger"]["dropped"] == {}
    assert valve(after) == "open"


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("sensor_nan", lambda s: s["channels"]["vibration"]["quality"] == "bad" and s["channels"]["flow"]["value"] is None),
        ("sensor_dropout", lambda s: s["channels"]["vibration"]["quality"] == "stale"),
        ("babble", lambda s: s["ledger"]["dropped"].get("rate_limit", 0) > 0),
        ("disconnect", lambda s: not s["adapters"]["plant"]["connected"]),
    ],
)
async def test_a_sensor_that_misbehaves_is_counted_or_unknown_and_the_gateway_recovers(site: Site, fault: str, seen: Any) -> None:
    await site.start_gateway()
    await site.until(lambda s: valve(s) == "open")
    site.set_faults({fault: 1.0})
    await site.until(seen)
    site.set_faults({})
    await site.until(
        lambda s: s["adapters"]["plant"]["connected"] and s["channels"]["vibration"]["quality"] == "good" and valve(s) == "open"
    )


async def test_a_model_that_is_missing_is_refused_before_the_start(site: Site) -> None:
    site.edit("deployment.yaml", "zoo:bearing", "zoo:nothing")
    command = [
        sys.executable,
        "-m",
        "edge_runtime",
        "run",
        "--config",
        str(site.directory / "gateway.yaml"),
        "--state",
        str(site.state_dir),
    ]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "models.bearing.path: missing: no model `nothing` in the zoo (known: bearing" in done.stderr


@pytest.mark.parametrize("damage", ["random", "truncated"])
async def test_a_damaged_database_is_set_aside_and_the_gateway_runs_on(site: Site, damage: str) -> None:
    await site.start_gateway()
    await site.until(lambda s: s["ledger"]["pending"] > 0)
    await site.stop("gateway")
    database = next(path for path in site.state_dir.iterdir() if path.suffix in (".sqlite", ".db", ".sqlite3"))
    database.write_bytes(os.urandom(65_536) if damage == "random" else database.read_bytes()[:1000])
    for side in ("-wal", "-shm"):
        Path(f"{database}{side}").unlink(missing_ok=True)
    await site.start_gateway()
    await site.until(lambda s: valve(s) == "open")
    assert [path for path in site.state_dir.iterdir() if ".corrupt-" in path.name]


@contextlib.asynccontextmanager
async def _mute_broker() -> AsyncIterator[int]:
    """The port of a broker that accepts every MQTT connection and subscription, and forgets what it is sent: no PUBACK, ever."""
    gone: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone.append(cast("asyncio.Task[None]", asyncio.current_task()))
        while data := await reader.read(65_536):
            if data[0] >> 4 == 1:
                writer.write(bytes([0x20, 3, 0, 0, 0]) if b"MQTT\x05" in data[:12] else bytes([0x20, 2, 0, 0]))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*gone, return_exceptions=True)


async def test_a_broker_that_accepts_and_forgets_costs_nothing_but_patience(site: Site) -> None:
    async with _mute_broker() as port:
        site.edit("gateway.yaml", f"port: {site.port}", f"port: {port}")
        await site.start_gateway()
        status = await site.until(lambda s: valve(s) == "open")
        assert status["ledger"]["delivered"] == 0
        assert status["ledger"]["dropped"] == {}
        await site.stop("gateway")
    assert read_ledger(site.state_dir).pending > 0


def _fill(path: Path, leave_bytes: int) -> None:
    """Takes the whole disk but for what others hold and `leave_bytes`."""
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - leave_bytes))


@pytest.mark.slow
async def test_a_full_disk_drops_by_policy_keeps_acting_and_drains_when_the_link_returns(site: Site) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small tmpfs")
    site.state_dir.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(site.state_dir)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        site.edit("deployment.yaml", "mode: scalars", "mode: all")
        site.edit("deployment.yaml", "rate_hz: 1600}", "rate_hz: 16000}")
        site.edit("gateway.yaml", "seed: 7", "seed: 7, rate_hz: 16000, block: 1280")
        site.edit("gateway.yaml", "broker:", "store: {max_bytes: 8000000, reserve_bytes: 65536}\nbroker:")
        await site.start_gateway()
        _fill(site.state_dir / "filler", leave_bytes=400_000)
        full = await site.until(lambda s: sum(s["ledger"]["dropped"].values()) > 20 and s["ledger"]["pending"] > 20)
        await site.until(lambda s: s["pipelines"]["bearing"]["count"] > full["pipelines"]["bearing"]["count"] + 20)
        await site.start_broker()
        await site.start_sink()
        await site.until(lambda s: s["link"]["up"] and s["ledger"]["pending"] < 20)
        dropped = sum((await site.status())["ledger"]["dropped"].values())
        offered = (await site.status())["ledger"]["offered"]
        later = await site.until(lambda s: s["ledger"]["offered"] > offered + 50)
        assert sum(later["ledger"]["dropped"].values()) == dropped
        await site.stop("gateway")
        ledger = read_ledger(site.state_dir)
        assert ledger.balanced
        assert site.compare().missing == 0
    finally:
        await site.close()
        subprocess.run(["umount", str(site.state_dir)], check=False)
