"""From `fleet push` to CONFIRMED on one gateway: real controller, mosquitto over mutual TLS, the zoo's bearing model, probation 0.

References: AWS Greengrass Lite's deployment of a small component, 40 to 67 s and 24 to 47 MB written (measured earlier, another run).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import row
from cloud_sync.controller.broker import free_port
from edge_runtime.demo.fleet import FleetStage, good_model
from edge_runtime.demo.stage import GATEWAY

PUSHES = 5
_WAIT_S = 60.0


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {"rows": asyncio.run(_rows(Path(folder)))}


async def _rows(folder: Path) -> list[dict[str, Any]]:
    stage = FleetStage(folder, free_port())
    try:
        await stage.set_up()
        await stage.start_broker()
        await stage.start_sink()
        await stage.join()
        await stage.start_gateway()
        seconds, written, arrivals = [], [], []
        for number in range(PUSHES):
            took, wrote, applied = await _push(stage, number)
            seconds.append(took)
            written.append(wrote)
            arrivals.append(applied)
    finally:
        await stage.close()
    size = (folder / "push0.tar").stat().st_size / 1e6
    return [
        row("push with a new model to CONFIRMED", seconds[0], "s", 40.0, "< 5"),
        row("the same, written to disk by the gateway beside the model", written[0] - size, "MB", 24.0, "< 1"),
        row("push of other rules to CONFIRMED, median", statistics.median(seconds[1:]), "s", 40.0, "< 5"),
        row("the same, slowest", max(seconds[1:]), "s"),
        row("the same, written to disk by the gateway", statistics.median(written[1:]), "MB", 24.0, "< 1"),
        row("of it, from the signed message to CONFIRMED on the gateway", statistics.median(arrivals), "s"),
    ]


async def _push(stage: FleetStage, number: int) -> tuple[float, float, float]:
    """Seconds from the command's start and from its end until CONFIRMED, and megabytes that the gateway's process wrote."""
    pid = stage.processes["gateway"].pid
    model = good_model()
    tar, text = await stage.signed(model, f"push{number}", {"sync:": f"flags: {{mark{number}: true}}\nhealth: {{probation_s: 0}}\n\nsync:"})
    assert tar.exists()
    before, begun = _written(pid), time.perf_counter()
    revision = await stage.offer(text)
    offered = time.perf_counter()
    async with asyncio.timeout(_WAIT_S):
        while True:
            told = (await stage.status()).get("deployment", {})
            if (told.get("revision"), told.get("phase")) == (revision, "confirmed"):
                break
            await asyncio.sleep(0.02)
    done = time.perf_counter()
    return done - begun, (_written(pid) - before) / 1e6, done - offered


def _written(pid: int) -> int:
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["write_bytes"])


if __name__ == "__main__":
    print(json.dumps(run() | {"gateway": GATEWAY}, indent=2))
