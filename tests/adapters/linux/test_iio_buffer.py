"""Capture from an IIO buffer: record formats against plain arithmetic, a device made of files and a pipe, gaps and garbage."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.linux import LinuxAdapter, open_adapter
from adapters.linux.iio_buffer import check_rate
from adapters.linux.records import Records, parse_element
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.types import ChannelKind, Sample

PERIOD_NS = 10_000_000


class Accelerometer:
    """A device of three axes, big-endian 12 bits in 16, with a time; its node is a pipe that the test fills."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "sys/bus/iio/devices/iio:device0"
        for name, text in {
            "name": "adxl",
            "in_accel_scale": "0.5",
            "in_accel_x_offset": "2",
            "in_accel_sampling_frequency": "50.0",
            "in_accel_sampling_frequency_available": "50 100",
            "in_accel_x_raw": "3",
            "in_temp_raw": "7",
            "current_timestamp_clock": "monotonic",
            "trigger/current_trigger": "",
            "buffer/enable": "0",
            "buffer/length": "0",
            "../trigger0/name": "adxl-dev0",
        }.items():
            self.write(name, text)
        for index, stem in enumerate(("accel_x", "accel_y", "timestamp")):
            self.write(f"scan_elements/in_{stem}_en", "0")
            self.write(f"scan_elements/in_{stem}_index", str(index))
            self.write(f"scan_elements/in_{stem}_type", "le:s64/64>>0" if stem == "timestamp" else "be:s12/16>>4")
        self.node = root / "dev/iio:device0"
        self.node.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self.node)
        self.pipe = os.open(self.node, os.O_RDWR | os.O_NONBLOCK)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def told(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def speak(self, *records: tuple[int, int, int]) -> None:
        """Raw x, raw y, time in ns."""
        os.write(
            self.pipe, b"".join(struct.pack(">HH4x", (x & 0xFFF) << 4, (y & 0xFFF) << 4) + struct.pack("<q", at) for x, y, at in records)
        )

    def adapter(self, **buffer: Any) -> LinuxAdapter:
        options = {"device": "adxl", "rate_hz": 100, "block": 4, **buffer}
        return open_adapter("board", {"root": str(self.root), "buffers": {"vibration": options}}, SystemClock())


@pytest.fixture
def sensor(tmp_path: Path) -> Any:
    sensor = Accelerometer(tmp_path)
    yield sensor
    os.close(sensor.pipe)


@asynccontextmanager
async def capturing(adapter: LinuxAdapter, channels: Sequence[str]) -> AsyncIterator[asyncio.Queue[Sample]]:
    await adapter.open()
    samples: asyncio.Queue[Sample] = asyncio.Queue()
    task = asyncio.create_task(adapter.stream(channels, samples.put_nowait))
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.wait([task])
        await adapter.close()


async def enabled(sensor: Accelerometer) -> None:
    async with asyncio.timeout(10):
        while sensor.told("buffer/enable") != "1":
            await asyncio.sleep(0.001)


async def soon(samples: asyncio.Queue[Sample]) -> tuple[str, list[float], float, int | None]:
    async with asyncio.timeout(10):
        sample = await samples.get()
    assert sample.block is not None
    assert sample.block.dtype == np.float32
    return sample.channel, sample.block.tolist(), sample.rate_hz, sample.wall_ns


X, Y = "iio/adxl/accel_x", "iio/adxl/accel_y"


async def test_the_buffer_is_set_up_and_its_records_become_blocks(sensor: Accelerometer) -> None:
    adapter = sensor.adapter(trigger="adxl-dev0")
    async with capturing(adapter, [Y, X]) as samples:
        infos = {info.channel: info for info in adapter.channels()}
        assert [(infos[name].kind, infos[name].unit, infos[name].rate_hz) for name in (X, Y)] == [
            (ChannelKind.STREAMING, "m/s2", 100.0)
        ] * 2
        assert infos["iio/adxl/temp"].kind is ChannelKind.SAMPLED
        await enabled(sensor)
        assert [sensor.told(f"scan_elements/in_{stem}_en") for stem in ("accel_x", "accel_y", "timestamp")] == ["1", "1", "1"]
        assert (sensor.told("trigger/current_trigger"), sensor.told("in_accel_sampling_frequency")) == ("adxl-dev0", "100")
        assert (sensor.told("buffer/length"), sensor.told("current_timestamp_clock")) == ("16", "realtime")
        sensor.speak(*((n, -n, n * PERIOD_NS) for n in range(9)))
        assert await soon(samples) == (X, [1.0, 1.5, 2.0, 2.5], 100.0, 0)
        assert await soon(samples) == (Y, [0.0, -0.5, -1.0, -1.5], 100.0, 0)
        assert await soon(samples) == (X, [3.0, 3.5, 4.0, 4.5], 100.0, 4 * PERIOD_NS)
        assert (await soon(samples))[0] == Y
    assert sensor.told("buffer/enable") == "0"


async def test_a_block_ends_where_records_are_missing(sensor: Accelerometer) -> None:
    adapter = sensor.adapter(channels=["accel_y"])
    async with capturing(adapter, [Y]) as samples:
        await enabled(sensor)
        assert sensor.told("scan_elements/in_accel_x_en") == "0"
        times = (0, 1, 5, 6, 7, 8, 9)
        os.write(sensor.pipe, b"".join(struct.pack(">H6x", (n << 4)) + struct.pack("<q", n * PERIOD_NS) for n in times))
        assert await soon(samples) == (Y, [0.0, 0.5], 100.0, 0)
        assert await soon(samples) == (Y, [2.5, 3.0, 3.5, 4.0], 100.0, 5 * PERIOD_NS)
        assert adapter.health().counters["captures_interrupted"] == 1


async def test_half_a_record_waits_for_its_other_half(sensor: Accelerometer) -> None:
    async with capturing(sensor.adapter(block=1), [X]) as samples:
        await enabled(sensor)
        record = struct.pack(">H6x", 7 << 4) + struct.pack("<q", 5)
        for part in (record[:3], record[3:] + record[:9], record[9:]):
            os.write(sensor.pipe, part)
        for _ in range(2):
            assert await soon(samples) == (X, [4.5], 100.0, 5)


async def test_a_device_that_goes_ends_the_capture(sensor: Accelerometer) -> None:
    adapter = sensor.adapter()
    await adapter.open()
    stream = asyncio.create_task(adapter.stream([X], lambda sample: None))
    await enabled(sensor)
    os.close(sensor.pipe)  # the end of a pipe reads like the end of a device
    async with asyncio.timeout(10):
        with pytest.raises(AdapterDisconnected, match="adxl is gone"):
            await stream
    await adapter.close()
    sensor.pipe = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"device": "bma"}, AdapterDisconnected, r"no IIO device `bma` here \(found: adxl\)"),
        ({"channels": ["accel_q"]}, AdapterError, r"cannot capture accel_q \(it can: accel_x, accel_y, timestamp\)"),
        ({"trigger": "sysfstrig0"}, AdapterError, r"no trigger `sysfstrig0` here \(found: adxl-dev0\)"),
        ({"trigger": "hrtimer:edge"}, AdapterError, "load iio-trig-hrtimer"),
    ],
)
async def test_what_cannot_be_captured_says_why(
    sensor: Accelerometer, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    adapter = sensor.adapter(**change)
    with pytest.raises(error, match=message):
        await adapter.open()
    await adapter.close()


def test_a_rate_that_the_device_does_not_take_is_refused_with_its_rates() -> None:
    check_rate("v", 100, 100.4, "")
    with pytest.raises(AdapterError, match=r"v: asked for 100 Hz, got 50 Hz \(the device has: 25 50\)"):
        check_rate("v", 100, 50, "25 50")
    with pytest.raises(AdapterError, match=r"got 0 Hz; name a rate that the device has"):
        check_rate("v", 100, 0, "")


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ({"rate_hz": 0}, r"buffers\.b\.rate_hz: expected a number above 0"),
        ({"block": 0}, r"buffers\.b\.block: expected 1 to 65536"),
        ({"trigger": "../x"}, r"buffers\.b\.trigger: expected a trigger's name"),
        ({"bloc": 1}, "unknown field `bloc`"),
    ],
)
def test_contradicting_options_are_refused(buffer: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter("board", {"buffers": {"b": {"device": "x", "rate_hz": 1, **buffer}}}, VirtualClock())


# -- formats ----------------------------------------------------------------------------------------------------------------


@st.composite
def formats(draw: st.DrawFn) -> str:
    storage = draw(st.sampled_from((8, 16, 32, 64)))
    bits = draw(st.integers(1, storage))
    shift = draw(st.integers(0, storage - bits))
    return f"{draw(st.sampled_from(('le', 'be')))}:{draw(st.sampled_from('su'))}{bits}/{storage}>>{shift}"


@given(st.lists(formats(), min_size=1, max_size=6), st.integers(1, 5), st.data())
def test_columns_are_what_plain_arithmetic_gives(texts: list[str], count: int, data: st.DataObject) -> None:
    elements = [parse_element(f"c{place}", str(place), text) for place, text in enumerate(texts)]
    records = Records(elements)
    content = data.draw(st.binary(min_size=count * records.size_bytes, max_size=count * records.size_bytes))
    columns = records.columns(content)
    end = 0
    for element in elements:
        end = (end + element.storage_bytes - 1) // element.storage_bytes * element.storage_bytes
        for record in range(count):
            begin = record * records.size_bytes + end
            stored = int.from_bytes(content[begin : begin + element.storage_bytes], "big" if element.big_endian else "little")
            value = stored >> element.shift & (1 << element.bits) - 1
            if element.signed and value >> element.bits - 1:
                value -= 1 << element.bits
            assert int(columns[element.stem][record]) == value
        end += element.storage_bytes
    assert records.size_bytes >= end
    assert records.size_bytes % max(element.storage_bytes for element in elements) == 0


@given(
    st.text(max_size=30) | st.from_regex(r"(be|le):[su][0-9]{1,4}/[0-9]{1,4}(x[0-9]{1,3})?(>>[0-9]{1,3})?", fullmatch=True),
    st.text(max_size=5),
)
def test_garbage_for_a_format_is_refused_or_understood(text: str, index: str) -> None:
    with suppress(AdapterError):
        element = parse_element("x", index, text)
        assert element.bits + element.shift <= 8 * element.storage_bytes <= 64


@pytest.mark.parametrize("text", ["le:s12/24>>0", "le:s17/16>>0", "le:s12/16>>5", "be:u8/8x4>>0", "me:s8/8", "le:s0/8", ""])
def test_formats_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(AdapterError, match=r"expected a format|cannot read"):
        parse_element("x", "0", text)


class TestCaptureUnderContract(AdapterContract):
    option = "buffers"
    absent: ClassVar[dict[str, Any]] = {"buffers": {"x": {"device": "absent", "rate_hz": 1}}}

    @pytest.fixture
    def make_adapter(self, sensor: Accelerometer) -> MakeAdapter:
        own = {"root": str(sensor.root), "buffers": {"v": {"device": "adxl", "rate_hz": 100, "block": 2}}}

        class Speaking(LinuxAdapter):
            async def stream(self, channels: Sequence[str], sink: Any) -> None:
                with suppress(BlockingIOError):
                    sensor.speak(*((n, n, n * PERIOD_NS) for n in range(8)))
                await super().stream(channels, sink)

        def make(options: Any, clock: Any) -> LinuxAdapter:
            adapter = open_adapter("board", {**own, **options}, clock)
            adapter.__class__ = Speaking
            return adapter

        return make
