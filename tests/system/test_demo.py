"""The demo tells its whole story and its ledger balances, on a real mosquitto and on the embedded broker."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from adapters.firmware.build import find_compiler
from adapters.firmware.emulator import find_emulator
from benchmarks.storm import storm
from cloud_sync.controller.broker import find_mosquitto
from edge_runtime.errors import MissingDependency

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
NODE = ["node_heard", "link_cut", "node_acted", "killed", "node_safe", "restarted"]


def can_emulate() -> bool:
    """Whether this machine has what the demo's sensor node needs."""
    try:
        return bool(find_emulator() and find_compiler())
    except MissingDependency:
        return False


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
    told = document["events"]
    absent = any(event["event"] == "node_absent" for event in told)
    assert absent is not can_emulate()
    for story in (STORY, [] if absent else NODE):
        first = [next(e["t_s"] for e in told if e["event"] == event) for event in story]
        assert sorted(first) == first
    ledger = document["ledger"]
    assert ledger["offered"] == ledger["delivered"] == document["sink"]["rows"]
    assert (ledger["pending"], ledger["dropped"], document["sink"]["missing"], document["sink"]["duplicates"]) == (0, {}, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_demo_that_is_stopped_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_runtime", "demo", "--no-console", "--broker", "amqtt"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stderr is not None
        told = demo.stderr.readline()
        assert "are running" in told
        children = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert len(children) >= 3
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_kill_storm_loses_and_doubles_nothing(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    result = await storm(tmp_path, kills=12, seed=random.randrange(10**6))
    assert (result["ok"], result["lost"], result["duplicates"]) == (True, 0, 0), result
