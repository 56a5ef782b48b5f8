"""What `doctor` tells of the machine itself, from /proc and /sys below a root: board, cores, memory, limits, time and disk."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_runtime.types import Finding

_INT8_FLAGS = {
    "avx512_vnni": "INT8 dot products (AVX-512 VNNI)",
    "avx_vnni": "INT8 dot products (AVX VNNI)",
    "asimddp": "INT8 dot products (Arm dotprod)",
    "i8mm": "INT8 matrix products (Arm i8mm)",
}
_ENOUGH_MIB = 128
_MOST_BYTES = 1024 * 1024
_WORN = 0x09  # of ten steps of 10 %
_PRE_END_OF_LIFE = {"02": "80 % of its reserve is used", "03": "its reserve is used up"}


def look_at(root: str) -> Iterator[Finding]:
    """Every finding below `root`; `""` is this machine."""
    for look in _LOOKS:
        yield from look(root)


def _board(root: str) -> Iterator[Finding]:
    model = _read(f"{root}/proc/device-tree/model").strip("\0\n ") or _read(f"{root}/sys/devices/virtual/dmi/id/product_name").strip()
    cores = len(re.findall(r"^processor\s*:", _read(f"{root}/proc/cpuinfo"), re.MULTILINE)) or (os.cpu_count() if root == "" else 0)
    kernel = platform.release() if root == "" else _read(f"{root}/proc/sys/kernel/osrelease").strip()
    processor = platform.machine() if root == "" else ""
    parts = [model or "unknown board", processor, f"{cores} cores" if cores else "", f"Linux {kernel}" if kernel else ""]
    yield Finding("machine", "ok", ", ".join(part for part in parts if part))
    flags = set(_read(f"{root}/proc/cpuinfo").split())
    found = [text for flag, text in _INT8_FLAGS.items() if flag in flags]
    yield Finding(
        "INT8", "ok" if found else "warn", ", ".join(found) or "no INT8 instructions: INT8 models are smaller here, but hardly faster"
    )


def _memory(root: str) -> Iterator[Finding]:
    match = re.search(r"^MemAvailable:\s*(\d{1,15})", _read(f"{root}/proc/meminfo"), re.MULTILINE)
    if match is None:
        yield Finding("memory", "warn", "unknown: /proc/meminfo does not tell", "use Linux 3.14 or newer with /proc mounted")
        return
    available = int(match[1]) // 1024
    low = available < _ENOUGH_MIB
    remedy = "free memory: a gateway with a model needs about 100 MB" if low else ""
    yield Finding("memory", "warn" if low else "ok", f"{available} MiB available", remedy)


def _limits(root: str) -> Iterator[Finding]:
    controllers = f"{root}/sys/fs/cgroup/cgroup.controllers"
    pi = _read(f"{root}/proc/device-tree/model").startswith("Raspberry Pi")
    if not Path(controllers).exists():
        remedy = "boot with `systemd.unified_cgroup_hierarchy=1`"
        yield Finding("cgroup v2", "warn", "not mounted: resource limits of the service do nothing", remedy)
    elif "memory" in _read(controllers).split():
        yield Finding("cgroup v2", "ok", "memory limits work")
    else:
        file = "/boot/firmware/cmdline.txt" if pi else "the kernel's command line"
        remedy = f"add `cgroup_enable=memory` to {file} and reboot"
        yield Finding("cgroup v2", "warn", "no memory controller: MemoryMax= of the service does nothing", remedy)
    if Path(f"{root}/proc/pressure/memory").exists():
        yield Finding("pressure", "ok", "the kernel tells how long work waits for memory, cores and disk")
    else:
        yield Finding("pressure", "warn", "no pressure stall information: overload is seen late", "boot with `psi=1` (Linux 4.20 or newer)")


def _time(root: str) -> Iterator[Finding]:
    clocks = sorted(path.name for path in Path(f"{root}/sys/class/rtc").glob("rtc[0-9]*"))
    if clocks:
        name = _read(f"{root}/sys/class/rtc/{clocks[0]}/name").strip()
        yield Finding("real-time clock", "ok", f"{clocks[0]} {name}".strip())
    else:
        remedy = (
            "fit one (such as a DS3231 and `dtoverlay=i2c-rtc,ds3231`), or accept that readings after a power cut wait for NTP to be dated"
        )
        yield Finding("real-time clock", "warn", "none: after a power cut the time is unknown until the network is back", remedy)


def _disk(root: str) -> Iterator[Finding]:
    """Wear of what / lies on, as far as the kernel tells."""
    mounts = [line.split() for line in _read(f"{root}/proc/mounts").splitlines()]
    sources = [fields[0] for fields in mounts if len(fields) > 2 and fields[1] == "/" and fields[0].startswith("/dev/")]
    name = Path(sources[-1]).name if sources else ""
    blocks = sorted(Path(f"{root}/sys/block").glob("*")) if name else []
    block = next((path for path in blocks if re.fullmatch(f"{re.escape(path.name)}(p?[0-9]+)?", name)), None)
    if block is None:
        return
    written = _read(str(block / "stat")).split()
    amount = f", {int(written[6]) // 2048} MiB written since boot" if len(written) > 6 and written[6].isdecimal() else ""
    if not block.name.startswith("mmcblk"):
        yield Finding("disk", "ok", f"{block.name}{amount}; its wear is told by smartctl")
        return
    kind = _read(str(block / "device/type")).strip()
    worn = [int(text, 16) for text in _read(str(block / "device/life_time")).split() if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", text)]
    if not worn or max(worn) == 0:
        yield Finding(
            "disk",
            "warn",
            f"{block.name} is {'an SD card' if kind == 'SD' else 'flash'}{amount}: it does not tell its wear and may fail without notice",
            "use an industrial card or an SSD for the state folder",
        )
        return
    end = _PRE_END_OF_LIFE.get(_read(str(block / "device/pre_eol_info")).strip().removeprefix("0x"), "")
    used = f"{block.name}, {min(100, 10 * max(worn))} % of its life used{amount}{'; ' + end if end else ''}"
    bad = bool(end) or max(worn) >= _WORN
    yield Finding("disk", "warn" if bad else "ok", used, "replace it soon, or move the state folder" if bad else "")


_LOOKS: tuple[Callable[[str], Iterator[Finding]], ...] = (_board, _memory, _limits, _time, _disk)


def _read(path: str) -> str:
    """A file's text, at most 1 MiB of it; nothing when it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as much as is allowed, no more
            return file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
