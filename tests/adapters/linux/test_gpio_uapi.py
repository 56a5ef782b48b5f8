"""The kernel's GPIO interface, version 2: layouts by the kernel's own numbers, lines against a stand-in for the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.linux import gpio_uapi as uapi
from adapters.linux.gpio_uapi import Flag, Line
from edge_runtime.errors import AdapterDisconnected, AdapterError
from edge_runtime.testing.gpio_kernel import ChipModel, GpioKernel


@pytest.fixture
def chip(tmp_path: Path) -> Path:
    return tmp_path / "dev/gpiochip0"


@pytest.fixture
def kernel(chip: Path) -> GpioKernel:
    return GpioKernel({chip: ChipModel("pinctrl-test", {17: "GPIO17"}, 54, held={4: "w1"}, bounces={22: 3})})


@pytest.fixture
def line(chip: Path, kernel: GpioKernel) -> Iterator[Line]:
    line = Line(str(chip), 17, "test", kernel.ioctl)
    yield line
    line.close()


def test_numbers_and_sizes_are_the_kernels() -> None:
    """As `linux/gpio.h` gives them on every machine with 64-bit alignment of u64."""
    assert [ctypes.sizeof(kind) for kind in (uapi.ChipInfo, uapi.LineInfo, uapi.LineRequest, uapi.LineConfig, uapi.LineEvent)] == [
        68,
        256,
        592,
        272,
        48,
    ]
    assert [uapi.GET_CHIPINFO, uapi.GET_LINEINFO, uapi.GET_LINE, uapi.SET_CONFIG, uapi.GET_VALUES, uapi.SET_VALUES] == [
        0x8044B401,
        0xC100B405,
        0xC250B407,
        0xC110B40D,
        0xC010B40E,
        0xC010B40F,
    ]


_HEADER = Path("/usr/include/linux/gpio.h")
_PROBE = """
#include <stddef.h>
#include <stdio.h>
#include <linux/gpio.h>
#define SAY(kind, field) printf("%zu ", offsetof(struct kind, field))
int main(void) {
    SAY(gpio_v2_line_request, config); SAY(gpio_v2_line_request, num_lines); SAY(gpio_v2_line_request, fd);
    SAY(gpio_v2_line_info, offset); SAY(gpio_v2_line_info, flags); SAY(gpio_v2_line_config, attrs);
    SAY(gpio_v2_line_event, offset); SAY(gpio_v2_line_event, line_seqno); SAY(gpiochip_info, lines);
    printf("%zu %zu %zu", sizeof(struct gpio_v2_line_request), sizeof(struct gpio_v2_line_info), sizeof(struct gpio_v2_line_event));
}
"""


@pytest.mark.skipif(not _HEADER.exists() or shutil.which("cc") is None, reason="no C compiler or no linux/gpio.h here")
def test_layouts_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    (tmp_path / "probe.c").write_text(_PROBE)
    subprocess.run(["cc", "probe.c", "-o", "probe"], cwd=tmp_path, check=True, timeout=30)
    told = subprocess.run([tmp_path / "probe"], check=True, capture_output=True, text=True, timeout=10).stdout
    fields = [
        *(getattr(uapi.LineRequest, name).offset for name in ("config", "lines", "fd")),
        *(getattr(uapi.LineInfo, name).offset for name in ("offset", "flags")),
        uapi.LineConfig.attributes.offset,
        *(getattr(uapi.LineEvent, name).offset for name in ("offset", "line_seqno")),
        uapi.ChipInfo.lines.offset,
        *map(ctypes.sizeof, (uapi.LineRequest, uapi.LineInfo, uapi.LineEvent)),
    ]
    assert [int(word) for word in told.split()] == fields


def test_a_chip_and_its_lines_tell_about_themselves(chip: Path, kernel: GpioKernel) -> None:
    assert uapi.chip_info(str(chip), kernel.ioctl) == (str(chip), "gpiochip0", "pinctrl-test", 54)
    assert uapi.line_state(str(chip), 17, kernel.ioctl) == ("GPIO17", "", Flag.INPUT)
    assert uapi.line_state(str(chip), 4, kernel.ioctl) == ("", "w1", Flag.INPUT | Flag.USED)


def test_an_output_goes_where_it_is_told(line: Line, chip: Path, kernel: GpioKernel) -> None:
    line.configure(Flag.OUTPUT | Flag.ACTIVE_LOW, level=True)
    assert not kernel.level(chip, 17)
    assert line.get()
    line.set(False)
    assert kernel.level(chip, 17)
    assert not line.get()


def test_an_input_tells_its_edges(line: Line, chip: Path, kernel: GpioKernel) -> None:
    line.configure(Flag.INPUT | Flag.EDGE_RISING | Flag.EDGE_FALLING | Flag.BIAS_PULL_UP, debounce_us=5000)
    assert (kernel.debounce_us(chip, 17), line.edges()) == (5000, [])
    kernel.drive(chip, 17, True)
    kernel.drive(chip, 17, False)
    up, down = line.edges()
    assert (up.rising, down.rising, up.number, down.number) == (True, False, 1, 2)
    assert up.at_ns <= down.at_ns


def test_what_the_kernel_refuses_is_told(line: Line, chip: Path, kernel: GpioKernel) -> None:
    with pytest.raises(OSError, match="busy"):
        Line(str(chip), 17, "second", kernel.ioctl)
    with pytest.raises(OSError, match="busy"):
        Line(str(chip), 4, "second", kernel.ioctl)
    with pytest.raises(OSError) as refused:
        Line(str(chip), 54, "beyond", kernel.ioctl)
    assert refused.value.errno == errno.EINVAL
    line.configure(Flag.INPUT)
    with pytest.raises(AdapterError, match="does not answer"):
        line.set(True)


def test_a_line_that_was_closed_is_free_again(line: Line, chip: Path, kernel: GpioKernel) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    line.close()
    line.close()
    again = Line(str(chip), 17, "again", kernel.ioctl)
    again.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


def test_a_chip_that_goes_is_told_as_such(line: Line, chip: Path, kernel: GpioKernel) -> None:
    line.configure(Flag.INPUT | Flag.EDGE_RISING)
    kernel.unplug(chip)
    with pytest.raises(AdapterDisconnected):
        line.edges()
    with pytest.raises(AdapterDisconnected):
        line.get()
