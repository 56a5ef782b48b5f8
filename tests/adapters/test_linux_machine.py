"""The driver `linux` over a machine made of files, and over the machine that runs the tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.linux import LinuxAdapter, open_adapter
from adapters.linux.probe import Count, Rates, Share, folders
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.testing.machine_tree import MachineTree
from edge_runtime.types import ChannelKind, Quality, Sample
from edge_runtime.units import parse_unit

EXPECTED = {
    "cpu/frequency": (800, "MHz"),
    "load/1min": (0.5, ""),
    "load/5min": (0.25, ""),
    "load/15min": (0.1, ""),
    "uptime": (1234.56, "s"),
    "memory/used": (75, "%"),
    "memory/available": (250, "MiB"),
    "swap/used": (25, "%"),
    "pressure/cpu/some": (1.5, "%"),
    "pressure/cpu/full": (0, "%"),
    "pressure/memory/some": (2.5, "%"),
    "pressure/memory/full": (0.25, "%"),
    "net/eth0/carrier": (1, "bool"),
    "hwmon/coretemp/Package_id_0": (41.5, "degC"),
    "hwmon/coretemp/fan1": (1200, "rpm"),
    "hwmon/coretemp/in0": (12.05, "V"),
    "hwmon/coretemp/curr1": (2.5, "A"),
    "hwmon/coretemp/power1": (30.5, "W"),
    "hwmon/coretemp/humidity1": (45.5, "%RH"),
    "hwmon/lm75-0-0048/temp1": (-5.25, "degC"),
    "hwmon/lm75-0-0049/temp1": (25.5, "degC"),
    "thermal/cpu-thermal": (52.125, "degC"),
    "power/BAT0/capacity": (87, "%"),
    "power/BAT0/voltage": (12.345, "V"),
    "power/AC/online": (1, "bool"),
}
RATES = {
    "cpu": "%",
    "cpu/0": "%",
    "cpu/1": "%",
    "cpu/switches": "1/s",
    "net/eth0/rx": "B/s",
    "net/eth0/tx": "B/s",
    "net/eth0/errors": "1/s",
    "net/eth0/drops": "1/s",
    "disk/sda/read": "B/s",
    "disk/sda/write": "B/s",
    "disk/sda/busy": "%",
}
FILE_SYSTEMS = {"fs:/": "%", "fs:/data disk": "%"}


@pytest.fixture
def tree(tmp_path: Path) -> MachineTree:
    return MachineTree(tmp_path / "machine")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def machine(tree: MachineTree, clock: VirtualClock) -> AsyncIterator[LinuxAdapter]:
    adapter = open_adapter("machine", {"root": str(tree.root), "rescan_s": 0.01}, clock)
    await adapter.open()
    yield adapter
    await adapter.close()


async def one(adapter: LinuxAdapter, channel: str) -> Sample:
    (sample,) = await adapter.read([channel])
    return sample


async def test_it_offers_exactly_what_the_machine_has(machine: LinuxAdapter) -> None:
    units = {info.channel: info.unit for info in machine.channels() if info.kind is ChannelKind.SAMPLED}
    assert units == {channel: unit for channel, (_, unit) in EXPECTED.items()} | RATES | FILE_SYSTEMS
    lights = [info for info in machine.channels() if info.kind is ChannelKind.ACTUATOR]
    assert [(info.channel, info.states) for info in lights] == [("led/status", ("on", "off"))]


async def test_values_are_scaled_to_their_units(machine: LinuxAdapter) -> None:
    samples = await machine.read(list(EXPECTED))
    assert [(s.channel, pytest.approx(s.value), s.quality) for s in samples] == [
        (channel, value, Quality.GOOD) for channel, (value, _) in EXPECTED.items()
    ]


async def test_a_rate_is_unknown_at_first_and_then_the_rise_per_second(
    machine: LinuxAdapter, tree: MachineTree, clock: VirtualClock
) -> None:
    first = await machine.read(list(RATES))
    assert {(sample.value, sample.quality) for sample in first} == {(None, Quality.UNCERTAIN)}

    clock.advance(2.0)
    tree.write("proc/stat", "cpu  160 0 140 800 100 0 0 0\ncpu0 110 0 90 350 50 0 0 0\ncpu1 50 0 50 450 50 0 0 0\nctxt 1500\n")
    tree.write("proc/net/dev", "h\nh\n  eth0: 5000 10 3 2 0 0 0 0 2500 20 5 10 0 0 0 0\n")
    tree.write("sys/block/sda/stat", "10 0 204 5 20 0 400 6 0 1200 800\n")
    assert {sample.channel: sample.value for sample in await machine.read(list(RATES))} == {
        "cpu": 50,
        "cpu/0": 100,
        "cpu/1": 0,
        "cpu/switches": 250,
        "net/eth0/rx": 2000,
        "net/eth0/tx": 250,
        "net/eth0/errors": 2,
        "net/eth0/drops": 3,
        "disk/sda/read": 1024,
        "disk/sda/write": 0,
        "disk/sda/busy": pytest.approx(25),
    }


async def test_a_total_that_began_afresh_gives_no_rate(machine: LinuxAdapter, tree: MachineTree, clock: VirtualClock) -> None:
    await one(machine, "cpu/switches")
    for total, value in ((10, None), (30, 20)):
        clock.advance(1.0)
        tree.write("proc/stat", f"cpu 1 1 1 1\nctxt {total}\n")
        sample = await one(machine, "cpu/switches")
        assert (sample.value, sample.quality) == (value, Quality.GOOD if value else Quality.UNCERTAIN)


@pytest.mark.parametrize(
    ("channel", "path"),
    [
        ("hwmon/coretemp/fan1", "sys/class/hwmon/hwmon0/fan1_input"),
        ("thermal/cpu-thermal", "sys/class/thermal/thermal_zone0/temp"),
        ("cpu/0", "proc/stat"),
        ("uptime", "proc/uptime"),
        ("memory/used", "proc/meminfo"),
        ("pressure/cpu/some", "proc/pressure/cpu"),
        ("disk/sda/busy", "sys/block/sda/stat"),
        ("net/eth0/rx", "proc/net/dev"),
        ("net/eth0/carrier", "sys/class/net/eth0/carrier"),
        ("power/BAT0/capacity", "sys/class/power_supply/BAT0/capacity"),
        ("load/1min", "proc/loadavg"),
    ],
)
@pytest.mark.parametrize("broken", ["gone", "empty", "not a number", "binary"])
async def test_what_cannot_be_read_is_bad_and_the_rest_goes_on(
    machine: LinuxAdapter, tree: MachineTree, channel: str, path: str, broken: str
) -> None:
    if broken == "gone":
        tree.remove(path)
    else:
        (tree.root / path).write_bytes({"empty": b"", "not a number": b"error: 12 x\n", "binary": b"\xff\x00\n"}[broken])
    if channel == "net/eth0/carrier" and broken != "gone":
        return  # whatever is not 1 is no carrier
    other = "load/15min" if channel == "uptime" else "uptime"
    sample, unharmed = await machine.read([channel, other])
    assert (sample.channel, sample.value, sample.quality) == (channel, None, Quality.BAD)
    assert unharmed.value == EXPECTED[other][0]
    assert machine.health().counters["unreadable"] == 1


async def test_a_sensor_that_reports_a_fault_is_bad(machine: LinuxAdapter, tree: MachineTree) -> None:
    tree.write("sys/class/hwmon/hwmon2/temp1_fault", "1\n")
    assert (await one(machine, "hwmon/lm75-0-0049/temp1")).quality is Quality.BAD
    tree.write("sys/class/hwmon/hwmon2/temp1_fault", "0\n")
    assert (await one(machine, "hwmon/lm75-0-0049/temp1")).value == 25.5


async def test_devices_come_and_go(machine: LinuxAdapter, tree: MachineTree) -> None:
    changes = machine.changes()
    assert "thermal/probe" not in {info.channel for info in machine.channels()}
    tree.write("sys/class/thermal/thermal_zone1/type", "probe\n")
    tree.write("sys/class/thermal/thermal_zone1/temp", "20000\n")
    async with asyncio.timeout(10):
        assert "thermal/probe" in {info.channel for info in await anext(changes)}
    assert (await one(machine, "thermal/probe")).value == 20

    tree.remove("sys/class/thermal/thermal_zone1/temp")
    async with asyncio.timeout(10):
        assert "thermal/probe" not in {info.channel for info in await anext(changes)}
    sample = await one(machine, "thermal/probe")  # it was known, so its absence is a fault and no mistake of the caller
    assert (sample.value, sample.quality) == (None, Quality.BAD)
    await changes.aclose()


async def test_include_and_exclude_choose_channels(tree: MachineTree, clock: VirtualClock) -> None:
    adapter = open_adapter("machine", {"root": str(tree.root), "include": ["hwmon/*", "uptime"], "exclude": ["*/temp1"]}, clock)
    await adapter.open()
    channels = {info.channel for info in adapter.channels()}
    assert "uptime" in channels
    assert "hwmon/coretemp/fan1" in channels
    assert not any(channel.endswith("temp1") or channel.startswith("cpu") for channel in channels)
    with pytest.raises(InputError, match="no such sampled channel `hwmon/lm75-0-0048/temp1`"):
        await adapter.read(["hwmon/lm75-0-0048/temp1"])
    await adapter.close()


async def test_a_light_is_switched(machine: LinuxAdapter, tree: MachineTree) -> None:
    for state, brightness in (("on", "255"), ("on", "255"), ("7", "7"), ("off", "0")):
        await machine.actuate("led/status", state)
        assert tree.read("sys/class/leds/status/brightness") == brightness
        assert await machine.actuator_state("led/status") == state
    for state in ("open", "256", "-1", ""):
        with pytest.raises(AdapterError, match="expected `on`, `off` or a brightness"):
            await machine.actuate("led/status", state)
    with pytest.raises(InputError, match="did you mean `led/status`"):
        await machine.actuate("led/statsu", "on")
    tree.remove("sys/class/leds/status/max_brightness")
    with pytest.raises(AdapterError, match="cannot be set"):
        await machine.actuate("led/status", "on")
    assert await machine.actuator_state("led/status") is None


async def test_a_slow_chip_does_not_hold_the_loop(tree: MachineTree, clock: VirtualClock) -> None:
    """A named pipe stands for a chip that answers when it likes: the read waits, everything else goes on."""
    adapter = open_adapter("machine", {"root": str(tree.root), "include": ["hwmon/lm75-0-0048/*"]}, clock)
    await adapter.open()
    slow = tree.root / "sys/class/hwmon/hwmon1/temp1_input"
    slow.unlink()
    os.mkfifo(slow)
    reading = asyncio.create_task(one(adapter, "hwmon/lm75-0-0048/temp1"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not reading.done()
    assert adapter.health().ok
    await asyncio.to_thread(slow.write_text, "31000\n")
    async with asyncio.timeout(10):
        assert (await reading).value == 31
    await adapter.close()


async def test_closing_during_a_slow_read_ends_it_without_a_value(tree: MachineTree, clock: VirtualClock) -> None:
    adapter = open_adapter("machine", {"root": str(tree.root), "include": ["hwmon/lm75-0-0048/*"]}, clock)
    await adapter.open()
    slow = tree.root / "sys/class/hwmon/hwmon1/temp1_input"
    slow.unlink()
    os.mkfifo(slow)
    reading = asyncio.create_task(one(adapter, "hwmon/lm75-0-0048/temp1"))
    await asyncio.sleep(0)
    await adapter.close()
    await asyncio.to_thread(slow.write_text, "31000\n")
    async with asyncio.timeout(10):
        with pytest.raises(AdapterDisconnected, match="closed meanwhile"):
            await reading


async def test_an_empty_root_is_refused_in_clear_words(tmp_path: Path, clock: VirtualClock) -> None:
    adapter = open_adapter("machine", {"root": str(tmp_path)}, clock)
    with pytest.raises(AdapterError, match=r"nothing to read below .*is /proc mounted"):
        await adapter.open()
    await adapter.close()


def test_options_are_checked(clock: VirtualClock) -> None:
    with pytest.raises(InputError, match=r"machine\.options\.rot: unknown option; did you mean `root`"):
        open_adapter("machine", {"rot": "/"}, clock)
    with pytest.raises(InputError, match=r"machine\.options\.rescan_s: expected a number above 0"):
        open_adapter("machine", {"rescan_s": 0}, clock)


def test_folders_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("hwmon10", "hwmon2", "alpha"):
        (tmp_path / name).mkdir()
    assert [name for name, _ in folders(str(tmp_path))] == ["alpha", "hwmon2", "hwmon10"]
    assert list(folders(str(tmp_path / "absent"))) == []


totals = st.lists(st.tuples(st.integers(0, 2 * 10**9), st.floats(0, 1e15), st.floats(0, 1e15)), max_size=20)


@given(totals)
def test_a_rate_is_never_negative_and_a_share_never_beyond_100(steps: list[tuple[int, float, float]]) -> None:
    rates, now_ns = Rates(), 0
    for step_ns, part, whole in steps:
        now_ns += step_ns
        for channel, value, most in (("a", Count(part), float("inf")), ("b", Share(part, whole), 100)):
            rate, quality = rates.rate(channel, value, now_ns)
            assert (rate is None) == (quality is Quality.UNCERTAIN)
            assert rate is None or 0 <= rate <= most


# -- this machine -----------------------------------------------------------------------------------------------------------


async def test_this_very_machine_is_read_with_units_and_nothing_is_invented() -> None:
    adapter = open_adapter("here", {}, SystemClock())
    await adapter.open()
    infos = adapter.channels()
    names = [info.channel for info in infos if info.kind is ChannelKind.SAMPLED]
    assert len(set(names)) == len(names)
    for info in infos:
        parse_unit(info.unit)
        assert info.description
        assert _source_of(info.channel).exists(), info
    async with asyncio.timeout(30):
        while True:
            samples = await adapter.read(names)
            if not any(sample.quality is Quality.UNCERTAIN for sample in samples):
                break
            await asyncio.sleep(0.01)
    assert [sample.channel for sample in samples] == names
    known = {sample.channel: sample.value for sample in samples if sample.quality is Quality.GOOD}
    for info in infos:
        value = known.get(info.channel)
        assert value is None or info.minimum is None or info.maximum is None or info.minimum <= value <= info.maximum
    with Path("/proc/uptime").open() as file:
        assert known["uptime"] == pytest.approx(float(file.read().split()[0]), abs=30)
    assert sum(name.startswith("cpu/") and name[4:].isdigit() for name in names) == os.cpu_count()
    await adapter.close()


def _source_of(channel: str) -> Path:
    """The file or folder of this machine that a channel is told from."""
    kind, _, rest = channel.partition("/")
    device = rest.partition("/")[0]
    plain = {"cpu": "stat", "load": "loadavg", "uptime": "uptime", "memory": "meminfo", "swap": "meminfo", "clock": "uptime"}
    if kind in plain:
        return Path("/proc") / plain[kind]
    if kind == "iio":
        return Path("/sys/bus/iio/devices")
    if kind == "fs:":
        return Path("/") / rest
    roots = {
        "pressure": "/proc/pressure",
        "disk": "/sys/block",
        "net": "/sys/class/net",
        "power": "/sys/class/power_supply",
        "led": "/sys/class/leds",
    }
    if kind in roots:
        return Path(roots[kind]) / device
    return Path("/sys/class") / kind
