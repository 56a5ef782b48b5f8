"""gpiozero's own devices over our lines, on a Raspberry Pi made of files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import AdapterError
from edge_runtime.testing import pi_tree
from edge_runtime.testing.gpio_kernel import ChipModel, GpioKernel
from edge_runtime.testing.pi_tree import write_pi_tree

gpiozero: Any = pytest.importorskip("gpiozero", reason="gpiozero is not installed")

from adapters.raspberry_pi.gpiozero_pins import LinePinFactory  # noqa: E402 - only where gpiozero is


class Bench:
    def __init__(self, root: Path) -> None:
        write_pi_tree(root, pi_tree.PI_4)
        self.chip = root / "dev/gpiochip0"
        self.kernel = GpioKernel({self.chip: ChipModel("pinctrl-bcm2711", {}, 58, held={4: "w1"})})
        self.factory = LinePinFactory(str(root), self.kernel.ioctl)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.factory.close()


def test_an_led_and_an_active_low_relay_go_on_and_off(bench: Bench) -> None:
    with (
        gpiozero.LED(17, pin_factory=bench.factory) as led,
        gpiozero.OutputDevice("BOARD13", active_high=False, pin_factory=bench.factory) as relay,
    ):
        assert bench.kernel.level(bench.chip, 27)
        for device, number, low in ((led, 17, False), (relay, 27, True)):
            device.on()
            assert bench.kernel.level(bench.chip, number) is not low
            assert device.value == 1
            device.off()
            assert bench.kernel.level(bench.chip, number) is low


def test_a_button_is_pulled_up_debounced_and_calls_back(bench: Bench) -> None:
    pressed, released = threading.Event(), threading.Event()
    bench.kernel.drive(bench.chip, 22, True)
    with gpiozero.Button(22, bounce_time=0.005, pin_factory=bench.factory) as button:
        button.when_pressed, button.when_released = pressed.set, released.set
        assert (button.is_pressed, button.pin.pull) == (False, "up")
        assert bench.kernel.debounce_us(bench.chip, 22) == 5000
        bench.kernel.drive(bench.chip, 22, False)
        assert pressed.wait(10)
        assert button.is_pressed
        bench.kernel.drive(bench.chip, 22, True)
        assert released.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edges-")]


def test_a_button_switches_an_led(bench: Bench) -> None:
    done = threading.Event()
    bench.kernel.drive(bench.chip, 22, True)
    with gpiozero.Button(22, pin_factory=bench.factory) as button, gpiozero.LED(17, pin_factory=bench.factory) as led:

        def on() -> None:
            led.on()
            done.set()

        button.when_pressed = on
        bench.kernel.drive(bench.chip, 22, False)
        assert done.wait(10)
        assert bench.kernel.level(bench.chip, 17)


def test_what_cannot_be_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(gpiozero.GPIOPinInUse):
        gpiozero.LED(4, pin_factory=bench.factory)
    with pytest.raises(gpiozero.PinPWMUnsupported):
        gpiozero.PWMLED(18, pin_factory=bench.factory)
    with pytest.raises(AdapterError, match="no Raspberry Pi"):
        LinePinFactory(str(tmp_path / "elsewhere"))
    assert bench.factory.board_info.model == "4B"


def test_gpiozero_finds_the_factory_by_its_name() -> None:
    from importlib.metadata import entry_points

    (point,) = entry_points(group="gpiozero_pin_factories", name="edge")
    assert point.load() is LinePinFactory
