"""Declared GPIO lines of the driver `linux`, against a stand-in for the kernel: names, levels, edges, holders, unplugging."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adapters.linux import LinuxAdapter, open_adapter
from adapters.linux.gpio_uapi import Flag, line_state
from edge_runtime.clock import Clock, SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.testing.gpio_kernel import ChipModel, GpioKernel
from edge_runtime.types import ChannelKind, Sample

DOOR = {"line": "DOOR", "bias": "pull_up", "active_low": True, "debounce_ms": 5}
KEY = {"line": "gpiochip1:3", "edges": "none"}
RELAY = {"line": "expander:2", "direction": "output"}


class Bench:
    """A machine of two chips."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.soc, self.expander = root / "dev/gpiochip0", root / "dev/gpiochip1"
        self.kernel = GpioKernel(
            {
                self.soc: ChipModel("soc", {5: "DOOR", 6: "FLOW", 7: "TWICE"}, 8, held={4: "w1"}, bounces={6: 4}),
                self.expander: ChipModel("expander", {0: "TWICE", 1: "RELAY"}, 16),
            }
        )

    def adapter(self, clock: Clock | None = None, **lines: Any) -> LinuxAdapter:
        return open_adapter("board", {"root": str(self.root), "lines": lines}, clock or SystemClock(), ioctl=self.kernel.ioctl)

    @asynccontextmanager
    async def opened(self, **lines: Any) -> AsyncIterator[LinuxAdapter]:
        adapter = self.adapter(**lines)
        await adapter.open()
        yield adapter
        await adapter.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@asynccontextmanager
async def streaming(adapter: LinuxAdapter, *channels: str) -> AsyncIterator[asyncio.Queue[Sample]]:
    samples: asyncio.Queue[Sample] = asyncio.Queue()
    task = asyncio.create_task(adapter.stream(channels, samples.put_nowait))
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.wait([task])


async def soon(samples: asyncio.Queue[Sample]) -> Sample:
    async with asyncio.timeout(10):
        return await samples.get()


async def test_lines_become_channels_of_their_kind(bench: Bench) -> None:
    async with bench.opened(door=DOOR, key=KEY, relay=RELAY) as board:
        assert [(info.channel, info.kind, info.unit, info.states, info.description) for info in board.channels()] == [
            ("gpio/door", ChannelKind.STREAMING, "bool", (), "GPIO input soc:5, active low"),
            ("gpio/key", ChannelKind.SAMPLED, "bool", (), "GPIO input expander:3"),
            ("gpio/relay", ChannelKind.ACTUATOR, "", ("off", "on"), "GPIO output expander:2"),
        ]
        assert bench.kernel.flags(bench.soc, 5) == Flag.INPUT | Flag.ACTIVE_LOW | Flag.BIAS_PULL_UP
        assert bench.kernel.debounce_us(bench.soc, 5) == 5000


async def test_the_kernel_lists_the_holder_by_a_name_without_slashes(bench: Bench) -> None:
    """It makes a folder of that name for the interrupt of an input that is watched."""
    async with bench.opened(door=DOOR):
        assert line_state(str(bench.soc), 5, bench.kernel.ioctl).consumer == "edge-door"


async def test_a_level_is_read_when_asked(bench: Bench) -> None:
    async with bench.opened(key=KEY) as board:
        for level in (True, False):
            bench.kernel.drive(bench.expander, 3, level)
            (sample,) = await board.read(["gpio/key"])
            assert sample.value == float(level)


async def test_a_stream_begins_with_the_level_and_goes_on_with_the_edges(bench: Bench) -> None:
    before_ns = SystemClock().now().wall_ns
    async with bench.opened(door=DOOR) as board, streaming(board, "gpio/door") as samples:
        first = await soon(samples)
        assert (first.value, first.wall_ns) == (1.0, None)
        for level in (True, False):
            bench.kernel.drive(bench.soc, 5, level)
        opened, closed = await soon(samples), await soon(samples)
        assert (opened.value, closed.value) == (0.0, 1.0)
        assert opened.wall_ns is not None
        assert closed.wall_ns is not None
        assert before_ns <= opened.wall_ns <= closed.wall_ns <= SystemClock().now().wall_ns


async def test_only_the_edges_asked_for_are_told_and_only_while_a_stream_runs(bench: Bench) -> None:
    async with bench.opened(door={"line": "DOOR", "edges": "rising"}) as board:
        bench.kernel.drive(bench.soc, 5, True)
        for _ in range(2):
            async with streaming(board, "gpio/door") as samples:
                assert (await soon(samples)).value == 1.0
                for level in (False, True, False, True):
                    bench.kernel.drive(bench.soc, 5, level)
                assert [(await soon(samples)).value for _ in range(2)] == [1.0, 1.0]
                assert samples.empty()


async def test_an_output_keeps_its_level_from_opening_to_opening(bench: Bench) -> None:
    for state in ("on", "off", "on"):
        async with bench.opened(relay=RELAY) as board:
            await board.actuate("gpio/relay", state)
            assert bench.kernel.level(bench.expander, 2) is (state == "on")
        async with bench.opened(relay={**RELAY, "active_low": True}) as board:
            assert await board.actuator_state("gpio/relay") == ("off" if state == "on" else "on")
        assert bench.kernel.level(bench.expander, 2) is (state == "on")


@pytest.mark.parametrize(("active_low", "initial", "level"), [(False, "on", True), (True, "on", False), (True, "off", True)])
async def test_an_output_begins_as_asked(bench: Bench, active_low: bool, initial: str, level: bool) -> None:
    async with bench.opened(relay={**RELAY, "active_low": active_low, "initial": initial, "on_close": "return"}) as board:
        assert bench.kernel.level(bench.expander, 2) is level
        assert await board.actuator_state("gpio/relay") == initial
        assert bench.kernel.flags(bench.expander, 2) & Flag.OUTPUT
    assert bench.kernel.flags(bench.expander, 2) == Flag.INPUT


async def test_wrong_states_and_channels_are_refused(bench: Bench) -> None:
    async with bench.opened(relay=RELAY, door=DOOR) as board:
        with pytest.raises(AdapterError, match="expected `on` or `off`, got `1`"):
            await board.actuate("gpio/relay", "1")
        with pytest.raises(InputError, match="did you mean `gpio/relay`"):
            await board.actuate("gpio/relais", "on")
        with pytest.raises(InputError, match="no such sampled channel `gpio/door`"):
            await board.read(["gpio/door"])


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("DOR", AdapterDisconnected, r"no GPIO line `DOR` on 2 chips; did you mean `DOOR`\?"),
        ("gpiochip9:1", AdapterDisconnected, r"no GPIO chip `gpiochip9` with a line 1 .*gpiochip0 \(soc, 8 lines\)"),
        ("soc:8", AdapterDisconnected, "no GPIO chip `soc` with a line 8"),
        ("TWICE", AdapterError, "write one of gpiochip0:7, gpiochip1:0"),
        ("soc:4", AdapterDisconnected, r"line `soc:4` \(gpiochip0:4\) is in use by `w1`"),
    ],
)
async def test_a_line_that_cannot_be_had_says_why(bench: Bench, line: str, error: type[AdapterError], message: str) -> None:
    board = bench.adapter(relay=RELAY, other={"line": line})
    for _ in range(2):
        with pytest.raises(error, match=message):
            await board.open()
    async with bench.opened(relay=RELAY):  # what was taken before the refusal is free again
        pass


async def test_a_chip_that_is_unplugged_ends_streams_and_calls_until_it_is_back(bench: Bench) -> None:
    async with bench.opened(key=KEY, relay=RELAY, tap={"line": "expander:4"}) as board:
        samples: asyncio.Queue[Sample] = asyncio.Queue()
        stream = asyncio.create_task(board.stream(["gpio/tap"], samples.put_nowait))
        await soon(samples)
        bench.kernel.unplug(bench.expander)
        async with asyncio.timeout(10):
            with pytest.raises(AdapterDisconnected, match="the GPIO chip is gone"):
                await stream
        for call in (board.actuate("gpio/relay", "on"), board.read(["gpio/key"]), board.actuator_state("gpio/relay")):
            with pytest.raises(AdapterDisconnected, match="does not answer"):
                await call
        await board.close()
        with pytest.raises(AdapterDisconnected, match="no GPIO chip `gpiochip1`"):
            await board.open()


async def test_closing_ends_a_stream(bench: Bench) -> None:
    board = bench.adapter(door=DOOR)
    await board.open()
    samples: asyncio.Queue[Sample] = asyncio.Queue()
    stream = asyncio.create_task(board.stream(["gpio/door"], samples.put_nowait))
    await soon(samples)
    await board.close()
    async with asyncio.timeout(10):
        with pytest.raises(AdapterDisconnected, match="closed meanwhile"):
            await stream


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"a b": {"line": "X"}}, r"lines\.a b: expected a name"),
        ({"a": {}}, "missing required field `line`"),
        ({"a": {"line": "X", "edge": "both"}}, "unknown field `edge`"),
        ({"a": {"line": "X", "debounce_ms": -1}}, r"lines\.a\.debounce_ms: expected 0 to 60000"),
        ({"a": {"line": "X", "direction": "output", "debounce_ms": 1}}, "only inputs are debounced"),
        ({"a": {"line": "X", "initial": "on"}}, "are for outputs"),
    ],
)
def test_contradicting_options_are_refused(lines: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter("board", {"lines": lines}, VirtualClock())


class TestLinesUnderContract(AdapterContract):
    option = "lines"
    absent: ClassVar[dict[str, Any]] = {"lines": {"x": {"line": "ABSENT"}}}

    @pytest.fixture
    def make_adapter(self, bench: Bench) -> MakeAdapter:
        own = {"root": str(bench.root), "lines": {"flow": {"line": "FLOW"}, "key": KEY, "relay": RELAY}}

        return lambda options, clock: open_adapter("board", {**own, **options}, clock, ioctl=bench.kernel.ioctl)
