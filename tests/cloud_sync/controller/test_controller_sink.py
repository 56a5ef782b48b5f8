"""The sink: one transaction for many messages, no row twice, and nothing that a hostile message can stop."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from cloud_sync.controller import queries
from cloud_sync.controller.address import parse_address
from cloud_sync.controller.engine import Database, create_engine, open_database
from cloud_sync.controller.ingest import Message, Origin, RecordWriter, commit, open_writer
from cloud_sync.controller.migrations import migrate
from cloud_sync.controller.schema import counters, records
from cloud_sync.controller.sink import Sink
from cloud_sync.loopback import LoopbackBroker, LoopbackTransport
from cloud_sync.messages import decode_ack, encode_envelope, encode_state, encode_status
from cloud_sync.topics import GatewayTopics
from edge_runtime.errors import StoreError
from edge_runtime.records import Record, decode_batch, encode_batch, encode_body

TOPICS = GatewayTopics("acme", "gw")


class Raw(msgspec.Struct):
    first_seq: int
    count: int
    data: bytes
    boot: str = "b"


def message(payload: bytes, topic: str = TOPICS.telemetry) -> Message:
    return Message(topic, payload, lambda: None)


class Store:
    """A database with its tables and a writer, asked between transactions."""

    def __init__(self, url: str) -> None:
        self.address = parse_address(url)
        migrate(self.address)
        self.writer: RecordWriter = open_writer(self.address)

    def ask(self, question: Callable[..., Awaitable[Any]], *arguments: object, **options: object) -> Any:
        return asyncio.run(self._ask(lambda engine: question(engine, *arguments, **options)))

    def rows(self, statement: Select[Any]) -> list[tuple[Any, ...]]:
        async def fetch(engine: AsyncEngine) -> list[tuple[Any, ...]]:
            async with engine.connect() as connection:
                return [tuple(row) for row in await connection.execute(statement)]

        return self.ask(fetch)

    def accounts(self, gateway: str, tenant: str = "acme") -> dict[str, Any]:
        kept = self.ask(queries.accounts, tenant, gateway)
        assert kept == self.ask(queries.accounts, tenant, gateway, recount=True)
        return kept

    def totals(self) -> dict[str, int]:
        return self.ask(queries.totals)

    async def _ask(self, question: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
        engine = create_engine(self.address)
        try:
            return await question(engine)
        finally:
            await engine.dispose()


@pytest.fixture
def db(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.writer.close()


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Iterator[Store]:
    """For what is decided before the database is asked."""
    store = Store(str(tmp_path / "controller.db"))
    yield store
    store.writer.close()


@pytest.fixture
async def open_writer_of(database_url: str) -> AsyncIterator[tuple[Database, RecordWriter]]:
    database = await open_database(database_url)
    writer = database.writer()
    yield database, writer
    writer.close()
    await database.close()


def raw_batch(*records: object) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(records))


HOSTILE = {
    "empty": Raw(0, 1, b""),
    "not zlib": Raw(1, 1, b"garbage"),
    "cut short": Raw(2, 10, encode_batch([Record(2, "r", 0, 0, 0, encode_body([1]))])[:-4]),
    "not records": Raw(3, 1, zlib.compress(b"\xc1\xc1")),
    "bomb": Raw(4, 1, zlib.compress(bytes(64 << 20))),
    "seq over 2^63": Raw(5, 1, raw_batch([2**63, "r", 0, 0, 0, None])),
    "negative seq": Raw(6, 1, raw_batch([-1, "r", 0, 0, 0, None])),
    "time over 64 bits": Raw(7, 1, raw_batch([7, "r", 2**64 - 1, 0, 0, None])),
    "NUL in the kind": Raw(10, 1, raw_batch([10, "\0", 0, 0, 0, None])),
    "wrong count": Raw(8, 5, raw_batch([8, "r", 0, 0, 0, None])),
    "long kind": Raw(9, 1, raw_batch([9, "r" * 1000, 0, 0, 0, None])),
}


def test_records_are_stored_once_and_duplicates_counted(db: Store, make_batch) -> None:
    payload = encode_envelope("b7", [make_batch("b7", 0), make_batch("b7", 10)])
    first = commit(db.writer, [message(payload), message(payload)], 5)
    again = commit(db.writer, [message(payload)], 6)
    assert (first.rows, first.duplicates, again.rows, again.duplicates) == (20, 20, 0, 20)
    assert first.batches[Origin("acme", "gw", "b7")] == [0, 10, 0, 10]
    report = db.accounts("gw")
    assert (report["rows"], report["duplicates"], report["holes"]) == (20, 40, 0)
    assert report["boots"] == {"b7": {"rows": 20, "min_seq": 0, "max_seq": 19, "holes": 0}}
    assert db.totals() == {"rows": 20, "duplicates": 40, "quarantined": 0}


def test_the_row_is_what_the_gateway_recorded(db: Store) -> None:
    record = Record(2**63 - 1, "d", -5, 1_700_000_000_000_000_000, -1, encode_body({"rule": "overheat"}))
    commit(db.writer, [message(encode_envelope("b7", [Raw(2**63 - 1, 1, encode_batch([record]))]))], 99)
    [row] = db.rows(select(records))
    assert row == ("acme", "gw", "b7", 2**63 - 1, "d", -5, 1_700_000_000_000_000_000, -1, bytes(record.body), 99)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_batch_goes_to_quarantine_and_holds_up_nobody(sqlite_db: Store, make_batch, name: str) -> None:
    bad = HOSTILE[name]
    done = commit(
        sqlite_db.writer,
        [message(encode_envelope("b", [bad, make_batch("b", 100)])), message(encode_envelope("c", [make_batch("c", 0)]))],
        1,
    )
    assert (done.rows, done.rejected) == (20, 1)
    assert done.batches[Origin("acme", "gw", "b")] == [bad.first_seq, 100]
    assert done.refused[Origin("acme", "gw", "b")] == [bad.first_seq]
    commit(sqlite_db.writer, [message(encode_envelope("b", [bad]))], 2)
    found = sqlite_db.ask(queries.quarantined, "acme", "gw")
    assert [(batch["boot"], batch["first_seq"]) for batch in found] == [("b", bad.first_seq)]


def test_a_batch_damaged_on_the_way_is_not_acknowledged(sqlite_db: Store, make_batch) -> None:
    batch = make_batch("b", 0)
    payload = bytearray(encode_envelope("b", [batch, make_batch("b", 10)]))
    payload[payload.index(batch.data) + 5] ^= 1
    done = commit(sqlite_db.writer, [message(bytes(payload))], 1)
    assert done.batches[Origin("acme", "gw", "b")] == [10]
    assert sqlite_db.totals() == {"rows": 10, "duplicates": 0, "quarantined": 0}


def test_every_hostile_batch_at_once(db: Store, make_batch) -> None:
    group = [message(encode_envelope("b", [bad])) for bad in HOSTILE.values()]
    done = commit(db.writer, [*group, message(encode_envelope("b", [make_batch("b", 100)]))], 1)
    assert (done.rows, done.rejected, db.totals()["quarantined"]) == (10, len(HOSTILE), len(HOSTILE))


@pytest.mark.parametrize(
    "topic", ["fl/v1/acme/g/a/b/up/tlm", "fl/v1/+/g/gw/up/tlm", "fl/v2/acme/g/gw/up/tlm", "x", "fl/v1/acme/g/gw/dn/ack", ""]
)
def test_a_wrong_topic_is_counted(sqlite_db: Store, make_batch, topic: str) -> None:
    done = commit(sqlite_db.writer, [message(encode_envelope("b", [make_batch("b", 0)]), topic)], 1)
    assert (done.rows, done.rejected) == (0, 1)
    assert sqlite_db.rows(select(counters)) == [("messages_rejected", 1)]


def test_many_unreadable_batches_in_one_message_are_not_all_tried(sqlite_db: Store) -> None:
    done = commit(sqlite_db.writer, [message(encode_envelope("b", [Raw(seq, 1, HOSTILE["bomb"].data) for seq in range(100)]))], 1)
    assert len(done.batches[Origin("acme", "gw", "b")]) == 9


@given(st.lists(st.tuples(st.sampled_from([TOPICS.telemetry, TOPICS.status, TOPICS.state, "junk"]), st.binary(max_size=200)), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages_commit(db: Store, sent: list[tuple[str, bytes]]) -> None:
    assert commit(db.writer, [message(payload, topic) for topic, payload in sent], 1).rows == 0


def test_reports_that_only_look_like_text_hold_up_nobody(db: Store, make_batch) -> None:
    version = encode_status("b", True, "1\0").replace(b"1", b"1")
    state = encode_state("b", 1, 1, {"x": "\0"}, {}).replace(b'"v":1', b'"v":1,"junk":"\xff"')
    assert b"\\u0000" in version
    group = [message(version, TOPICS.status), message(state, TOPICS.state), message(encode_envelope("b", [make_batch("b", 0)]))]
    done = commit(db.writer, group, 1)
    assert (done.rows, done.rejected) == (10, 1)
    [row] = db.ask(queries.gateways, "acme")
    assert (row["version"], row["state"]) == ("1", {})


def test_what_the_database_refuses_for_ever_is_left_out_alone(db: Store, make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that passed every check and that the database cannot hold all the same."""
    monkeypatch.setattr("cloud_sync.controller.ingest.read_batch", lambda batch: decode_batch(batch.data))
    poison = Raw(7, 1, raw_batch([2**63, "r", 0, 0, 0, None]))
    group = [message(encode_envelope("b", [make_batch("b", seq)])) for seq in (100, 200)]
    done = commit(db.writer, [group[0], message(encode_envelope("b", [poison])), group[1]], 1)
    assert (done.rows, done.rejected) == (20, 1)
    assert done.batches[Origin("acme", "gw", "b")] == [100, 200]
    assert db.totals()["rows"] == 20


def test_a_will_ends_only_its_own_boot_and_an_old_state_changes_nothing(db: Store) -> None:
    def status(boot: str, online: bool) -> Message:
        return message(encode_status(boot, online, "1.0"), TOPICS.status)

    def state(boot: str, seq: int) -> Message:
        return message(encode_state(boot, seq, 1, {"dropped": {"evicted": seq}}, {}), TOPICS.state)

    commit(db.writer, [status("old", True), status("new", True), status("old", False)], 1)
    known = db.ask(queries.gateways, "acme")
    assert [(row["boot"], row["online"], row["version"]) for row in known] == [("new", True, "1.0")]
    commit(db.writer, [status("new", False), state("new", 5), state("new", 4)], 2)
    [row] = db.ask(queries.gateways, "acme")
    assert (row["online"], row["state_seq"]) == (False, 5)
    assert db.accounts("gw")["dropped"] == {"evicted": 5}
    commit(db.writer, [state("newer", 1)], 3)
    assert db.ask(queries.gateways, "acme")[0]["state_boot"] == "newer"


def test_an_audit_counts_holes_per_boot(db: Store, make_batch) -> None:
    commit(
        db.writer,
        [message(encode_envelope("b", [make_batch("b", 0), make_batch("b", 30)])), message(encode_envelope("c", [make_batch("c", 5)]))],
        1,
    )
    report = db.accounts("gw")
    assert {boot: facts["holes"] for boot, facts in report["boots"].items()} == {"b": 20, "c": 0}
    assert db.accounts("stranger")["rows"] == 0


def test_a_transaction_that_fails_leaves_nothing(db: Store, make_batch) -> None:
    def interrupted() -> None:
        with db.writer.transaction():
            db.writer.insert(Origin("t", "g", "b"), [Record(1, "r", 0, 0, 0, encode_body(1))], 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert db.totals()["rows"] == 0


async def count(database: Database) -> int:
    async with database.engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(records)) or 0


def listening(broker: LoopbackBroker) -> bool:
    return any("/up/" in topic_filter for session in broker.sessions for topic_filter, _ in session._handlers)


async def test_acknowledgements_follow_the_commit(open_writer_of, make_batch, background, until) -> None:
    database, writer = open_writer_of
    broker = LoopbackBroker()
    sink = Sink(LoopbackTransport(broker), writer)
    background(sink.run())
    await until(lambda: broker.sessions)
    session, acks = await LoopbackTransport(broker).connect(), []
    looks: list[asyncio.Task[int]] = []

    def heard(_topic: str, payload: bytes) -> None:
        acks.append(decode_ack(payload))
        looks.append(asyncio.ensure_future(count(database)))

    await session.subscribe(TOPICS.ack, heard)
    await until(lambda: listening(broker))
    for seq in range(0, 500, 10):
        await session.publish(TOPICS.telemetry, encode_envelope("b", [make_batch("b", seq)]))
    await until(lambda: sum(len(ack.batches) for ack in acks) == 50)
    confirmed = 0
    for ack, rows in zip(acks, await asyncio.gather(*looks), strict=True):
        confirmed += 10 * len(ack.batches)
        assert rows >= confirmed
    assert sink.commits < 50
    assert broker.sessions[0].unacknowledged == 0


class Failing:
    """A writer whose database is away for the first so many transactions."""

    def __init__(self, writer: RecordWriter, failures: int) -> None:
        self.writer, self.failures = writer, failures

    def transaction(self) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise StoreError("the database is away")
        return self.writer.transaction()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


async def test_while_the_database_is_away_nothing_is_acknowledged_and_little_is_kept(
    open_writer_of, make_batch, background, until, monkeypatch
) -> None:
    monkeypatch.setattr("cloud_sync.controller.sink._MAX_WAITING_BYTES", 4096)
    monkeypatch.setattr("cloud_sync.controller.sink._RETRY_MAX_S", 0.01)
    database, writer = open_writer_of
    broker, failing = LoopbackBroker(), Failing(writer, 1_000_000)
    sink = Sink(LoopbackTransport(broker), failing)
    background(sink.run())
    session, acks = await LoopbackTransport(broker).connect(), []
    await session.subscribe(TOPICS.ack, lambda _topic, payload: acks.append(decode_ack(payload)))
    await until(lambda: listening(broker))
    payload = encode_envelope("b", [make_batch("b", 0)])
    for _ in range(200):
        await session.publish(TOPICS.telemetry, payload)
    await session.publish(TOPICS.status, encode_status("b", True), retain=True)
    await until(lambda: sink.store_failures > 3)
    assert (acks, sink.store_up, sink.commits) == ([], False, 0)
    assert sink.shed > 100
    assert sink._waiting_bytes <= 4096
    failing.failures = 0
    await until(lambda: sink.store_up and acks)
    assert await count(database) == 10
    online = [gateway["online"] for gateway in await queries.gateways(database.engine, "acme")]
    while online != [True]:  # the birth that was thrown away comes again with a new session
        await asyncio.sleep(0.01)
        online = [gateway["online"] for gateway in await queries.gateways(database.engine, "acme")]


async def test_the_sink_reconnects(open_writer_of, make_batch, background, until) -> None:
    database, writer = open_writer_of
    broker = LoopbackBroker()
    sink = Sink(LoopbackTransport(broker), Failing(writer, 2))
    background(sink.run())
    session = await LoopbackTransport(broker).connect()
    while not sink.rows:
        await session.publish(TOPICS.telemetry, encode_envelope("b", [make_batch("b", 0)]))
        await asyncio.sleep(0)
    broker.cut()
    await until(lambda: listening(broker))
    assert await count(database) == 10


async def test_what_is_not_for_the_sink_is_not_kept(open_writer_of, background, until) -> None:
    _, writer = open_writer_of
    broker = LoopbackBroker()
    sink = Sink(LoopbackTransport(broker), writer)
    background(sink.run())
    await until(lambda: listening(broker))
    session = await LoopbackTransport(broker).connect()
    await session.publish(f"{TOPICS.root}/up/blob/req", b"x")
    await session.publish(TOPICS.status, encode_status("b", True))
    await until(lambda: sink.commits and not broker.sessions[0].unacknowledged)
    assert sink.messages == 1


def test_a_body_is_stored_as_it_came_also_when_it_is_of_a_kind_unknown_here(db: Store) -> None:
    body = msgspec.Raw(b"\xc7\x01\x05x")
    commit(db.writer, [message(encode_envelope("b", [Raw(1, 1, encode_batch([Record(1, "n", 0, 0, 0, body)]))]))], 1)
    assert db.rows(select(records.c.body)) == [(bytes(body),)]
