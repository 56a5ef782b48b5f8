"""An adapter that fails comes back; one that stalls or dies never takes the others along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from edge_runtime.errors import AdapterDisconnected, AdapterError
from edge_runtime.ports import SampleSink
from edge_runtime.supervision import AdapterSupervisor, Supervision
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Sample


class Board:
    """A device with one sampled and one streaming channel, which fails when told."""

    def __init__(self) -> None:
        self.opens = 0
        self.closes = 0
        self.open_errors: list[Exception] = []
        self.stream_errors: list[Exception] = []
        self.end = False
        self.plugged: asyncio.Queue[Sequence[ChannelInfo]] = asyncio.Queue()
        self.known = [ChannelInfo("t", ChannelKind.SAMPLED), ChannelInfo("v", ChannelKind.STREAMING)]

    async def open(self) -> None:
        self.opens += 1
        if self.open_errors:
            raise self.open_errors.pop(0)

    async def close(self) -> None:
        self.closes += 1

    def channels(self) -> Sequence[ChannelInfo]:
        return self.known

    def health(self) -> Health:
        return Health(True)

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        return [Sample(channel, 1.0) for channel in channels]

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        while not self.end:
            if self.stream_errors:
                raise self.stream_errors.pop(0)
            for channel in channels:
                sink(Sample(channel, 2.0))
            await asyncio.sleep(0)

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        while True:
            self.known = list(await self.plugged.get())
            yield self.known


class Watch:
    """Collects what the supervisor says and lets a test wait for a condition."""

    def __init__(self, board: Board, wanted: dict[str, float]) -> None:
        self.samples: list[Sample] = []
        self.log: list[str] = []
        self.changed = asyncio.Event()
        report = Supervision(
            opened=lambda name, channels: self._say(f"opened {len(channels)}"),
            lost=lambda name, detail: self._say(f"lost {detail}"),
            ended=lambda name: self._say("ended"),
        )
        self.supervisor = AdapterSupervisor("board", board, wanted, self._sample, report, first_delay_s=0.001)

    def _say(self, text: str) -> None:
        self.log.append(text)
        self.changed.set()

    def _sample(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def seen(self) -> set[str]:
        return {sample.channel for sample in self.samples}


async def test_sampled_and_streaming_channels_are_fed_side_by_side() -> None:
    watch = Watch(Board(), {"t": 1000.0, "v": 1.0})
    task = asyncio.create_task(watch.supervisor.run())
    await watch.until(lambda: watch.seen() == {"t", "v"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert watch.supervisor.connected is False


async def test_a_disconnection_is_reported_once_and_mended() -> None:
    board = Board()
    board.open_errors = [AdapterDisconnected("cable out")] * 3
    board.stream_errors = [AdapterDisconnected("cable out")]
    watch = Watch(board, {"v": 1.0})
    task = asyncio.create_task(watch.supervisor.run())
    await watch.until(lambda: bool(watch.samples))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert watch.log == ["lost cable out", "opened 2", "lost cable out", "opened 2"]
    assert board.opens == board.closes == 5


async def test_a_permanent_error_is_tried_again_too_since_a_device_may_be_replaced() -> None:
    board = Board()
    board.open_errors = [AdapterError("no such bus")]
    watch = Watch(board, {"v": 1.0})
    task = asyncio.create_task(watch.supervisor.run())
    await watch.until(lambda: bool(watch.samples))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert watch.log[0] == "lost no such bus"


async def test_a_source_that_has_ended_ends_its_supervision() -> None:
    board = Board()
    board.end = True
    watch = Watch(board, {"v": 1.0})
    async with asyncio.timeout(10):
        await watch.supervisor.run()
    assert watch.log == ["opened 2", "ended"]


async def test_channels_can_be_wanted_while_it_runs_and_hardware_can_be_plugged() -> None:
    board = Board()
    watch = Watch(board, {"v": 1.0})
    task = asyncio.create_task(watch.supervisor.run())
    await watch.until(lambda: watch.seen() == {"v"})
    watch.supervisor.want({"t": 1000.0})
    await watch.until(lambda: watch.seen() == {"v", "t"})
    board.plugged.put_nowait([ChannelInfo("new", ChannelKind.SAMPLED)])
    watch.supervisor.want({"new": 1000.0})
    await watch.until(lambda: "new" in watch.seen())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert board.opens == 1
