#!/usr/bin/python3.11
"""The only program of the emulated Raspberry Pi 3: our adapter over its kernel, told line by line to whoever watches the log."""

# ruff: noqa: PTH103, PTH123, PTH208 - plain calls keep the emulated start short

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable

sys.path.insert(0, "/edge")
sys.dont_write_bytecode = True

SETS = 500
POWER_OFF = 0x4321FEDC
RNDADDENTROPY = 0x40085203
FINIT_MODULE = 273


def tell(**facts: object) -> None:
    """One line of the kernel's log, which takes about 900 bytes."""
    with open("/dev/kmsg", "w") as log:
        log.write(f"EDGE {json.dumps(facts)}\n")


def mount(kind: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if ctypes.CDLL(None, use_errno=True).mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        tell(mount=target, error=os.strerror(ctypes.get_errno()))


def load_modules() -> None:
    """Those that were laid beside us, in the order of their names."""
    for name in sorted(os.listdir("/modules")):
        with open(f"/modules/{name}", "rb") as file:
            if ctypes.CDLL(None, use_errno=True).syscall(FINIT_MODULE, file.fileno(), b"", 0):
                tell(module=name, error=os.strerror(ctypes.get_errno()))


def stir() -> None:
    """The emulated board has no source of randomness that the kernel trusts, and nothing here is secret."""
    import fcntl
    import struct

    with open("/dev/urandom", "wb") as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii64s", 512, 64, bytes(range(64))))


def levels() -> dict[str, str]:
    """What the kernel itself says of the lines that we hold: `out hi`."""
    told: dict[str, str] = {}
    with open("/sys/kernel/debug/gpio") as file:
        for line in file:
            _, bar, state = line.rpartition("|")
            consumer, _, rest = state.partition(")")
            if bar and consumer.strip().startswith("edge-"):
                told[consumer.strip().removeprefix("edge-")] = " ".join(rest.split()[:2])
    return told


def findings() -> None:
    from adapters.linux.examination import examine as examine_linux
    from adapters.raspberry_pi.examination import examine as examine_pi
    from edge_runtime.cli.machine import look_at

    found: Iterable[object] = [*look_at(""), *examine_linux(""), *examine_pi("")]
    for finding in found:
        tell(finding=finding.name, state=finding.state, detail=finding.detail[:300])  # type: ignore[attr-defined]


async def adapter() -> None:
    from adapters.raspberry_pi import open_adapter
    from edge_runtime.clock import SystemClock
    from edge_runtime.types import ChannelKind

    lines = {
        "relay": {"line": "pin 11", "direction": "output"},
        "low": {"line": "GPIO18", "direction": "output", "active_low": True},
        "key": {"line": "GPIO22", "edges": "none"},
        "door": {"line": "pin 16"},
    }
    pi = open_adapter("pi", {"lines": lines}, SystemClock())
    await pi.open()
    infos = pi.channels()
    tell(channels=len(infos), kinds={kind.value: sum(info.kind is kind for info in infos) for kind in ChannelKind})
    for state in ("on", "off", "on"):
        for channel in ("gpio/relay", "gpio/low"):
            await pi.actuate(channel, state)
        tell(asked=state, told={name: await pi.actuator_state(f"gpio/{name}") for name in ("relay", "low")}, kernel=levels())
    begin = time.perf_counter()
    for number in range(SETS):
        await pi.actuate("gpio/relay", ("off", "on")[number % 2])
    tell(sets=SETS, us_per_set_emulated=round((time.perf_counter() - begin) / SETS * 1e6))
    samples = await pi.read([info.channel for info in infos if info.kind is ChannelKind.SAMPLED])
    values = {sample.channel: sample.value for sample in samples}
    tell(read=len(samples), good=sum(value is not None for value in values.values()))
    tell(values={name: values.get(name) for name in ("gpio/key", "uptime", "thermal/cpu-thermal", "memory/available")})
    first: asyncio.Queue[object] = asyncio.Queue()
    stream = asyncio.create_task(pi.stream(["gpio/door"], first.put_nowait))
    async with asyncio.timeout(20):
        sample = await first.get()
    tell(streamed=sample.channel, value=sample.value)  # type: ignore[attr-defined]
    stream.cancel()
    await asyncio.wait([stream])
    await pi.close()
    tell(closed=levels())


def main() -> None:
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("debugfs", "/sys/kernel/debug"), ("tmpfs", "/tmp")):
        mount(kind, target)
    stir()
    load_modules()
    tell(python=sys.version.split()[0], machine=os.uname().machine, kernel=os.uname().release)
    try:
        findings()
        asyncio.run(adapter())
        tell(done=True)
    except BaseException as err:  # noqa: BLE001 - the log is the only witness
        for line in "".join(traceback.format_exception(err)).splitlines():
            tell(error=line[:400])
    os.sync()
    ctypes.CDLL(None).reboot(POWER_OFF)


main()
