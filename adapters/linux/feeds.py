"""Sources that speak through a descriptor: the loop watches it, and what is readable goes to the sink with no thread in between."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Protocol

from edge_runtime.errors import AdapterError
from edge_runtime.ports import SampleSink
from edge_runtime.types import Sample


class Feed(Protocol):
    """One descriptor and the channels that come out of it."""

    def start(self, channels: Collection[str]) -> tuple[int, list[Sample]]:
        """The descriptor to watch, and what is known already. May block. Raises AdapterError, AdapterDisconnected."""
        ...

    def take(self) -> list[Sample]:
        """What can be read now; never blocks. Raises AdapterDisconnected when the device is gone."""
        ...

    def stop(self) -> None:
        """Ends what `start` began, also when that failed; may block, never raises."""
        ...


class Feeding:
    """One running stream over one or more feeds; made and used on the loop."""

    def __init__(self, sink: SampleSink) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._descriptors: list[int] = []

    def add(self, feed: Feed, descriptor: int, first: list[Sample]) -> None:
        """Hands over what is known and watches from now on; nothing when the stream has ended meanwhile."""
        if self._done.done():
            return
        for sample in first:
            self._sink(sample)
        self._loop.add_reader(descriptor, partial(self._take, feed))
        self._descriptors.append(descriptor)

    async def ended(self) -> None:
        """Waits for the end. Raises what ended it."""
        await self._done

    def end(self, error: AdapterError | None = None) -> None:
        """Watches no more; twice is fine."""
        for descriptor in self._descriptors:
            self._loop.remove_reader(descriptor)
        self._descriptors.clear()
        if not self._done.done():
            if error is None:
                self._done.cancel()
            else:
                self._done.set_exception(error)

    def _take(self, feed: Feed) -> None:
        try:
            samples = feed.take()
        except AdapterError as err:
            self.end(err)
            return
        for sample in samples:
            self._sink(sample)
