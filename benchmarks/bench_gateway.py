"""The whole gateway as a process: cold start and memory without a model, then 8,000 readings a second from sensor to database.

    python -m benchmarks.bench_gateway

The readings are a recording of ten channels played in real time through mosquitto into the controller's sink. The references are
ThingsBoard Gateway 3.8's figures on a machine of this size (1,438 messages/s, p50 136 ms, 50.7 MB PSS): not in this run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, row
from cloud_sync.controller.broker import free_port
from edge_runtime.demo.stage import GATEWAY, Stage
from edge_runtime.store import read_ledger

CHANNELS, RATE_HZ, SECONDS, STARTS = 10, 800, 10, 5
_WAIT_S = 60.0


def run() -> dict[str, Any]:
    """Takes about 40 s."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        return {"rows": asyncio.run(_idle(Path(folder) / "idle")) + asyncio.run(_loaded(Path(folder) / "loaded"))}


async def _idle(folder: Path) -> list[Row]:
    """Starts after one that fills the page cache and the bytecode cache; no controller, one linux adapter, two rules."""
    stage = _stage(folder)
    (folder / "gateway.yaml").write_text(_gateway_file(stage, "linux", {}, {"load": "load/1min", "memory": "memory/available"}))
    (folder / "deployment.yaml").write_text(
        "schema: 1\nsensors: {load: {rate_hz: 10}, memory: {unit: MB, rate_hz: 10}}\nsync: {telemetry: {mode: scalars}}\nrules:\n"
        "  - {rule: busy, when: load > 8}\n  - {rule: full, when: memory < 50 MB}\n"
    )
    starts, stops, memory = [], [], []
    bare = [_python_start_s() for _ in range(STARTS)]
    for _ in range(STARTS + 1):
        begun = time.perf_counter()
        await stage.start_gateway()
        starts.append(time.perf_counter() - begun)
        await _until(stage, lambda status: status["ledger"]["offered"] > 5)
        memory.append(_pss_mb(stage.processes["gateway"].pid))
        stops.append(await stage.stop("gateway"))
    return [
        row("gateway without a model: start -> ready, p50 of 5", statistics.median(starts[1:]), "s", statistics.median(bare), "< 1"),
        row("the same, slowest of 5", max(starts[1:]), "s", max(bare)),
        row("gateway without a model: PSS, largest of 6", max(memory), "MB", 50.7, "<= 45"),
        row("graceful stop, slowest of 6", max(stops), "s", None, "< 2"),
    ]


async def _loaded(folder: Path) -> list[Row]:
    stage = _stage(folder)
    names = [f"c{n}" for n in range(CHANNELS)]
    _record(folder / "recording.csv", names)
    options = {"file": str(folder / "recording.csv")}
    (folder / "gateway.yaml").write_text(_gateway_file(stage, "replay", options, {name: name for name in names}))
    sensors = ", ".join(f"{name}: {{rate_hz: {RATE_HZ}}}" for name in names)
    (folder / "deployment.yaml").write_text(f"schema: 1\nsensors: {{{sensors}}}\nsync: {{telemetry: {{mode: scalars}}}}\n")
    await stage.start_broker()
    await stage.start_sink()
    begun = time.perf_counter()
    await stage.start_gateway()
    wanted = CHANNELS * RATE_HZ * SECONDS
    await _until(stage, lambda status: status["ledger"]["offered"] >= wanted and status["ledger"]["pending"] == 0)
    seconds = time.perf_counter() - begun
    pid = stage.processes["gateway"].pid
    memory, cpu_s = _pss_mb(pid), _cpu_s(pid)
    await stage.stop("gateway")
    compared, ledger = stage.compare(), read_ledger(stage.state_dir)
    with sqlite3.connect(stage.database) as db:
        query = "SELECT received_wall_ns - wall_ns, wall_ns FROM records WHERE gateway = ? AND kind = 'r' ORDER BY wall_ns"
        found = db.execute(query, (GATEWAY,)).fetchall()
    await stage.close()
    delays = sorted(delay / 1e6 for delay, _ in found)
    rate = len(found) / ((found[-1][1] - found[0][1]) / 1e9)
    return [
        row("readings/s from sensor to the controller's database", rate, "1/s", 1438, ">= 5,000"),
        row("the same, p50 from ingest to arrival", statistics.median(delays), "ms", 136),
        row("the same, p99", delays[int(len(delays) * 0.99)], "ms"),
        row("the same, PSS of the gateway", memory, "MB", 50.7),
        row("the same, CPU of the gateway, of one core", 100 * cpu_s / seconds, "%"),
        row("records lost or twice in the database", compared.missing + compared.duplicates + ledger.dropped_total, "", None, "0"),
    ]


def _stage(folder: Path) -> Stage:
    folder.mkdir()
    return Stage(folder, free_port())


def _gateway_file(stage: Stage, driver: str, options: dict[str, Any], channels: dict[str, str]) -> str:
    document = {
        "schema": 1,
        "gateway": {"id": GATEWAY, "tenant": "demo"},
        "adapters": {"source": {"driver": driver, "options": options}},
        "sensors": {name: {"adapter": "source", "channel": channel} for name, channel in channels.items()},
        "broker": {"host": "127.0.0.1", "port": stage.port},
        "deployment": "deployment.yaml",
    }
    return json.dumps(document)


def _record(path: Path, names: list[str]) -> None:
    """A recording of `SECONDS` in which every cell differs from the one above."""
    start_s = 1_700_000_000
    with path.open("w") as file:
        file.write(",".join(["time", *names]) + "\n")
        for index in range(RATE_HZ * SECONDS):
            cells = [f"{(index * 7 + n) % 997 / 10:g}" for n in range(len(names))]
            file.write(",".join([f"{start_s + index / RATE_HZ:.6f}", *cells]) + "\n")


async def _until(stage: Stage, condition: Any) -> None:
    status: dict[str, Any] = {}
    async with asyncio.timeout(_WAIT_S):
        while not (status := await stage.status()).get("ready") or not condition(status):
            await asyncio.sleep(0.05)


def _python_start_s() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return time.perf_counter() - begun


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"no Pss in /proc/{pid}/smaps_rollup")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
