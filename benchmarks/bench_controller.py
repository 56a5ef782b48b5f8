"""The controller's ingest: decoded, stored and committed, beside a bare executemany or COPY of the same rows in the same run.

    python benchmarks/bench_controller.py [--records N]

`messages` are envelopes of one batch as gateways send them live, `drain` full envelopes as they come after an outage. What is measured
is the writer's own work, from payload to commit (fsync on), in groups as the sink makes them; the broker is in `bench uplink`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, row
from cloud_sync.controller.address import parse_address
from cloud_sync.controller.ingest import Message, RecordWriter, commit, open_writer
from cloud_sync.controller.migrations import migrate
from cloud_sync.messages import encode_envelope
from edge_runtime.records import Record, RecordKind, encode_batch, encode_body
from edge_runtime.testing.postgres import PostgresServer, find_postgres, postgres_server

_GATEWAYS = 20
_GROUP = 64
_COLUMNS = 10


class _Batch:
    def __init__(self, boot: str, records: Sequence[Record]) -> None:
        self.boot, self.first_seq, self.count, self.data = boot, records[0].seq, len(records), encode_batch(records)


def run(records: int = 100_000) -> dict[str, Any]:
    """SQLite always, PostgreSQL when it is installed."""
    rows = _sqlite(records)
    if find_postgres() is not None:
        with postgres_server(durable=True) as server:
            rows += _postgres(server, records)
    return {"rows": rows}


def _sqlite(records: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = _bare_sqlite(folder / "bare.db", records)
        live = _rate(str(folder / "live.db"), _messages(records, 20, 1))
        drain = _rate(str(folder / "drain.db"), _messages(records, 250, 8))
        again = _rate(str(folder / "drain.db"), _messages(records, 250, 8))
    return [
        row("SQLite: live messages of 20 records", live, "records/s", bare, ">= 20,000"),
        row("SQLite: drain after an outage, 2,000 records a message", drain, "records/s", bare, ">= 50,000"),
        row("SQLite: the same messages again, all duplicates", again, "records/s", bare),
    ]


def _postgres(server: PostgresServer, records: int) -> list[Row]:
    bare = asyncio.run(_bare_postgres(server.database(), records))
    url = server.database()
    live = _rate(server.database(), _messages(records, 20, 1))
    drain = _rate(url, _messages(records, 250, 8))
    again = _rate(url, _messages(records, 250, 8))
    return [
        row("PostgreSQL: live messages of 20 records", live, "records/s", bare, ">= 10,000"),
        row("PostgreSQL: drain after an outage, 2,000 records a message", drain, "records/s", bare),
        row("PostgreSQL: the same messages again, all duplicates", again, "records/s", bare),
    ]


def _messages(records: int, batch: int, batches: int) -> list[Message]:
    """Envelopes of `batches` batches of `batch` records each, the gateways taking turns."""
    made, step = [], batch * batches
    for number in range(records // step):
        gateway, start = number % _GATEWAYS, number // _GATEWAYS * step
        parts = [_Batch("b", _records(start + offset, batch)) for offset in range(0, step, batch)]
        made.append(Message(f"fl/v1/bench/g/gw{gateway}/up/tlm", encode_envelope("b", parts), _nothing))
    return made


def _records(start: int, count: int) -> list[Record]:
    stamp = 1_700_000_000_000_000_000
    body = ["vibration", "simulated", start, 0.125, "m/s2", 0]
    return [Record(seq, RecordKind.READING, seq, stamp + seq * 1_000_000, 1000, encode_body(body)) for seq in range(start, start + count)]


def _rate(url: str, messages: Sequence[Message]) -> float:
    address = parse_address(url)
    migrate(address)
    writer = open_writer(address)
    try:
        return _timed(lambda: _take(writer, messages))
    finally:
        writer.close()


def _take(writer: RecordWriter, messages: Sequence[Message]) -> int:
    done = [commit(writer, messages[start : start + _GROUP], 1) for start in range(0, len(messages), _GROUP)]
    return sum(part.offered for part in done)


def _bare_sqlite(path: Path, records: int) -> float:
    """The reference: the same rows, ready made, by executemany with the same settings, and no index but the key."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        """PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE records (tenant, gateway, boot, seq, kind, mono_ns, wall_ns,
        wall_err_ns, body, received_wall_ns, PRIMARY KEY (tenant, gateway, boot, seq)) WITHOUT ROWID"""
    )
    groups = list(_rows(records))

    def insert() -> int:
        for group in groups:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(f"INSERT INTO records VALUES ({', '.join('?' * _COLUMNS)})", group)
            db.execute("COMMIT")
        return sum(map(len, groups))

    rate = _timed(insert)
    db.close()
    return rate


async def _bare_postgres(url: str, records: int) -> float:
    """The reference: the same rows, ready made, by COPY straight into a table with no index but the key."""
    from cloud_sync.controller.postgres import connect

    db = await connect(parse_address(url))
    await db.execute(
        """CREATE TABLE records (tenant varchar(64), gateway varchar(64), boot varchar(64), seq bigint, kind varchar(16), mono_ns bigint,
        wall_ns bigint, wall_err_ns bigint, body bytea, received_wall_ns bigint, PRIMARY KEY (tenant, gateway, boot, seq))"""
    )
    groups = list(_rows(records))
    started = time.perf_counter()
    for group in groups:
        await db.copy_records_to_table("records", records=group)
    rate = sum(map(len, groups)) / (time.perf_counter() - started)
    await db.close()
    return round(rate)


def _rows(records: int, group: int = 5000) -> Iterator[list[tuple[Any, ...]]]:
    for start in range(0, records, group):
        gateway = f"gw{start // group % _GATEWAYS}"
        made = _records(start, group)
        yield [("bench", gateway, "b", r.seq, str(r.kind), r.mono_ns, r.wall_ns, r.wall_err_ns, bytes(r.body), 1) for r in made]


def _timed(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    count = work()
    return round(count / (time.perf_counter() - started))


def _nothing() -> None:
    return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    print(json.dumps(run(parser.parse_args().records), indent=2))
