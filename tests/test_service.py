"""The service's word to systemd, on real datagram sockets, and the unit file under systemd's own tools."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.service import Notifier

SYSTEMD = Path(__file__).resolve().parents[1] / "packaging/systemd"
UNIT = SYSTEMD / "edge-runtime.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class Manager:
    """The manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.address = address

    def heard(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@edge-runtime-test-{os.getpid()}")
    yield manager
    manager.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    yield notifier
    notifier.close()


def test_the_life_of_a_service(manager: Manager, notifier: Notifier) -> None:
    assert notifier.status("opening adapters")
    assert manager.heard() == ["STATUS=opening adapters"]
    assert notifier.ready("3 channels, 1 model")
    assert manager.heard() == ["READY=1", "STATUS=3 channels, 1 model"]
    assert notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    assert notifier.extend_timeout(1.5)
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=1500000"]
    assert notifier.stopping("draining")
    assert manager.heard() == ["STOPPING=1", "STATUS=draining"]


def test_a_reload_carries_the_monotonic_time(manager: Manager, notifier: Notifier) -> None:
    assert notifier.reloading()
    word, stamp = manager.heard()
    assert word == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", stamp)


def test_a_status_is_one_line(manager: Manager, notifier: Notifier) -> None:
    notifier.status("link down\nREADY=1")
    assert manager.heard() == ["STATUS=link down READY=1"]


def test_outside_systemd_nothing_is_said() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.ready()
    assert not notifier.alive()
    assert notifier.watchdog_interval_s is None


def test_a_manager_that_went_away_is_no_error(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    assert not notifier.alive()
    notifier.close()
    notifier.close()


def test_a_manager_that_does_not_read_never_blocks(manager: Manager, notifier: Notifier) -> None:
    said = [notifier.alive() for _ in range(2000)]
    assert said[0]
    assert not said[-1]


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_a_period(environment: dict[str, str], interval_s: float | None) -> None:
    assert Notifier.from_environment(environment).watchdog_interval_s == interval_s


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "hardware.conf.example"])
def test_the_unit_verifies(tmp_path: Path, drop_in: str | None) -> None:
    unit = _installed(tmp_path, drop_in)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=50)
    assert "edge-runtime" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize(("drop_in", "limit"), [(None, 2.0), ("hardware.conf.example", 3.0)])
def test_the_unit_is_hardened(tmp_path: Path, drop_in: str | None, limit: float) -> None:
    unit = _installed(tmp_path, drop_in)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    level = re.search(r"Overall exposure level for .*?: ([\d.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) < limit


def test_the_unit_starts_cold_without_a_network() -> None:
    text = UNIT.read_text()
    assert "ExecStart=/usr/bin/edge-runtime run --config /etc/edge-runtime/gateway.yaml" in text
    for waits in ("network-online", "time-sync", "Requires=", "BindsTo="):
        assert waits not in text


def _installed(folder: Path, drop_in: str | None) -> Path:
    """The unit as a manager would load it, its program replaced by one that exists here; a drop-in with all that it can open."""
    unit = folder / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/edge-runtime", sys.executable))
    if drop_in is not None:
        (folder / f"{UNIT.name}.d").mkdir()
        opened = re.sub(r"^#(?=[A-Z]\w+=)", "", (SYSTEMD / drop_in).read_text(), flags=re.MULTILINE)
        assert opened.count("DeviceAllow=") == 7
        (folder / f"{UNIT.name}.d" / "drop-in.conf").write_text(opened)
    return unit
