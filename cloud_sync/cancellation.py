"""A stop that comes in the same moment as a link's end: a group of tasks would then tell of the link alone, and the stop would be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def stoppable(job: Coroutine[Any, Any, T]) -> T:
    """What `job` returns or raises; when the caller is cancelled, always CancelledError, once the job has ended too."""
    task = asyncio.ensure_future(job)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise
    return task.result()
