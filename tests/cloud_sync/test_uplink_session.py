"""The uplink over the in-process broker, with every fault that it can inject."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cloud_sync.loopback import LoopbackBroker, LoopbackTransport
from cloud_sync.messages import decode_envelope, decode_state, decode_status, encode_ack
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import VirtualClock
from edge_runtime.errors import InputError, StoreFull
from edge_runtime.types import Priority

TOPICS = GatewayTopics("acme", "gw")


@dataclass
class Controller:
    """Acknowledges what it hears, when told to."""

    broker: LoopbackBroker
    heard: list[tuple[str, int]] = field(default_factory=list)
    acknowledge: bool = True
    refuse: bool = False

    async def listen(self) -> None:
        session = await LoopbackTransport(self.broker).connect()
        await session.subscribe(TOPICS.telemetry, self._take)

    def _take(self, _topic: str, payload: bytes) -> None:
        envelope = decode_envelope(payload)
        seqs = [batch.first_seq for batch in envelope.batches]
        self.heard += [(envelope.boot, seq) for seq in seqs]
        if self.acknowledge:
            self.broker.deliver(TOPICS.ack, encode_ack(envelope.boot, seqs, seqs if self.refuse else ()), retain=False)


@dataclass
class Link:
    broker: LoopbackBroker
    controller: Controller
    outbox: object
    clock: VirtualClock
    changes: list[tuple[bool, str]]
    slept: list[float]
    start: Callable[..., Uplink]
    uplink: Uplink | None = None

    def published(self, topic: str) -> list[bytes]:
        return [payload for name, payload in self.broker.published if name == topic]


@pytest.fixture
async def link(memory_outbox, background) -> Link:
    broker = LoopbackBroker()
    controller = Controller(broker)
    await controller.listen()
    clock, changes, slept = VirtualClock(), [], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    def start(outbox=memory_outbox, **more: object) -> Uplink:
        settings = UplinkSettings(**{"ack_timeout_s": 0.05, **more.pop("settings", {})})  # type: ignore[arg-type, dict-item]
        more = {"sleep": sleep, "on_link": lambda up, detail: changes.append((up, detail)), "version": "1.2.3"} | more
        uplink = Uplink(outbox, LoopbackTransport(broker), TOPICS, "b7", clock, settings=settings, **more)  # type: ignore[arg-type]
        background(uplink.run())
        return uplink

    return Link(broker, controller, memory_outbox, clock, changes, slept, start)


async def test_the_outbox_empties_in_order_and_only_by_the_controllers_word(link: Link, make_batch, until) -> None:
    link.outbox.add(*(make_batch("b7", seq) for seq in range(0, 1000, 10)))
    link.controller.acknowledge = False
    uplink = link.start()
    await until(lambda: len(link.controller.heard) >= 100)
    assert len(link.outbox.rows) == 100
    link.controller.acknowledge = True
    await until(lambda: not link.outbox.rows)
    assert link.controller.heard[:100] == [("b7", seq) for seq in range(0, 1000, 10)]
    assert uplink.counters()["batches_acknowledged"] == 100
    assert uplink.counters()["retransmissions"] >= 1
    assert uplink.up


async def test_birth_will_and_state_carry_the_boot(link: Link, until) -> None:
    uplink = link.start(state=lambda: {"ledger": {"dropped": {"evicted": 3}}, "status": {"cpu": 0.5}})
    await until(lambda: link.published(TOPICS.state))
    birth = decode_status(link.published(TOPICS.status)[0])
    assert (birth.boot, birth.online, birth.version) == ("b7", True, "1.2.3")
    state = decode_state(link.published(TOPICS.state)[0])
    assert (state.boot, state.seq, state.ledger["dropped"], state.status["cpu"]) == ("b7", 1, {"evicted": 3}, 0.5)
    uplink.report()
    await until(lambda: len(link.published(TOPICS.state)) == 2)
    assert decode_state(link.published(TOPICS.state)[1]).seq == 2
    link.broker.faults.refuse = "away"
    link.broker.cut()
    await until(lambda: not uplink.up)
    will = decode_status(link.broker.retained[TOPICS.status])
    assert (will.boot, will.online) == ("b7", False)


async def test_a_graceful_stop_says_offline_and_keeps_what_is_pending(link: Link, memory_outbox, make_batch, until) -> None:
    link.controller.acknowledge = False
    memory_outbox.add(make_batch("b7", 0))
    uplink = Uplink(memory_outbox, LoopbackTransport(link.broker), TOPICS, "b7", link.clock)
    running = asyncio.ensure_future(uplink.run())
    await until(lambda: link.controller.heard)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not decode_status(link.broker.retained[TOPICS.status]).online
    assert len(memory_outbox.rows) == 1
    assert not memory_outbox.in_flight
    assert len(link.broker.sessions) == 1  # the controller's own


async def test_a_broker_that_takes_and_forgets_loses_nothing(link: Link, make_batch, until) -> None:
    link.outbox.add(*(make_batch("b7", seq) for seq in range(0, 50, 10)))
    link.broker.faults.forget = True
    uplink = link.start()
    await until(lambda: uplink.counters()["retransmissions"] >= 3)
    assert len(link.outbox.rows) == 5
    link.broker.faults.forget = False
    await until(lambda: not link.outbox.rows)


async def test_a_cut_link_hands_batches_back_and_sends_them_again(link: Link, make_batch, until, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    link.controller.acknowledge = False
    link.outbox.add(make_batch("b7", 0), make_batch("b7", 10))
    link.start()
    await until(lambda: link.controller.heard)
    link.broker.faults.refuse = "no route"
    link.broker.sessions[-1].drop("cable pulled")
    await until(lambda: len(link.slept) > 5)
    assert link.outbox.released
    link.clock.advance(42)
    link.controller.acknowledge, link.broker.faults.refuse = True, ""
    await until(lambda: not link.outbox.rows)
    assert [up for up, _ in link.changes] == [True, False, True]
    assert link.changes[1][1] == "cable pulled"
    lines = [record.message for record in caplog.records if record.message.startswith("link_")]
    assert len(lines) == 3
    assert "after_s=42.0" in lines[2]


async def test_back_off_grows_with_full_jitter_and_starts_again_after_progress(link: Link, make_batch, until) -> None:
    link.broker.faults.refuse = "busy"
    link.start(draw=lambda: 0.5)
    await until(lambda: len(link.slept) >= 9)
    assert link.slept[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    link.broker.faults.refuse = ""
    link.outbox.add(make_batch("b7", 0))
    await until(lambda: not link.outbox.rows)
    link.slept.clear()
    link.broker.faults.refuse = "busy"
    link.broker.sessions[-1].drop("gone")
    await until(lambda: link.slept)
    assert link.slept[0] == 0.5


async def test_acknowledgements_that_make_no_sense_are_counted_and_change_nothing(link: Link, make_batch, until) -> None:
    link.controller.acknowledge = False
    link.outbox.add(make_batch("b7", 0))
    uplink = link.start(settings={"ack_timeout_s": 30})
    await until(lambda: link.controller.heard)
    for payload in (b"", b"{}", b"\xff" * 10, encode_ack("b6", [0]), encode_ack("b7", [5, 6])):
        link.broker.deliver(TOPICS.ack, payload, retain=False)
    assert (uplink.counters()["acks_malformed"], uplink.counters()["acks_unknown"]) == (3, 3)
    assert len(link.outbox.rows) == 1
    for _ in range(3):
        link.broker.deliver(TOPICS.ack, encode_ack("b7", [0]), retain=False)
    await until(lambda: not link.outbox.rows)
    assert uplink.counters()["acks_unknown"] == 5
    assert link.outbox.delivered == 1


async def test_duplicated_deliveries_are_harmless(link: Link, make_batch, until) -> None:
    link.broker.faults.duplicates = 2
    link.outbox.add(*(make_batch("b7", seq) for seq in range(0, 200, 10)))
    uplink = link.start()
    await until(lambda: not link.outbox.rows)
    assert link.outbox.delivered == 20
    assert uplink.counters()["batches_acknowledged"] == 20


async def test_a_refused_batch_leaves_the_outbox_and_is_counted(link: Link, make_batch, until) -> None:
    link.controller.refuse = True
    link.outbox.add(make_batch("b7", 0))
    uplink = link.start()
    await until(lambda: not link.outbox.rows)
    assert uplink.counters()["batches_refused"] == 1


async def test_boots_before_this_one_are_sent_under_their_own_name(link: Link, make_batch, until) -> None:
    link.outbox.add(make_batch("b1", 0), make_batch("b7", 0), make_batch("b7", 10))
    link.start()
    await until(lambda: not link.outbox.rows)
    assert link.controller.heard == [("b1", 0), ("b7", 0), ("b7", 10)]


async def test_the_window_bounds_what_is_unacknowledged(link: Link, make_batch, until) -> None:
    link.controller.acknowledge = False
    link.outbox.add(*(make_batch("b7", seq) for seq in range(0, 4000, 10)))
    link.start(settings={"ack_timeout_s": 30, "max_batches": 10, "lanes": 100})
    await until(lambda: len(link.controller.heard) == 320)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(link.outbox.in_flight) == 32 * 10  # the broker's Receive Maximum of 32 messages


async def test_a_batch_too_large_for_the_broker_stays_and_lets_the_others_pass(link: Link, make_batch, until, caplog) -> None:
    link.broker.faults.max_packet_bytes = 2000
    link.outbox.add(make_batch("b7", 0, 5000), *(make_batch("b7", seq) for seq in range(5000, 5400, 10)))
    uplink = link.start()
    await until(lambda: len(link.outbox.rows) == 1)
    assert next(iter(link.outbox.rows.values())).first_seq == 0
    assert uplink.counters()["batches_too_large"] == 1
    assert "batch_too_large" in caplog.text
    assert all(len(payload) <= 2000 for payload in link.published(TOPICS.telemetry))


async def test_a_spent_budget_holds_bulk_and_never_decisions(link: Link, make_batch, until) -> None:
    uplink = link.start(settings={"max_bytes_per_day": 3000, "max_message_bytes": 1000})
    link.outbox.add(*(make_batch("b7", seq, 10) for seq in range(0, 2000, 10)))
    await until(lambda: uplink.counters()["budget_pauses"] == 1)
    before = uplink.counters()["bytes"]
    link.outbox.add(make_batch("b7", 9000, 1, Priority.EVENT))
    await until(lambda: ("b7", 9000) in link.controller.heard)
    assert before < 3000 + 8 * 1200  # at most one message per lane over
    assert link.outbox.rows
    link.clock.advance(25 * 3600)
    link.outbox.add(make_batch("b7", 9001, 1, Priority.EVENT))
    await until(lambda: uplink.counters()["bytes"] > before + 1000)


async def test_a_budget_needs_an_outbox_that_can_pause(link: Link) -> None:
    class Plain:
        async def peek(self, max_batches: int, after: int = 0) -> list[object]:
            return []

    with pytest.raises(InputError, match="max_bytes_per_day"):
        link.start(outbox=Plain(), settings={"max_bytes_per_day": 1})


async def test_a_store_that_cannot_delete_is_tried_again(link: Link, make_batch, until, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 3
    acknowledge = link.outbox.acknowledge

    async def full(boot: str, first_seqs: list[int]) -> int:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise StoreFull("disk full")
        return await acknowledge(boot, first_seqs)

    monkeypatch.setattr(link.outbox, "acknowledge", full)
    link.outbox.add(make_batch("b7", 0))
    link.start()
    await until(lambda: not link.outbox.rows)
    assert failures < 0


async def test_a_slow_link_and_a_command(link: Link, make_batch, until) -> None:
    commands: list[bytes] = []
    link.broker.faults.delay_s = 0.001
    link.outbox.add(*(make_batch("b7", seq) for seq in range(0, 300, 10)))
    link.start(on_command=lambda topic, payload: commands.append(payload))
    await until(lambda: not link.outbox.rows)
    link.broker.deliver(TOPICS.command, b"ping", retain=False)
    assert commands == [b"ping"]


async def test_a_stop_in_the_moment_in_which_the_link_ends_is_heard(memory_outbox, until) -> None:
    broker = LoopbackBroker()
    for _ in range(20):
        uplink = Uplink(memory_outbox, LoopbackTransport(broker), TOPICS, "b", VirtualClock())
        running = asyncio.ensure_future(uplink.run())
        await until(lambda uplink=uplink: uplink.up)
        broker.cut()
        running.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait((running,))
