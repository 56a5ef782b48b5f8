"""Who did what: an append-only log in which every row holds the hash of the one before, so that tampering is seen.

The chain alone shows a change, a gap or another order. Rows cut off at its end are seen by the counter `audit_head`, which rises with
every row; whoever can rewrite the whole database can rewrite both, so keep `head` elsewhere too where that matters.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller.schema import audit, counters
from cloud_sync.controller.upsert import upsert
from edge_runtime.errors import InputError

_HEAD = "audit_head"
_START = "0" * 64
_MAX_NAME = 64
_MAX_SUBJECT = 160
_MAX_DETAIL = 64 * 1024
_PAGE = 1000
_json = msgspec.json.Encoder(order="deterministic")


async def append(
    connection: AsyncConnection, actor: str, action: str, subject: str, detail: Mapping[str, Any], *, wall_ns: int | None = None
) -> None:
    """Adds a row in the caller's transaction, and makes other appenders wait until that ends: append last, keep it short.

    Names that are too long are cut. Raises InputError for a detail that is no JSON or over 64 KiB.
    """
    seq = await _next_seq(connection)
    before = await connection.execute(select(audit.c.hash).where(audit.c.seq == seq - 1))
    row = {
        "seq": seq,
        "wall_ns": time.time_ns() if wall_ns is None else wall_ns,
        "actor": _text(actor, _MAX_NAME),
        "action": _text(action, _MAX_NAME),
        "subject": _text(subject, _MAX_SUBJECT),
        "detail": _detail(detail),
        "previous": before.scalar_one_or_none() or _START,
    }
    await connection.execute(insert(audit).values(row | {"hash": row_hash(row)}))


async def verify(connection: AsyncConnection) -> int | None:
    """The seq of the first row that is missing, changed or out of order, or None when all is as it was written."""
    expected, previous = 1, _START
    while rows := (await connection.execute(select(audit).where(audit.c.seq >= expected).order_by(audit.c.seq).limit(_PAGE))).all():
        for row in rows:
            if row.seq != expected or row.previous != previous or row.hash != row_hash(dict(row._mapping)):
                return expected
            expected, previous = expected + 1, row.hash
    seq, _ = await head(connection)
    early = await connection.scalar(select(audit.c.seq).where(audit.c.seq < 1).limit(1))
    return None if seq == expected - 1 and early is None else min(expected, seq + 1)


async def head(connection: AsyncConnection) -> tuple[int, str]:
    """(seq, hash) of the newest row as they should be: what to write down elsewhere. (0, zeros) of an empty log."""
    seq = await connection.scalar(select(counters.c.value).where(counters.c.name == _HEAD)) or 0
    found = await connection.scalar(select(audit.c.hash).where(audit.c.seq == seq))
    return seq, found or _START


def row_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 over the row as a JSON array and the hash before it."""
    fields = [row[name] for name in ("seq", "wall_ns", "actor", "action", "subject", "detail", "previous")]
    return hashlib.sha256(_json.encode(fields)).hexdigest()


async def _next_seq(connection: AsyncConnection) -> int:
    """The head after this row. The counter's row stays locked until the transaction ends, so numbers have no holes."""
    statement = upsert(connection, counters, {"name": _HEAD, "value": 1}, {"value": counters.c.value + 1})
    return int((await connection.execute(statement.returning(counters.c.value))).scalar_one())


def _text(text: str, limit: int) -> str:
    clean = text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _detail(detail: Mapping[str, Any]) -> str:
    try:
        text = _json.encode(dict(detail)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as err:
        raise InputError(f"the detail of an audit entry must be JSON: {err}") from err
    if len(text) > _MAX_DETAIL:
        raise InputError(f"the detail of an audit entry has at most {_MAX_DETAIL} characters, got {len(text)}")
    return text
