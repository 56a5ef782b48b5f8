"""The sink: one transaction for many messages, no row twice, and nothing that a hostile message can stop."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sync.controller.database import Database, Origin, audit
from cloud_sync.controller.sink import Message, Sink, commit
from cloud_sync.loopback import LoopbackBroker, LoopbackTransport
from cloud_sync.messages import decode_ack, encode_envelope, encode_state, encode_status
from cloud_sync.topics import GatewayTopics
from edge_runtime.errors import StoreError
from edge_runtime.records import Record, encode_batch, encode_body

TOPICS = GatewayTopics("acme", "gw")


class Raw(msgspec.Struct):
    first_seq: int
    count: int
    data: bytes
    boot: str = "b"


def message(payload: bytes, topic: str = TOPICS.telemetry) -> Message:
    return Message(topic, payload, lambda: None)


@pytest.fixture
def db(tmp_path: Path):
    database = Database(tmp_path / "sink.db")
    yield database
    database.close()


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
    "wrong count": Raw(8, 5, raw_batch([8, "r", 0, 0, 0, None])),
    "long kind": Raw(9, 1, raw_batch([9, "r" * 1000, 0, 0, 0, None])),
}


def test_records_are_stored_once_and_duplicates_counted(db: Database, make_batch) -> None:
    payload = encode_envelope("b7", [make_batch("b7", 0), make_batch("b7", 10)])
    first = commit(db, [message(payload), message(payload)], 5)
    again = commit(db, [message(payload)], 6)
    assert (first.rows, first.duplicates, again.rows, again.duplicates) == (20, 20, 0, 20)
    assert first.batches[Origin("acme", "gw", "b7")] == [0, 10, 0, 10]
    report = audit(db, "gw", "acme")
    assert (report["rows"], report["duplicates"], report["holes"]) == (20, 40, 0)
    assert report["boots"] == {"b7": {"rows": 20, "min_seq": 0, "max_seq": 19, "holes": 0}}
    assert db.totals() == {"rows": 20, "duplicates": 40, "quarantined": 0}


def test_the_row_is_what_the_gateway_recorded(db: Database) -> None:
    record = Record(2**63 - 1, "d", -5, 1_700_000_000_000_000_000, -1, encode_body({"rule": "overheat"}))
    commit(db, [message(encode_envelope("b7", [Raw(2**63 - 1, 1, encode_batch([record]))]))], 99)
    row = sqlite3.connect(db.path).execute("SELECT * FROM records").fetchone()
    assert row == ("acme", "gw", "b7", 2**63 - 1, "d", -5, 1_700_000_000_000_000_000, -1, bytes(record.body), 99)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_batch_goes_to_quarantine_and_holds_up_nobody(db: Database, make_batch, name: str) -> None:
    bad = HOSTILE[name]
    done = commit(db, [message(encode_envelope("b", [bad, make_batch("b", 100)])), message(encode_envelope("c", [make_batch("c", 0)]))], 1)
    assert (done.rows, done.rejected) == (20, 1)
    assert done.batches[Origin("acme", "gw", "b")] == [bad.first_seq, 100]
    assert done.refused[Origin("acme", "gw", "b")] == [bad.first_seq]
    commit(db, [message(encode_envelope("b", [bad]))], 2)
    assert [(boot, seq) for boot, seq, _ in db.quarantined("acme", "gw")] == [("b", bad.first_seq)]


def test_a_batch_damaged_on_the_way_is_not_acknowledged(db: Database, make_batch) -> None:
    batch = make_batch("b", 0)
    payload = bytearray(encode_envelope("b", [batch, make_batch("b", 10)]))
    payload[payload.index(batch.data) + 5] ^= 1
    done = commit(db, [message(bytes(payload))], 1)
    assert done.batches[Origin("acme", "gw", "b")] == [10]
    assert db.totals() == {"rows": 10, "duplicates": 0, "quarantined": 0}


@pytest.mark.parametrize(
    "topic", ["fl/v1/acme/g/a/b/up/tlm", "fl/v1/+/g/gw/up/tlm", "fl/v2/acme/g/gw/up/tlm", "x", "fl/v1/acme/g/gw/dn/ack", ""]
)
def test_a_wrong_topic_is_counted(db: Database, make_batch, topic: str) -> None:
    done = commit(db, [message(encode_envelope("b", [make_batch("b", 0)]), topic)], 1)
    assert (done.rows, done.rejected) == (0, 1)
    assert db.counters() == {"messages_rejected": 1}


def test_many_unreadable_batches_in_one_message_are_not_all_tried(db: Database) -> None:
    done = commit(db, [message(encode_envelope("b", [Raw(seq, 1, HOSTILE["bomb"].data) for seq in range(100)]))], 1)
    assert len(done.batches[Origin("acme", "gw", "b")]) == 9


@given(st.lists(st.tuples(st.sampled_from([TOPICS.telemetry, TOPICS.status, TOPICS.state, "junk"]), st.binary(max_size=200)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_messages_commit(tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, bytes]]) -> None:
    database = Database(tmp_path_factory.mktemp("any") / "sink.db")
    assert commit(database, [message(payload, topic) for topic, payload in sent], 1).rows == 0
    database.close()


def test_a_will_ends_only_its_own_boot_and_an_old_state_changes_nothing(db: Database) -> None:
    def status(boot: str, online: bool) -> Message:
        return message(encode_status(boot, online, "1.0"), TOPICS.status)

    def state(boot: str, seq: int) -> Message:
        return message(encode_state(boot, seq, 1, {"dropped": {"evicted": seq}}, {}), TOPICS.state)

    commit(db, [status("old", True), status("new", True), status("old", False)], 1)
    assert [(row["boot"], row["online"], row["version"]) for row in db.gateways()] == [("new", True, "1.0")]
    commit(db, [status("new", False), state("new", 5), state("new", 4)], 2)
    [row] = db.gateways()
    assert (row["online"], row["state_seq"]) == (False, 5)
    assert audit(db, "gw", "acme")["dropped"] == {"evicted": 5}
    commit(db, [state("newer", 1)], 3)
    assert db.gateways()[0]["state_boot"] == "newer"


def test_an_audit_counts_holes_per_boot(db: Database, make_batch) -> None:
    commit(
        db,
        [message(encode_envelope("b", [make_batch("b", 0), make_batch("b", 30)])), message(encode_envelope("c", [make_batch("c", 5)]))],
        1,
    )
    report = audit(db, "gw", "acme")
    assert {boot: facts["holes"] for boot, facts in report["boots"].items()} == {"b": 20, "c": 0}
    assert audit(db, "stranger")["rows"] == 0


def test_a_transaction_that_fails_leaves_nothing(db: Database, make_batch) -> None:
    def interrupted() -> None:
        with db.transaction():
            db.insert(Origin("t", "g", "b"), [Record(1, "r", 0, 0, 0, encode_body(1))], 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert db.totals()["rows"] == 0


def test_a_file_that_is_no_sink_database_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"junk\.db"):
        Database(junk)
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as other:
        other.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="schema version 99"):
        Database(newer)


def test_the_database_waits_for_the_disk(db: Database) -> None:
    opened = db._db
    assert opened.execute("PRAGMA synchronous").fetchone() == (2,)
    assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_acknowledgements_follow_the_commit(db: Database, make_batch, background, until) -> None:
    broker = LoopbackBroker()
    sink = Sink(LoopbackTransport(broker), db)
    background(sink.run())
    await until(lambda: broker.sessions)
    session, acks = await LoopbackTransport(broker).connect(), []

    def heard(_topic: str, payload: bytes) -> None:
        rows = sqlite3.connect(db.path).execute("SELECT count(*) FROM records").fetchone()[0]
        acks.append((decode_ack(payload), rows))

    await session.subscribe(TOPICS.ack, heard)
    await until(lambda: broker.sessions[0]._handlers)
    for seq in range(0, 500, 10):
        await session.publish(TOPICS.telemetry, encode_envelope("b", [make_batch("b", seq)]))
    await until(lambda: sum(len(ack.batches) for ack, _ in acks) == 50)
    confirmed = 0
    for ack, rows in acks:
        confirmed += 10 * len(ack.batches)
        assert rows >= confirmed
    assert sink.commits < 50
    assert broker.sessions[0].unacknowledged == 0


async def test_the_sink_reconnects_and_a_full_disk_only_delays(db: Database, make_batch, background, until, monkeypatch) -> None:
    broker, failures, insert = LoopbackBroker(), 2, db.insert

    def full(*arguments) -> int:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        return insert(*arguments)

    monkeypatch.setattr(db, "insert", full)
    sink = Sink(LoopbackTransport(broker), db)
    background(sink.run())
    session = await LoopbackTransport(broker).connect()
    while not sink.rows:
        await session.publish(TOPICS.telemetry, encode_envelope("b", [make_batch("b", 0)]))
    broker.cut()
    await until(lambda: any(s._handlers for s in broker.sessions))
    assert db.totals()["rows"] == 10


def test_a_body_is_stored_as_it_came_also_when_it_is_of_a_kind_unknown_here(db: Database) -> None:
    body = msgspec.Raw(b"\xc7\x01\x05x")
    commit(db, [message(encode_envelope("b", [Raw(1, 1, encode_batch([Record(1, "n", 0, 0, 0, body)]))]))], 1)
    assert sqlite3.connect(db.path).execute("SELECT body FROM records").fetchone() == (bytes(body),)
