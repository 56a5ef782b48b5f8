"""Pushes a model onto a node: checked, sent, tried in a boot of its own, tested there, and confirmed or taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from adapters.node.interface import Node, Progress
from adapters.node.messages import ModelState
from adapters.node.upload import Image, Phase, after_boot, check, image, move
from edge_runtime.errors import AdapterDisconnected, AdapterError

Verdict = Callable[[Node], Awaitable[bool]]
"""Whether the model on trial does what it should."""

_BOOT_TIMEOUT_S = 10.0
_RETRY_S = 0.05


class Outcome(msgspec.Struct, frozen=True):
    """How a push ended and what runs now."""

    phase: Phase
    image: Image
    running: ModelState
    reason: str = ""


async def push(node: Node, blob: bytes, *, progress: Progress, verdict: Verdict | None = None, confirm_s: int = 60) -> Outcome:
    """Returns with the model confirmed or rolled back.

    Raises InputError before anything is sent, NodeRefused when the node does not take it, AdapterDisconnected when the link goes:
    what runs is then what ran before, or goes back to it by itself when `confirm_s` is over.
    """
    wanted = image(blob)
    hello = await node.hello()
    check(wanted, slot_bytes=hello.slot_bytes, arena_bytes=hello.arena_bytes, highest_confirmed=hello.highest_confirmed)
    phase = Phase.CHECKED
    await node.upload(blob, wanted.version, progress)
    phase = move(phase, Phase.UPLOADED)
    await node.trial(confirm_s)
    phase = move(phase, Phase.ON_TRIAL)
    running = await after_reset(node, hello.boots)
    phase = after_boot(phase, wanted, running)
    if phase is not Phase.ON_TRIAL:
        return Outcome(phase, wanted, running, "the node came back without the new model" if phase is Phase.ROLLED_BACK else "")
    good, reason = await _judge(node, verdict or infers)
    if good:
        await node.confirm()
        return Outcome(move(phase, Phase.CONFIRMED), wanted, await node.model())
    await node.rollback()
    return Outcome(move(phase, Phase.ROLLED_BACK), wanted, await node.model(), reason)


async def after_reset(node: Node, boots_before: int, timeout_s: float = _BOOT_TIMEOUT_S) -> ModelState:
    """The model that runs once the node has booted again. Raises AdapterDisconnected when it does not come back in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if (await node.hello()).boots != boots_before:
                        return await node.model()
                except AdapterError:  # what a booting node lets pass is asked again
                    pass
                await asyncio.sleep(_RETRY_S)
    except TimeoutError as err:
        raise AdapterDisconnected(
            f"the node did not come back within {timeout_s:g} s of its reset; unconfirmed, it returns to the model before by itself"
        ) from err


async def infers(node: Node) -> bool:
    """The least that a model has to do: one inference, with as many outputs as it says."""
    return len((await node.infer(bytes((await node.model()).inputs))).outputs) == (await node.model()).outputs


async def _judge(node: Node, verdict: Verdict) -> tuple[bool, str]:
    try:
        return (True, "") if await verdict(node) else (False, "the model on trial did not pass its test")
    except AdapterDisconnected:
        raise
    except AdapterError as err:
        return False, str(err)
