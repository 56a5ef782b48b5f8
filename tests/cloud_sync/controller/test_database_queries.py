"""What the REST API asks the database: pages without gaps or repeats, bodies as JSON can hold them, bounds that cannot be passed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, text

from cloud_sync.controller import queries
from cloud_sync.controller.engine import Database, open_database
from cloud_sync.controller.ingest import Origin, RecordWriter
from cloud_sync.controller.schema import certificates, desired, documents
from edge_runtime.errors import InputError
from edge_runtime.records import Record, RecordKind, encode_body

GW = Origin("acme", "gw", "b1")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def write(database: Database, fill: Callable[[RecordWriter], None]) -> None:
    def work() -> None:
        writer = database.writer()
        with writer.transaction():
            fill(writer)
            writer.settle()
        writer.close()

    await asyncio.to_thread(work)


def record(seq: int, wall_ns: int, kind: str = RecordKind.READING, body: object = None) -> Record:
    return Record(seq, kind, seq, wall_ns, -1, encode_body(body))


async def every_page(database: Database, limit: int, **options: Any) -> list[tuple[int, str, int]]:
    found, after = [], ""
    while True:
        page = await queries.records(database.engine, "acme", "gw", after=after, limit=limit, **options)
        assert len(page["records"]) <= limit
        found += [(row["wall_ns"], row["boot"], row["seq"]) for row in page["records"]]
        after = page["next"]
        if not after:
            return found


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_have_no_gaps_and_no_repeats_also_when_times_are_equal(database: Database, limit: int) -> None:
    first = [record(seq, seq // 5) for seq in range(23)]
    other = [record(seq, seq % 4, RecordKind.DECISION if seq % 3 else RecordKind.ACTION) for seq in range(9)]

    def fill(writer: RecordWriter) -> None:
        writer.insert(GW, first, 1)
        writer.insert(Origin("acme", "gw", "b0"), other, 2)
        writer.insert(Origin("acme", "neighbour", "b0"), first, 2)
        writer.insert(Origin("rival", "gw", "b0"), first, 2)

    await write(database, fill)
    expected = sorted([(r.wall_ns, "b1", r.seq) for r in first] + [(r.wall_ns, "b0", r.seq) for r in other])
    assert await every_page(database, limit) == expected
    assert await every_page(database, limit, since=1, until=3) == [row for row in expected if 1 <= row[0] < 3]
    decisions = sorted((r.wall_ns, "b0", r.seq) for r in other if r.kind == RecordKind.DECISION)
    for kind in ("decision", "d"):
        assert await every_page(database, limit, kind=kind) == decisions
    assert await every_page(database, limit, kind="reading") == [row for row in expected if row[1] == "b1"]
    assert await every_page(database, limit, since=-(2**80), until=2**80) == expected


async def test_bodies_are_what_json_can_hold(database: Database) -> None:
    nested: object = "core"
    for _ in range(200):
        nested = [nested]
    bodies = {
        1: (RecordKind.READING, ["vibration", "plant", 1, 0.5, "m/s2", 0, None, 1600.0, b"\x00\x01"]),
        2: (RecordKind.DECISION, {"rule": "overheat", "score": float("nan"), 3: [float("inf"), True, None]}),
        3: (RecordKind.NOTICE, nested),
        4: ("x", msgspec.msgpack.Ext(5, b"?")),
    }

    def fill(writer: RecordWriter) -> None:
        writer.insert(GW, [record(seq, seq, kind, body) for seq, (kind, body) in bodies.items()], 9)
        writer.insert(GW, [Record(5, "r", 5, 5, 5, msgspec.Raw(b"\xc1"))], 9)
        writer.insert(GW, [Record(6, "r", 6, 6, 6, msgspec.Raw(b"\x91" * 100_000 + b"\xc0"))], 9)

    await write(database, fill)
    page = await queries.records(database.engine, "acme", "gw")
    json.dumps(page, allow_nan=False)
    reading, decision, _, unknown, damaged, deep = page["records"]
    assert reading == {
        "boot": "b1",
        "seq": 1,
        "kind": "reading",
        "mono_ns": 1,
        "wall_ns": 1,
        "wall_err_ns": -1,
        "received_wall_ns": 9,
        "body": {
            "channel": "vibration",
            "source": "plant",
            "seq": 1,
            "value": 0.5,
            "unit": "m/s2",
            "quality": 0,
            "source_wall_ns": None,
            "rate_hz": 1600.0,
            "block": "AAE=",
        },
    }
    assert decision["body"] == {"rule": "overheat", "score": None, "3": [None, True, None]}
    assert (unknown["kind"], unknown["body"], damaged["body"], deep["body"]) == ("x", None, None, None)


async def test_gateways_by_name_and_link(database: Database) -> None:
    def fill(writer: RecordWriter) -> None:
        for number in range(25):
            writer.set_status(Origin("acme", f"gw-{number:02}", "b"), number % 5 == 0, "1.0", 7)
        writer.set_status(Origin("rival", "gw-00", "b"), True, "1.0", 7)
        state = {"v": 1, "ledger": {"offered": 3}, "status": {"deployment": {"revision": 4}, "junk": "x" * 20_000}}
        writer.set_state(Origin("acme", "gw-03", "b"), 1, json.dumps(state), 8)
        writer.set_state(Origin("acme", "gw-04", "b"), 1, "[1e999]", 8)

    await write(database, fill)
    seen, after = [], ""
    while page := await queries.gateways(database.engine, "acme", after=after, limit=4):
        seen += [row["gateway"] for row in page]
        after = page[-1]["gateway"]
    assert seen == [f"gw-{number:02}" for number in range(25)]
    online = await queries.gateways(database.engine, "acme", online=True)
    assert [row["gateway"] for row in online] == ["gw-00", "gw-05", "gw-10", "gw-15", "gw-20"]
    assert len(await queries.gateways(database.engine, "acme", online=False)) == 20
    listed = (await queries.gateways(database.engine, "acme", after="gw-02", limit=1))[0]["state"]
    assert listed == {"ledger": {"offered": 3}, "status": {"deployment": {"revision": 4}}, "cut": True}
    whole = await queries.gateway(database.engine, "acme", "gw-03")
    assert whole is not None
    assert len(whole["state"]["status"]["junk"]) == 20_000
    assert await queries.gateway(database.engine, "acme", "nobody") is None
    odd = await queries.gateway(database.engine, "acme", "gw-04")
    assert odd is not None
    assert odd["state"] == {}


async def test_the_accounts_of_a_gateway(database: Database) -> None:
    def fill(writer: RecordWriter) -> None:
        writer.insert(Origin("acme", "gw", "old"), [record(seq, 0) for seq in (1, 2, 5)], 1)
        writer.insert(GW, [record(seq, 0) for seq in range(10, 20)], 2)
        writer.insert(GW, [record(seq, 0) for seq in range(15, 25)], 2)
        writer.quarantine(GW, 30, "unreadable", b"x", 3)
        writer.set_state(GW, 1, '{"ledger": {"dropped": {"evicted": 2}}}', 4)

    await write(database, fill)
    for recount in (False, True):
        assert await queries.accounts(database.engine, "acme", "gw", recount=recount) == {
            "tenant": "acme",
            "gateway": "gw",
            "rows": 18,
            "duplicates": 5,
            "boots": {
                "old": {"rows": 3, "min_seq": 1, "max_seq": 5, "holes": 2},
                "b1": {"rows": 15, "min_seq": 10, "max_seq": 24, "holes": 0},
            },
            "holes": 2,
            "quarantined": 1,
            "dropped": {"evicted": 2},
        }
    [batch] = await queries.quarantined(database.engine, "acme", "gw")
    assert batch == {"boot": "b1", "first_seq": 30, "reason": "unreadable", "received_wall_ns": 3}
    assert await queries.totals(database.engine) == {"rows": 18, "duplicates": 5, "quarantined": 1}
    assert (await queries.accounts(database.engine, "acme", "nobody"))["rows"] == 0


async def test_the_history_of_a_gateways_deployments(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(insert(documents).values(digest="sha256:x", text="", created_by="ada", created_wall_ns=1))
        for revision in range(1, 6):
            row = {
                "tenant": "acme",
                "gateway": "gw",
                "revision": revision,
                "digest": "sha256:x",
                "expires_wall_ns": 1,
                "message": b"signed",
            }
            await connection.execute(insert(desired).values(row | {"created_by": "ada", "created_wall_ns": revision}))
        held = {"serial": "1", "tenant": "acme", "gateway": "gw", "sha256": "", "not_before_wall_ns": 0, "not_after_wall_ns": 9}
        await connection.execute(insert(certificates).values(held))
    history = await queries.desired(database.engine, "acme", "gw", limit=3)
    assert [row["revision"] for row in history] == [5, 4, 3]
    assert "message" not in history[0]
    assert [row["revision"] for row in await queries.desired(database.engine, "acme", "gw", before=3)] == [2, 1]


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"limit": 1001}, {"kind": "sausage"}, {"after": "x"}, {"after": "1:x:b"}, {"after": "\0"}, {"after": "1"}]
)
async def test_a_question_that_cannot_be_answered_is_refused(database: Database, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        await queries.records(database.engine, "acme", "gw", **options)


async def test_a_cursor_is_only_a_place(database: Database) -> None:
    assert await queries.records(database.engine, "acme", "gw", after=f"{2**90}:{-(2**90)}:' OR 1=1 --\0") == {"records": [], "next": ""}


@pytest.mark.parametrize("name", ["\0", "a\ud800", "", "'", "x" * 10_000])
async def test_a_name_that_nobody_has_finds_nothing(database: Database, name: str) -> None:
    engine = database.engine
    assert await queries.gateways(engine, "acme", after=name) == []
    assert await queries.gateway(engine, "acme", name) is None
    assert (await queries.records(engine, "acme", name))["records"] == []
    assert await queries.desired(engine, "acme", name) == await queries.quarantined(engine, "acme", name) == []
    assert (await queries.accounts(engine, "acme", name))["rows"] == 0


async def test_the_questions_use_the_indexes(tmp_path) -> None:
    database = await open_database(tmp_path / "c.db")
    plans = {
        "kind = 'd' AND kind <> 'r'": "records_by_kind (tenant=? AND gateway=? AND kind=?)",
        "wall_ns >= 5": "records_by_time (tenant=? AND gateway=? AND wall_ns>?)",
    }
    async with database.engine.connect() as connection:
        for condition, expected in plans.items():
            query = f"EXPLAIN QUERY PLAN SELECT * FROM records WHERE tenant = 'a' AND gateway = 'g' AND {condition}"
            plan = await connection.execute(text(f"{query} ORDER BY wall_ns, boot, seq LIMIT 5"))
            [step] = [row.detail for row in plan]
            assert expected in step
    await database.close()
