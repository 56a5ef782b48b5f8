"""Which board this is, its header's names, the firmware's flags and 1-wire thermometers, on boards made of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.raspberry_pi import open_adapter
from adapters.raspberry_pi.board import HEADER, detect, gpio_number
from adapters.raspberry_pi.firmware import OneWire
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterError, InputError
from edge_runtime.testing import pi_tree
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.testing.gpio_kernel import ChipModel, GpioKernel
from edge_runtime.testing.pi_tree import PiModel, write_pi_tree, write_thermometer
from edge_runtime.types import Quality

MODELS = [
    (pi_tree.ZERO_W, "pinctrl-bcm2835", 512),
    (pi_tree.ZERO_2, "pinctrl-bcm2835", 512),
    (pi_tree.PI_3, "pinctrl-bcm2835", 1024),
    (pi_tree.PI_4, "pinctrl-bcm2711", 4096),
    (pi_tree.CM_4, "pinctrl-bcm2711", 2048),
    (pi_tree.PI_5, "pinctrl-rp1", 8192),
]


@pytest.mark.parametrize(("pi", "chip", "memory_mb"), MODELS, ids=[model[0].board for model in MODELS])
def test_every_model_is_known_by_its_device_tree(tmp_path: Path, pi: PiModel, chip: str, memory_mb: int) -> None:
    write_pi_tree(tmp_path, pi)
    board = detect(str(tmp_path))
    assert board is not None
    assert (board.model, board.header_chip, board.memory_mb, board.serial) == (pi.model, chip, memory_mb, "100000001a2b3c4d")


@pytest.mark.parametrize(
    "compatible", [b"", b"radxa,rock-5b\0rockchip,rk3588\0", b"raspberrypi,9\0brcm,bcm9999\0", b"\xff\0\n", b"brcm,bcm2711\0"]
)
async def test_another_board_is_none_and_the_adapter_says_so(tmp_path: Path, compatible: bytes) -> None:
    write_pi_tree(tmp_path, pi_tree.PI_4)
    (tmp_path / "proc/device-tree/compatible").write_bytes(compatible)
    assert detect(str(tmp_path)) is None
    adapter = open_adapter("pi", {"root": str(tmp_path)}, VirtualClock())
    with pytest.raises(AdapterError, match=r"this is no Raspberry Pi .*use the driver `linux`"):
        await adapter.open()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("GPIO17", 17),
        ("gpio 4", 4),
        ("BCM0", 0),
        ("27", 27),
        ("pin 11", 17),
        ("PIN40", 21),
        ("BOARD3", 2),
        ("J8:7", 4),
        ("gpiochip0:17", None),
        ("RELAY", None),
    ],
)
def test_a_line_is_named_by_its_number_or_its_pin(text: str, number: int | None) -> None:
    assert gpio_number(text) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [("GPIO28", "GPIO0 to GPIO27"), ("pin 6", "power or ground"), ("pin 41", "is not there"), ("pin 0", "is not there")],
)
def test_what_the_header_has_not_is_refused(text: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        gpio_number(text)


def test_the_header_carries_each_gpio_once() -> None:
    assert sorted(HEADER.values()) == list(range(28))


@given(st.text(max_size=20))
def test_any_text_is_a_number_no_number_or_refused(text: str) -> None:
    try:
        number = gpio_number(text)
    except AdapterError:
        return
    assert number is None or 0 <= number < 28


@pytest.mark.parametrize(("pi", "chip", "lines"), [(pi_tree.PI_3, "pinctrl-bcm2835", 54), (pi_tree.PI_5, "pinctrl-rp1", 54)])
async def test_a_pin_is_found_on_the_chip_of_the_header_whatever_its_number(tmp_path: Path, pi: PiModel, chip: str, lines: int) -> None:
    write_pi_tree(tmp_path, pi)
    first, header = tmp_path / "dev/gpiochip0", tmp_path / "dev/gpiochip4"
    kernel = GpioKernel({first: ChipModel("raspberrypi-exp-gpio", {}, 8), header: ChipModel(chip, {}, lines)})
    declared = {"relay": {"line": "pin 11", "direction": "output"}, "led": {"line": "GPIO18", "direction": "output"}}
    adapter = open_adapter("pi", {"root": str(tmp_path), "lines": declared}, SystemClock(), ioctl=kernel.ioctl)
    await adapter.open()
    for channel, offset in (("gpio/relay", 17), ("gpio/led", 18)):
        await adapter.actuate(channel, "on")
        assert kernel.level(header, offset)
    await adapter.close()


async def test_the_firmware_tells_of_power_and_heat(tmp_path: Path) -> None:
    write_pi_tree(tmp_path, pi_tree.PI_4, throttled="50005")
    adapter = open_adapter("pi", {"root": str(tmp_path)}, VirtualClock())
    await adapter.open()
    names = [info.channel for info in adapter.channels() if info.channel.startswith("pi/")]
    values = {sample.channel: sample.value for sample in await adapter.read(names)}
    assert values == {
        **{f"pi/{name}": value for name, value in (("undervoltage", 1), ("frequency_capped", 0), ("throttled", 1), ("hot", 0))},
        **{f"pi/{name}_since_boot": value for name, value in (("undervoltage", 1), ("frequency_capped", 0), ("throttled", 1), ("hot", 0))},
    }
    await adapter.close()


@pytest.mark.parametrize("text", ["", "zzz", "-", "1" * 5000])
async def test_a_firmware_that_tells_nothing_leaves_the_hwmon_alarm(tmp_path: Path, text: str) -> None:
    write_pi_tree(tmp_path, pi_tree.PI_4, throttled=None)
    hwmon = tmp_path / "sys/class/hwmon/hwmon1"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("rpi_volt\n")
    (hwmon / "in0_lcrit_alarm").write_text("1\n")
    adapter = open_adapter("pi", {"root": str(tmp_path)}, VirtualClock())
    await adapter.open()
    (sample,) = await adapter.read(["pi/undervoltage"])
    assert sample.value == 1
    (hwmon / "in0_lcrit_alarm").write_text(text)
    (sample,) = await adapter.read(["pi/undervoltage"])
    assert sample.value is None or sample.value != 0
    await adapter.close()


POWER_ON = "50 05 4b 46 7f ff 0c 10 1c"


async def test_thermometers_on_one_wire(tmp_path: Path) -> None:
    write_pi_tree(tmp_path, pi_tree.PI_3)
    write_thermometer(tmp_path, celsius=-10.125)
    path = write_thermometer(tmp_path, "28-00000a1b2c3e", celsius=85)
    write_thermometer(tmp_path, "00-4000000000000", answer="")  # the bus itself
    adapter = open_adapter("pi", {"root": str(tmp_path), "include": ["w1/*"]}, VirtualClock())
    await adapter.open()
    names = [info.channel for info in adapter.channels()]
    assert names == ["w1/28-00000a1b2c3d", "w1/28-00000a1b2c3e"]
    assert [sample.value for sample in await adapter.read(names)] == [-10.125, 85]
    for answer in (f"{POWER_ON} : crc=1c YES\n{POWER_ON} t=85000\n", f"{POWER_ON} : crc=00 NO\n{POWER_ON} t=85000\n", "", "garbage"):
        path.write_text(answer)
        (sample,) = await adapter.read([names[1]])
        assert (sample.value, sample.quality) == (None, Quality.BAD)
    await adapter.close()


@given(st.binary(max_size=200))
def test_garbage_on_one_wire_is_no_reading(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.mktemp("w1")
    write_thermometer(root).write_bytes(content)
    probe = OneWire(str(root))
    assert len(probe.discover()) == 1
    assert probe.read(["w1/28-00000a1b2c3d"]) == {}


def test_options_are_those_of_linux() -> None:
    with pytest.raises(InputError, match=r"pi\.options\.line: unknown option; did you mean `lines`"):
        open_adapter("pi", {"line": {}}, VirtualClock())


class TestRaspberryPiUnderContract(AdapterContract):
    option = "lines"
    absent: ClassVar[dict[str, Any]] = {"root": "/nowhere/at/all"}

    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        write_pi_tree(tmp_path, pi_tree.PI_4)
        write_thermometer(tmp_path)
        kernel = GpioKernel({tmp_path / "dev/gpiochip0": ChipModel("pinctrl-bcm2711", {}, 58, bounces={22: 3})})
        lines = {"door": {"line": "GPIO22"}, "key": {"line": "pin 7", "edges": "none"}, "relay": {"line": "pin 11", "direction": "output"}}
        own = {"root": str(tmp_path), "lines": lines}
        return lambda options, clock: open_adapter("pi", {**own, **options}, clock, ioctl=kernel.ioctl)
