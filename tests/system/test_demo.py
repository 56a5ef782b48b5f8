"""The demo tells its whole story and its ledger balances, on a real mosquitto and on the embedded broker."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.storm import storm
from cloud_sync.controller.broker import find_mosquitto

STORY = [
    "started",
    "link_up",
    "healthy",
    "push_confirmed",
    "push_reverted",
    "fault_injected",
    "detected",
    "actuated",
    "link_cut",
    "acted_offline",
    "killed",
    "restarted",
]
STORY += ["link_restored", "drained", "stopped", "balanced"]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_the_demo_loses_nothing(broker: str) -> None:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    command = [sys.executable, "-m", "edge_runtime", "demo", "--duration", "20", "--json", "--no-console", "--broker", broker]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], document["problems"]) == (0, True, [])
    first = {event: next(e["t_s"] for e in document["events"] if e["event"] == event) for event in STORY}
    assert sorted(first.values()) == list(first.values())
    ledger = document["ledger"]
    assert ledger["offered"] == ledger["delivered"] == document["sink"]["rows"]
    assert (ledger["pending"], ledger["dropped"], document["sink"]["missing"], document["sink"]["duplicates"]) == (0, {}, 0, 0)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_kill_storm_loses_and_doubles_nothing(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    result = await storm(tmp_path, kills=12, seed=random.randrange(10**6))
    assert (result["ok"], result["lost"], result["duplicates"]) == (True, 0, 0), result
