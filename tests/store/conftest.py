"""Stores on a real disk, opened under the system clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.clock import SystemClock
from edge_runtime.store import Store

OpenStore = Callable[..., Store]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens stores (by default in `tmp_path/store`) and closes them at the end."""
    opened: list[Store] = []

    def opener(directory: Path | None = None, **options: Any) -> Store:
        opened.append(Store.open(directory or tmp_path / "store", clock=SystemClock(), **options))
        return opened[-1]

    yield opener
    for store in opened:
        await store.close()
