"""Keeps one adapter alive: opens it, polls or streams its channels, and after a disconnection opens it again with back-off.

It knows nothing of readings: samples go to the sink it was given.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import AdapterDisconnected, EdgeRuntimeError
from edge_runtime.ports import HotPlug, PlatformAdapter, SampledSensors, SampleSink, StreamingSensors
from edge_runtime.types import ChannelInfo, ChannelKind

log = logging.getLogger(__name__)

_MAX_DELAY_S = 30.0
_OPEN_TIMEOUT_S = 20.0
_READ_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Supervision:
    """What a supervisor reports back: `(adapter name, channels)` at every opening and change, `(name, detail)` at a loss."""

    opened: Callable[[str, Sequence[ChannelInfo]], None]
    lost: Callable[[str, str], None]
    ended: Callable[[str], None]


class AdapterSupervisor:
    """Runs one adapter until cancelled, or until its source has ended for good."""

    def __init__(
        self,
        name: str,
        adapter: PlatformAdapter,
        wanted: Mapping[str, float],
        sink: SampleSink,
        supervision: Supervision,
        first_delay_s: float = 0.5,
    ) -> None:
        self.name = name
        self.adapter = adapter
        self.wanted = dict(wanted)
        self.connected = False
        self.detail = "not opened yet"
        self._sink = sink
        self._report = supervision
        self._changed = asyncio.Event()
        self._first_delay_s = first_delay_s

    def want(self, wanted: Mapping[str, float]) -> None:
        """Sets the physical channels to read, with their rates in Hz; takes effect at once, also while streaming."""
        if self.wanted != wanted:
            self.wanted = dict(wanted)
            self._changed.set()

    async def run(self) -> None:
        """Opens, feeds the sink, and tries again after every failure; full jitter, never faster than it fails."""
        delay_s = self._first_delay_s
        try:
            while True:
                try:
                    await self._open()
                    delay_s = self._first_delay_s
                    if await self._feed():
                        self.detail = "ended"
                        self._report.ended(self.name)
                        return
                except (EdgeRuntimeError, OSError, TimeoutError) as err:
                    self._lose(err)
                finally:
                    await self._close()
                await asyncio.sleep(random.uniform(delay_s / 2, delay_s))
                delay_s = min(_MAX_DELAY_S, delay_s * 2)
        finally:
            self.connected = False

    async def _open(self) -> None:
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            await self.adapter.open()
        if not self.connected:
            log.info("adapter opened adapter=%s channels=%d", self.name, len(self.adapter.channels()))
        self.connected, self.detail = True, "open"
        self._report.opened(self.name, self.adapter.channels())

    async def _feed(self) -> bool:
        """True when a streaming source has ended for good."""
        while True:
            self._changed.clear()
            ended = await self._feed_once()
            if ended is not None:
                return ended

    async def _feed_once(self) -> bool | None:
        """One round with the channels wanted now; None when the wish or the hardware changed, True when all sources ended."""
        work = [asyncio.create_task(job, name=f"{self.name}:{label}") for label, job in self._jobs()]
        watch: list[asyncio.Task[Any]] = [asyncio.create_task(self._changed.wait(), name=f"{self.name}:change")]
        if isinstance(self.adapter, HotPlug):
            watch.append(asyncio.create_task(self._watch(self.adapter), name=f"{self.name}:hotplug"))
        pending: set[asyncio.Task[Any]] = {*work, *watch}
        try:
            while not self._changed.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if work and all(task.done() for task in work):
                    return True
            return None
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _jobs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        kinds = {info.channel: info.kind for info in self.adapter.channels()}
        streaming = [channel for channel in self.wanted if kinds.get(channel) is ChannelKind.STREAMING]
        if streaming and isinstance(self.adapter, StreamingSensors):
            yield "stream", self.adapter.stream(streaming, self._sink)
        if isinstance(self.adapter, SampledSensors):
            rates: dict[float, list[str]] = {}
            for channel, rate_hz in self.wanted.items():
                if kinds.get(channel) is ChannelKind.SAMPLED:
                    rates.setdefault(rate_hz, []).append(channel)
            for rate_hz, channels in rates.items():
                yield f"poll:{rate_hz:g}Hz", self._poll(self.adapter, channels, 1.0 / rate_hz)

    async def _poll(self, adapter: SampledSensors, channels: Sequence[str], period_s: float) -> None:
        """Reads at a fixed rate, without drift and without catching up after a stall."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                samples = await adapter.read(channels)
            for sample in samples:
                self._sink(sample)
            now = loop.time()
            due += period_s
            if due < now:
                due = now + period_s - (now - due) % period_s
            await asyncio.sleep(due - now)

    async def _watch(self, adapter: HotPlug) -> None:
        async for channels in adapter.changes():
            self._report.opened(self.name, channels)
            self._changed.set()

    def _lose(self, err: BaseException) -> None:
        detail = str(err) or type(err).__name__
        if self.connected or self.detail != detail:
            level = logging.WARNING if isinstance(err, (AdapterDisconnected, TimeoutError)) else logging.ERROR
            log.log(level, "adapter lost adapter=%s error=%s", self.name, detail)
            self._report.lost(self.name, detail)
        self.connected, self.detail = False, detail

    async def _close(self) -> None:
        with suppress(EdgeRuntimeError, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.adapter.close()
