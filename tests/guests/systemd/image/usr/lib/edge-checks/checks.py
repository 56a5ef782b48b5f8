"""Runs in the guest as root, beside the gateway's service: tries what the test wants to know and tells it line by line, as JSON."""

# ruff: noqa: T201, BLE001 - what is printed goes to the serial line, and one that fails must not silence the others

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNIT = "edge-runtime.service"
CGROUP = Path("/sys/fs/cgroup/system.slice") / UNIT
DEADLINE_S = 90.0
PROPERTIES = (
    *("Type", "NotifyAccess", "ActiveState", "SubState", "Result", "NRestarts", "MainPID", "StatusText", "WatchdogUSec", "MemoryMax"),
    *("WatchdogTimestampMonotonic", "ControlGroup", "FragmentPath", "ExecMainStatus", "OOMPolicy"),
)
HOG = "import os; os.write(1, b'*'); held = bytearray(700 << 20); os.write(1, b'alive')"


def tell(check: str, **facts: Any) -> None:
    print(json.dumps({"check": check, **facts}), flush=True)


def run(*command: str, timeout_s: float = 120) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    return (done.stdout + done.stderr).strip()


def show() -> dict[str, str]:
    told = run("systemctl", "show", UNIT, *(f"--property={name}" for name in PROPERTIES))
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def until(what: str, condition: Callable[[], Any]) -> Any:
    """What the condition says once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.3)
    raise TimeoutError(f"not seen within {DEADLINE_S:g} s: {what}")


def ready_again(pid: str) -> dict[str, str]:
    def condition() -> dict[str, str] | None:
        seen = show()
        return seen if seen["ActiveState"] == "active" and seen["MainPID"] not in ("0", pid) else None

    return until(f"the service ready with another process than {pid}", condition)  # type: ignore[no-any-return]


def status() -> dict[str, Any]:
    return json.loads(run("edge-runtime", "status", "--json", "--state", "/var/lib/edge-runtime"))  # type: ignore[no-any-return]


def channel(name: str, good: Callable[[float], bool]) -> float:
    """The gateway's own reading, once it is what it should be."""

    def condition() -> tuple[float] | None:
        value = status()["channels"].get(name, {}).get("value")
        return (value,) if value is not None and good(value) else None

    return until(f"a good reading of {name}", condition)[0]  # type: ignore[no-any-return]


def starts() -> None:
    seen = until("the service ready", lambda: found if (found := show())["ActiveState"] == "active" else None)
    later = until(
        "another ping of the watchdog",
        lambda: found if (found := show())["WatchdogTimestampMonotonic"] != seen["WatchdogTimestampMonotonic"] else None,
    )
    pings = [int(each["WatchdogTimestampMonotonic"]) for each in (seen, later)]
    tell("starts", shown=later, pings=pings, drop_ins=run("systemctl", "show", UNIT, "--property=DropInPaths", "--value"))
    unit = Path("/proc", seen["MainPID"], "status").read_text()
    fields = dict(line.split(":\t", 1) for line in unit.splitlines())
    tell(
        "confined",
        user=fields["Uid"].split()[0],
        capabilities=fields["CapEff"],
        no_new_privileges=fields["NoNewPrivs"],
        seccomp=fields["Seccomp"],
    )
    told = status()
    tell("infers", served=sorted(told["models"]["served"]), refused=told["models"]["refused"], ledger=told["ledger"])


def hardware() -> None:
    """The kernel's drivers over registers that i2c-stub holds: 25.5 degC, and 0x123 of the converter's millivolts."""
    run("depmod")
    before = status()["channels"]
    for module in (("i2c-stub", "chip_addr=0x48,0x49,0x76"), ("i2c-dev",), ("lm75",), ("ti-ads1015",)):
        if told := run("modprobe", *module):
            tell("hardware", module=module, error=told)
    (bus,) = [path.parent for path in Path("/sys/bus/i2c/devices").glob("i2c-*/name") if "stub" in path.read_text()]
    number = bus.name.partition("-")[2]
    run("i2cset", "-f", "-y", number, "0x48", "0x00", "0x8019", "w")
    run("i2cset", "-f", "-y", number, "0x49", "0x00", "0x3012", "w")
    for chip in ("lm75 0x48", "ads1015 0x49"):
        (bus / "new_device").write_text(chip)
    temperature = channel("board", lambda value: 25 < value < 26)
    volts = channel("tank", lambda value: 0.28 < value < 0.3)
    (hwmon,) = [path.parent for path in Path("/sys/class/hwmon").glob("*/name") if path.read_text() == "lm75\n"]
    (iio,) = [path.parent for path in Path("/sys/bus/iio/devices").glob("iio:device*/name") if path.read_text() == "ads1015\n"]
    kernel = {
        "millidegrees": int((hwmon / "temp1_input").read_text()),
        "raw": int((iio / "in_voltage0_raw").read_text()),
        "scale": float((iio / "in_voltage0_scale").read_text()),
    }
    tell(
        "hardware",
        before={name: before.get(name, {}).get("value") for name in ("board", "tank")},
        board=temperature,
        tank=volts,
        kernel=kernel,
    )
    run("i2cset", "-f", "-y", number, "0x48", "0x00", "0x0030", "w")
    hot = channel("board", lambda value: value > 40)
    rule = until("the rule board_hot", lambda: "board_hot" in status()["rules"]["active"])
    run("i2cset", "-f", "-y", number, "0x48", "0x00", "0x80f5", "w")
    cold = channel("board", lambda value: value < 0)
    tell("moves", hot=hot, cold=cold, rule=rule)
    doctor = run("edge-runtime", "doctor")
    tell("doctor", lines=[line for line in doctor.splitlines() if any(word in line for word in ("sensors", "I2C", "watchdog", "IIO"))])
    tell("nodes", listed=run("ls", "-l", f"/dev/i2c-{number}"), number=number)


def user_space() -> None:
    """A BME280 that no driver of the kernel holds, behind a host that speaks SMBus only: read by our own code. The data sheet's example."""
    number = next(path.name for path in Path("/dev").glob("i2c-*")).partition("-")[2]
    blocks = {
        0x88: struct.pack("<HhhHhhhhhhhh", 27504, 26435, -1000, 36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000),
        0xA1: bytes([75]),
        0xD0: bytes([0x60]),
        0xE1: struct.pack("<hBbBbb", 355, 0, 0x13A >> 4, (0x13A & 15) | (0x32 & 15) << 4, 0x32 >> 4, 30),
        0xF7: (415148 << 4).to_bytes(3, "big") + (519888 << 4).to_bytes(3, "big") + (28_000).to_bytes(2, "big"),
    }
    for first, block in blocks.items():
        for at, byte in enumerate(block):
            run("i2cset", "-f", "-y", number, "0x76", hex(first + at), hex(byte))
    code = (
        "import json; from adapters.linux.chip_probe import Chips; from adapters.linux.chips import SensorSpec; "
        f"chips = Chips('', {{'air': SensorSpec(chip='bme280', bus={number})}}); "
        "print(json.dumps([chips.read([info.channel for info in chips.discover()]), chips.complaints]))"
    )
    values, complaints = json.loads(run("/opt/edge-runtime/bin/python", "-c", code))
    tell("user_space", values=values, complaints=complaints)


def devices() -> None:
    """What the unit closes stays closed, and what a drop-in opens is open: asked by a process of the same confinement."""
    node = "/dev/" + next(path.name for path in Path("/dev").glob("i2c-*"))
    probe = f"import os; print(os.access({node!r}, os.F_OK)); os.close(os.open({node!r}, os.O_RDWR)); print('opened')"
    Path("/run/systemd/system/probe.service.d").mkdir(parents=True)
    unit = Path(f"/etc/systemd/system/{UNIT}").read_text()
    kept = [
        line for line in unit.splitlines() if not line.startswith(("Type=", "NotifyAccess=", "Exec", "Restart", "Watchdog", "WantedBy"))
    ]
    kept = [line.replace("/var/lib/edge-runtime", "/var/lib/probe") if line.startswith("Working") else line for line in kept]
    kept = [line.replace("Directory=edge-runtime", "Directory=probe") for line in kept]
    Path("/run/systemd/system/probe.service").write_text(
        "\n".join(kept).replace("[Install]", f'Type=oneshot\nExecStart=/usr/bin/python3.11 -c "{probe}"\n')
    )
    drop_in = "[Service]\nPrivateDevices=no\nDevicePolicy=closed\nPrivateUsers=no\nDeviceAllow=char-i2c rw\nSupplementaryGroups=i2c\n"
    for name, content in (("closed", ""), ("opened", drop_in)):
        Path("/run/systemd/system/probe.service.d/hardware.conf").write_text(content)
        run("systemctl", "daemon-reload")
        run("systemctl", "start", "probe.service")
        journal = run("journalctl", "-u", "probe.service", "-o", "cat", "--no-pager", "-n", "20")
        tell("devices", case=name, result=run("systemctl", "show", "probe", "--property=Result", "--value"), journal=journal[-1500:])


def reloads() -> None:
    before = show()
    deployment = Path("/etc/edge-runtime/deployment.yaml")
    deployment.write_text(deployment.read_text().replace("revision: 1", "revision: 2"))
    told = run("systemctl", "reload", UNIT)
    revision = until("revision 2", lambda: found if (found := status()["deployment"]["running_revision"]) == 2 else None)
    after = show()
    journal = run("journalctl", "-u", UNIT, "--no-pager", "-o", "cat", "-n", "8")
    tell(
        "reloads",
        told=told,
        revision=revision,
        same_process=before["MainPID"] == after["MainPID"],
        state=after["ActiveState"],
        journal=journal,
    )


def watchdog() -> None:
    before, ledger = show(), status()["ledger"]
    os.kill(int(before["MainPID"]), 19)
    after = ready_again(before["MainPID"])
    journal = run("journalctl", "-u", UNIT, "--no-pager", "-o", "cat", "-n", "200")
    said = [line for line in journal.splitlines() if "atchdog" in line or "Fatal Python" in line or "restart job" in line]
    stacks = "most recent call first" in journal
    tell("watchdog", before=before, after=after, said=said[-8:], stacks=stacks, ledger={"before": ledger, "after": status()["ledger"]})


def memory() -> None:
    before = show()
    limit = int((CGROUP / "memory.max").read_text())
    current = int((CGROUP / "memory.current").read_text())
    with subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE, preexec_fn=join_cgroup) as hog:
        said = hog.communicate(timeout=DEADLINE_S)[0].decode()
    events = dict(line.split() for line in (CGROUP / "memory.events").read_text().splitlines())
    seen = show()
    tell("memory", limit=limit, current=current, hog={"said": said, "code": hog.returncode}, events=events, before=before, after=seen)
    run("systemctl", "set-property", "--runtime", UNIT, "MemoryMax=24M")
    until("the gateway killed", lambda: show()["MainPID"] != seen["MainPID"])
    run("systemctl", "set-property", "--runtime", UNIT, "MemoryMax=512M")
    after = ready_again(seen["MainPID"])
    kernel = [line for line in run("dmesg").splitlines() if "Memory cgroup out of memory" in line]
    tell("tiny", before=seen, after=after, kernel=[line[-160:] for line in kernel], ledger=status()["ledger"])


def join_cgroup() -> None:
    """As a child of the gateway would be: in its group, and as dear to the kernel."""
    Path("/proc/self/oom_score_adj").write_text("-500")
    (CGROUP / "cgroup.procs").write_text(str(os.getpid()))


def stops() -> None:
    ledger = status()["ledger"]
    begin = time.monotonic()
    run("systemctl", "stop", UNIT)
    seen = show()
    kept = run("edge-runtime", "ledger", "--json", "--state", "/var/lib/edge-runtime")
    tell("stops", took_s=round(time.monotonic() - begin, 1), shown=seen, ledger={"running": ledger, "kept": json.loads(kept)})


def main() -> None:
    tell("machine", python=sys.version.split()[0], kernel=os.uname().release, systemd=run("systemctl", "--version").splitlines()[0])
    for check in (starts, hardware, user_space, devices, reloads, watchdog, memory, stops):
        begin = time.monotonic()
        try:
            check()
        except BaseException:
            tell(
                "error",
                where=check.__name__,
                trace=traceback.format_exc()[-1500:],
                journal=run("journalctl", "-u", UNIT, "-o", "cat", "-n", "40")[-3000:],
            )
        tell("took", where=check.__name__, seconds=round(time.monotonic() - begin, 1))
    tell("failed", units=run("systemctl", "--failed", "--no-legend", "--plain"), boot=run("systemd-analyze"))
    tell("done")
    run("systemctl", "poweroff", "--force")


main()
