"""The gateway as a service of a real systemd, in an emulated x86 machine over Debian's kernel: nightly, `make test-guests`.

The unit is installed as it is; drop-ins shorten its times and limit its memory. `checks.py` of the image runs in the guest
beside it and tells what it saw. There is no network, and the processor has no instructions for INT8.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
QEMU = "qemu-system-x86_64"
BOOT_S, BUILD_S = 600, 900
APPEND = (
    "rdinit=/usr/lib/systemd/systemd systemd.unit=multi-user.target systemd.mask=getty.target "
    "systemd.journald.forward_to_console=1 console=ttyS0 net.ifnames=0 panic=-1"
)
MACHINE = ("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot")
UNIT = HERE.parents[1] / "packaging/systemd/edge-runtime.service"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(BOOT_S + BUILD_S),
    pytest.mark.skipif("EDGE_GUESTS" not in os.environ, reason="boots a machine: `make test-guests` does it"),
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed"),
]

Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What the checks said, line by line. EDGE_GUESTS is the folder in which the guest is built and kept."""
    folder = Path(os.environ["EDGE_GUESTS"]).resolve() / "systemd"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "build.py"), "systemd", str(folder)], check=True, timeout=BUILD_S)
    console, told = folder / "console.txt", folder / "told.txt"
    for log in (console, told):
        log.unlink(missing_ok=True)
    boot = ["-kernel", "vmlinuz", "-initrd", "initramfs", "-append", APPEND, "-serial", f"file:{console}", "-serial", f"file:{told}"]
    guest = subprocess.Popen([QEMU, *MACHINE, *boot], cwd=folder)
    try:
        deadline = time.monotonic() + BOOT_S
        while guest.poll() is None:
            assert time.monotonic() < deadline, f"not done within {BOOT_S} s:\n{_read(told)[-3000:]}\n{_read(console)[-3000:]}"
            time.sleep(0.2)
    finally:
        guest.kill()
        guest.wait()
    return [json.loads(line) for line in _read(told).splitlines()]


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


@pytest.fixture(scope="module")
def told(lines: list[dict[str, Any]]) -> Told:
    """The checks that speak once, by name."""
    return {line["check"]: line for line in lines}


def held(ledger: dict[str, Any]) -> int:
    """Records on disk, of a ledger that balances and lost nothing."""
    assert ledger["offered"] == ledger["delivered"] + ledger["pending"] + sum(ledger["dropped"].values())
    assert sum(ledger["dropped"].values()) == 0
    return int(ledger["pending"])


def test_it_ran_to_its_end_without_an_error(lines: list[dict[str, Any]], told: Told) -> None:
    assert [line for line in lines if line["check"] == "error"] == []
    assert lines[-1] == {"check": "done"}
    assert told["failed"]["units"] == ""


def test_it_is_ready_and_the_watchdog_is_fed(told: Told) -> None:
    shown = told["starts"]["shown"]
    assert (shown["Type"], shown["NotifyAccess"], shown["ActiveState"], shown["SubState"]) == ("notify", "main", "active", "running")
    assert shown["WatchdogUSec"] == "8s"
    first, later = told["starts"]["pings"]
    assert 0 < first < later
    assert shown["StatusText"].startswith("link down; pending")
    assert shown["FragmentPath"] == "/etc/systemd/system/edge-runtime.service"


def test_it_is_confined_and_infers(told: Told) -> None:
    confined = told["confined"]
    assert confined["user"] != "0"
    assert (int(confined["capabilities"], 16), confined["no_new_privileges"], confined["seccomp"]) == (0, "1", "2")
    assert (told["infers"]["served"], told["infers"]["refused"]) == (["pump"], {})


def test_sensors_of_the_kernel_are_found_and_read(told: Told) -> None:
    seen = told["hardware"]
    assert seen["before"] == {"board": None, "tank": None}
    assert seen["kernel"]["millidegrees"] == 25500
    assert seen["board"] == pytest.approx(25.5)
    assert seen["kernel"]["raw"] == 0x123
    assert seen["tank"] == pytest.approx(0x123 * seen["kernel"]["scale"] / 1000, rel=1e-6)
    moves = told["moves"]
    assert (moves["hot"], moves["cold"]) == (48.0, -10.5)
    assert moves["rule"] is True
    assert any(line.split() == ["ok", "sensors", "ads1015,", "lm75"] for line in told["doctor"]["lines"])


def test_a_chip_behind_an_smbus_host_is_read_from_user_space(told: Told) -> None:
    seen = told["user_space"]
    assert seen["complaints"] == {}
    expected = {"sensor/air/temperature": 25.08247, "sensor/air/pressure": 1006.53258, "sensor/air/humidity": 42.66628}
    assert seen["values"] == pytest.approx(expected, abs=1e-4)


def test_devices_are_closed_until_a_drop_in_opens_them(lines: list[dict[str, Any]]) -> None:
    closed, opened = (line for line in lines if line["check"] == "devices")
    assert (closed["case"], closed["result"]) == ("closed", "exit-code")
    assert "FileNotFoundError" in closed["journal"]
    assert (opened["case"], opened["result"]) == ("opened", "success")
    assert "True\nopened\n" in opened["journal"]


def test_a_reload_reads_the_deployment_in_the_same_process(told: Told) -> None:
    seen = told["reloads"]
    assert (seen["told"], seen["revision"], seen["same_process"], seen["state"]) == ("", 2, True, "active")


def test_a_gateway_that_hangs_is_killed_by_the_watchdog_and_loses_nothing(told: Told) -> None:
    seen = told["watchdog"]
    assert any("Watchdog timeout" in line for line in seen["said"])
    assert any("Failed with result 'watchdog'" in line for line in seen["said"])
    assert int(seen["after"]["NRestarts"]) == int(seen["before"]["NRestarts"]) + 1
    assert seen["after"]["ActiveState"] == "active"
    assert seen["stacks"], "the abort leaves the stacks in the journal"
    assert held(seen["ledger"]["after"]) >= held(seen["ledger"]["before"]) > 0


def test_a_neighbour_that_exceeds_the_limit_dies_and_the_gateway_lives(told: Told) -> None:
    seen = told["memory"]
    assert (seen["limit"], seen["after"]["MemoryMax"]) == (512 << 20, str(512 << 20))
    assert 0 < seen["current"] < seen["limit"]
    assert (seen["hog"]["said"], seen["hog"]["code"]) == ("*", -9)
    assert int(seen["events"]["oom_kill"]) >= 1
    assert seen["after"]["MainPID"] == seen["before"]["MainPID"]


def test_a_gateway_beyond_its_own_limit_is_killed_and_comes_back(told: Told) -> None:
    seen = told["tiny"]
    assert len(seen["kernel"]) >= 2
    assert seen["after"]["ActiveState"] == "active"
    assert int(seen["after"]["NRestarts"]) > int(seen["before"]["NRestarts"])
    held(seen["ledger"])


def test_it_stops_cleanly(told: Told) -> None:
    seen = told["stops"]
    assert (seen["shown"]["ActiveState"], seen["shown"]["Result"], seen["shown"]["ExecMainStatus"]) == ("inactive", "success", "0")
    assert held(seen["ledger"]["kept"]) >= held(seen["ledger"]["running"])
