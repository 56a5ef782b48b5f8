"""A real gateway in a real process, on the demo's plant; brokers and sinks beside it where a test asks for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.controller.broker import free_port
from edge_runtime.demo.stage import Stage

WAIT_S = 30.0


class Site(Stage):
    """A stage on which tests wait for facts."""

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status for which the condition holds."""
        deadline = time.monotonic() + WAIT_S
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            status = await self.status()
            if status.get("ready") and condition(status):
                return status
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {WAIT_S:g} s; last status: {status}; log: {self.log()[-2000:]}")

    def log(self) -> str:
        """What the gateway has logged so far."""
        path = self.log_path("gateway")
        return path.read_text() if path.exists() else ""

    def edit(self, name: str, old: str, new: str) -> None:
        """Changes one of the two documents."""
        path = self.directory / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Prepared, nothing started; everything that was started ends with the test."""
    stage = Site(tmp_path, free_port())
    stage.prepare()
    try:
        yield stage
    finally:
        await stage.close()
