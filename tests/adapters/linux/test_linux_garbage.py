"""Whatever /proc and /sys hold, the driver `linux` opens, gives readings that are numbers or BAD, and raises only its own errors."""

from __future__ import annotations

import asyncio
from math import isfinite
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.linux import open_adapter
from edge_runtime.clock import VirtualClock
from edge_runtime.errors import AdapterError
from edge_runtime.testing.machine_tree import MachineTree
from edge_runtime.testing.pi_tree import write_thermometer
from edge_runtime.types import ChannelKind, Quality

IIO = "sys/bus/iio/devices/iio:device0"
MORE = {
    f"{IIO}/name": "adc\n",
    f"{IIO}/in_voltage0_raw": "5\n",
    f"{IIO}/in_voltage_scale": "2\n",
    f"{IIO}/in_voltage0_offset": "1\n",
    f"{IIO}/in_voltage0_label": "tank\n",
    f"{IIO}/in_temp_input": "20000\n",
    "sys/class/hwmon/hwmon0/in0_alarm": "0\n",
}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def numbers() -> st.SearchStrategy[bytes]:
    """What looks like a number and is none, or is too large to be one."""
    words = st.sampled_from(["nan", "inf", "-inf", "1e999", "9" * 400, "-" + "9" * 5000, "0x10", "1_0", "٣", "+", "", " ", "1.5.2"])
    return st.lists(words, max_size=12).map(lambda parts: " ".join(parts).encode())


garbage = st.binary(max_size=120) | numbers() | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass"))


async def use(root: Path, clock: VirtualClock) -> None:
    adapter = open_adapter("machine", {"root": str(root)}, clock)
    try:
        await adapter.open()
    except AdapterError:
        return
    for _ in range(2):
        names = [info.channel for info in adapter.channels() if info.kind is ChannelKind.SAMPLED]
        for sample in await adapter.read(names):
            assert sample.value is None or isfinite(sample.value), sample
            assert sample.value is not None or sample.quality is not Quality.GOOD, sample
        for info in adapter.channels():
            if info.kind is ChannelKind.ACTUATOR:
                assert isinstance(await adapter.actuator_state(info.channel), str | None)
                for state in info.states:
                    try:
                        await adapter.actuate(info.channel, state)
                    except AdapterError:
                        continue
        clock.advance(1.0)
    await adapter.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_garbage_before_and_after_opening(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tree = MachineTree(tmp_path_factory.mktemp("machine") / "root")
    for name, text in MORE.items():
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_thermometer(tree.root)
    victims = data.draw(st.lists(st.sampled_from(files(tree.root)), min_size=1, max_size=6, unique=True))
    for path in victims:
        path.write_bytes(data.draw(garbage))
    asyncio.run(use(tree.root, VirtualClock()))
