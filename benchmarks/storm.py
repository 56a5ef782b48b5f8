"""Kill storm: gateway, controller sink and broker are killed with SIGKILL at random moments under load; then every row is looked up.

    python -m benchmarks.storm --kills 200 --seed 1

The gateway is the demo's, with every reading and every block of vibration on the uplink. At the end the outbox drains, the gateway
stops gracefully, and each record number that the gateway's disk ever committed is looked up in the controller's database. Prints one
JSON document; exit code 1 when one row is lost, twice there, or the ledger does not balance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cloud_sync.controller.broker import free_port
from edge_runtime.demo.stage import Stage
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.store import read_ledger

_DRAIN_S = 90.0
_MAX_STOPS = 5  # a message whose acknowledgement was killed is sent again after the next start
_RATES = ("rate_hz: 2,", "rate_hz: 2}", "rate_hz: 5}")


async def storm(directory: Path, kills: int, seed: int, broker: str = "mosquitto") -> dict[str, Any]:
    """Runs one storm in `directory`; returns the figures."""
    rng = random.Random(seed)
    stage = Stage(directory, free_port(), broker)
    stage.prepare()
    _load(directory / "deployment.yaml")
    begun = time.monotonic()
    starts = {"broker": stage.start_broker, "controller": stage.start_sink, "gateway": stage.start_gateway}
    killed = dict.fromkeys(starts, 0)
    try:
        for start in starts.values():
            await start()
        for number in range(kills):
            await asyncio.sleep(rng.uniform(0.05, 0.8))
            victim = rng.choice(list(starts))
            await stage.kill(victim)
            killed[victim] += 1
            await asyncio.sleep(rng.uniform(0.0, 0.2))
            await starts[victim]()
            if number % 10 == 9:
                _say(f"{number + 1}/{kills} kills, {time.monotonic() - begun:.0f} s")
        stops = [await _drain_and_stop(stage)]
        while read_ledger(stage.state_dir).pending and len(stops) < _MAX_STOPS:
            await stage.start_gateway()
            stops.append(await _drain_and_stop(stage))
    finally:
        await stage.close()
    ledger, rows = read_ledger(stage.state_dir), stage.compare()
    ok = ledger.balanced and not ledger.pending and not ledger.dropped and not rows.missing and not rows.duplicates
    return {
        "ok": ok and rows.rows == ledger.delivered,
        "seconds": round(time.monotonic() - begun, 1),
        "kills": killed,
        "stops_s": [round(stop_s, 2) for stop_s in stops],
        "ledger": ledger.as_dict(),
        "rows": rows.rows,
        "lost": rows.missing,
        "duplicates": rows.duplicates,
        "broker": broker,
    }


def _load(deployment: Path) -> None:
    """More of everything: scalars at 100 Hz, all blocks to the controller."""
    text = deployment.read_text().replace("mode: scalars", "mode: all")
    for rate in _RATES:
        text = text.replace(rate, f"rate_hz: 100{rate[-1]}")
    deployment.write_text(text)


async def _drain_and_stop(stage: Stage) -> float:
    """Waits until what is pending is only what is being made now, then stops gracefully; returns how long the stop took."""
    deadline = time.monotonic() + _DRAIN_S
    pending = -1
    while time.monotonic() < deadline:
        status = await stage.status()
        pending = status.get("ledger", {}).get("pending", -1)
        if status.get("link", {}).get("up") and 0 <= pending < 200:
            return await stage.stop("gateway")
        await asyncio.sleep(0.1)
    raise EdgeRuntimeError(f"{pending} records still pending {_DRAIN_S:g} s after the last kill")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", choices=("mosquitto", "amqtt"), default="mosquitto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        result = asyncio.run(storm(Path(folder), args.kills, args.seed, args.broker))
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
