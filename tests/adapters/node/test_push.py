"""Pushing models onto an emulated node, over both links: it always ends with a model that runs, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from adapters.coap.node import CoapNode
from adapters.firmware.emulator import Emulator
from adapters.microcontroller.node import SerialNode
from adapters.node.interface import Node
from adapters.node.messages import NodeReading, NodeRefused, Notice, Result, Source, Status
from adapters.node.push import after_reset, push
from adapters.node.upload import Phase
from edge_runtime.errors import AdapterDisconnected, InputError
from models.export_c import factory
from models.export_c.export import pack
from models.export_c.network import Rounding

pytestmark = pytest.mark.slow

MakeNode = Callable[[], Node]


class Heard:
    """Keeps what a node says by itself."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.lost: list[str] = []

    def on_reading(self, reading: NodeReading) -> None: ...

    def on_result(self, result: Result) -> None: ...

    def on_notice(self, notice: Notice) -> None:
        self.notices.append(notice)

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)


def blob(version: int, **options: Any) -> bytes:
    return pack(factory.network(), Rounding.HALF_EVEN, name="pushed", version=version, **options).data


@pytest.fixture(params=["uart", "coap"])
def make_node(request: pytest.FixtureRequest, board: Emulator) -> MakeNode:
    if request.param == "uart":
        return lambda: SerialNode(board.serial_url)
    return lambda: CoapNode(f"coap://127.0.0.1:{board.coap_port}", timeout_s=6.0)  # a lost datagram is sent again after 2 to 3 s


@pytest.fixture
async def node(make_node: MakeNode) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        made = make_node()
        await made.open(Heard())
        stack.push_async_callback(made.close)
        yield made


def silent(done: int, total: int) -> None: ...


async def running(node: Node, version: int, *, on_trial: bool = False) -> None:
    state = await node.model()
    assert (state.version, state.on_trial) == (version, on_trial)
    assert len((await node.infer(bytes(state.inputs))).outputs) == state.outputs


async def test_a_pushed_model_is_tried_confirmed_and_stays_after_a_reset(node: Node, board: Emulator) -> None:
    sent: list[tuple[int, int]] = []
    image = blob(2)
    outcome = await push(node, image, progress=lambda done, total: sent.append((done, total)))
    assert outcome.phase is Phase.CONFIRMED
    assert sent[-1] == (len(image), len(image))
    boots = (await node.hello()).boots
    board.reset()
    assert (await after_reset(node, boots)).version == 2
    await running(node, 2)


async def test_a_model_that_fails_its_test_is_taken_back(node: Node) -> None:
    async def never(tried: Node) -> bool:
        assert (await tried.model()).on_trial
        return False

    outcome = await push(node, blob(2), progress=silent, verdict=never)
    assert outcome.phase is Phase.ROLLED_BACK
    assert outcome.running.source is Source.FACTORY
    await running(node, 1)


async def test_an_older_version_is_refused_before_a_byte_is_sent_and_by_the_node_too(node: Node) -> None:
    await push(node, blob(5), progress=silent)
    with pytest.raises(InputError, match="--version 6"):
        await push(node, blob(5), progress=silent)
    with pytest.raises(NodeRefused) as caught:
        await node.upload(blob(4), 4, silent)
    assert caught.value.status is Status.DOWNGRADE
    await running(node, 5)


async def test_a_flipped_bit_and_a_foreign_key_are_refused_by_the_node(node: Node) -> None:
    broken = bytearray(blob(2))
    broken[200] ^= 1
    for image, status in ((bytes(broken), Status.CORRUPT), (blob(2, key=bytes(32)), Status.SIGNATURE)):
        with pytest.raises(NodeRefused) as caught:
            await node.upload(image, 2, silent)
        assert caught.value.status is status
        with pytest.raises(NodeRefused):
            await node.trial(60)
    await running(node, 1)


async def test_an_upload_cut_at_each_step_leaves_what_runs_and_can_start_over(node: Node, make_node: MakeNode) -> None:
    image = blob(2)

    class Cut(Exception):
        pass

    def cut(done: int, total: int) -> None:
        raise Cut

    for _ in range(3):
        with pytest.raises(Cut):
            await node.upload(image, 2, cut)
        await node.close()
        await node.open(Heard())
        await running(node, 1)
    assert (await push(node, image, progress=silent)).phase is Phase.CONFIRMED


async def test_a_power_cut_during_the_trial_ends_with_the_factory_model(node: Node, board: Emulator, make_node: MakeNode) -> None:
    async def cut_power(tried: Node) -> bool:
        await asyncio.to_thread(board.power_cycle)
        await tried.close()
        await tried.open(Heard())
        return False

    with pytest.raises((NodeRefused, AdapterDisconnected)):  # nothing is on trial any more
        await push(node, blob(2), progress=silent, verdict=cut_power)
    await node.close()
    await node.open(Heard())
    await running(node, 1)


async def test_a_silent_gateway_loses_its_trial(node: Node) -> None:
    await node.upload(blob(2), 2, silent)
    boots = (await node.hello()).boots
    await node.trial(1)
    await after_reset(node, boots)
    async with asyncio.timeout(20):
        while (await node.model()).version != 1:
            await asyncio.sleep(0.1)


async def test_three_boots_without_a_confirmation_end_the_trial(node: Node, board: Emulator) -> None:
    await node.upload(blob(2), 2, silent)
    versions = []
    boots = (await node.hello()).boots
    await node.trial(600)
    for _ in range(3):
        versions.append((await after_reset(node, boots)).version)
        boots = (await node.hello()).boots
        board.reset()
    versions.append((await after_reset(node, boots)).version)
    assert versions[:2] == [2, 2]
    assert versions[-1] == 1
