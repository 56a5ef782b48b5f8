"""What the REST API and the console ask the database: plain answers as dicts, page by page, never without a bound.

Every list takes `after`, the cursor of the last row that the caller has, and gives at most `limit` rows. Times are nanoseconds.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from cloud_sync.controller import schema
from edge_runtime.errors import InputError
from edge_runtime.records import ReadingBody, RecordKind, decode_body

MAX_LIMIT = 1000
_MAX_LISTED_STATE = 16 * 1024
_MAX_BOOTS = 1000
_MAX_DEPTH = 32
_READING_FIELDS = ReadingBody.__struct_fields__


async def gateways(
    engine: AsyncEngine, tenant: str, *, online: bool | None = None, after: str = "", limit: int = 100
) -> list[dict[str, Any]]:
    """Gateways by name. `after` is the last name seen. A state over 16 KiB is cut to its ledger and deployment."""
    table = schema.gateways
    query = select(table).where(table.c.tenant == tenant, table.c.gateway > _text(after)).order_by(table.c.gateway).limit(_bounded(limit))
    if online is not None:
        query = query.where(table.c.online.is_(online))
    async with engine.connect() as connection:
        return [_gateway(row, _MAX_LISTED_STATE) for row in await connection.execute(query)]


async def gateway(engine: AsyncEngine, tenant: str, name: str) -> dict[str, Any] | None:
    """One gateway with its whole newest state and its certificates, or None."""
    table, certificates, name = schema.gateways, schema.certificates, _text(name)
    of_it = (certificates.c.tenant == tenant, certificates.c.gateway == name)
    async with engine.connect() as connection:
        row = (await connection.execute(select(table).where(table.c.tenant == tenant, table.c.gateway == name))).one_or_none()
        newest = select(certificates).where(*of_it).order_by(certificates.c.not_after_wall_ns.desc()).limit(10)
        held = await connection.execute(newest)
        return None if row is None else _gateway(row) | {"certificates": [dict(found._mapping) for found in held]}


async def accounts(engine: AsyncEngine, tenant: str, name: str, *, recount: bool = False) -> dict[str, Any]:
    """What is held of one gateway: rows, duplicates refused, per boot rows, lowest and highest seq and holes; what it reports as dropped.

    `holes` are the numbers missing between the lowest and the highest seq of a boot. `recount` counts the records themselves,
    which takes as long as there are records.
    """
    rows, known, quarantine, name = schema.boots, schema.gateways, schema.quarantine, _text(name)
    query = select(rows.c.boot, rows.c.rows, rows.c.first_seq, rows.c.last_seq).where(rows.c.tenant == tenant, rows.c.gateway == name)
    query = _recount(tenant, name) if recount else query.order_by(rows.c.first_wall_ns.desc()).limit(_MAX_BOOTS)
    async with engine.connect() as connection:
        found = (await connection.execute(query)).all()
        in_quarantine = select(func.count()).select_from(quarantine).where(quarantine.c.tenant == tenant, quarantine.c.gateway == name)
        quarantined = await connection.scalar(in_quarantine)
        row = (await connection.execute(select(known).where(known.c.tenant == tenant, known.c.gateway == name))).one_or_none()
    boots = {
        boot: {"rows": count, "min_seq": low, "max_seq": high, "holes": high - low + 1 - count}
        for boot, count, low, high in reversed(found)
    }
    ledger = _state(row.state).get("ledger") if row else None
    return {
        "tenant": tenant,
        "gateway": name,
        "rows": sum(boot["rows"] for boot in boots.values()),
        "duplicates": row.duplicates if row else 0,
        "boots": boots,
        "holes": sum(boot["holes"] for boot in boots.values()),
        "quarantined": quarantined,
        "dropped": ledger.get("dropped") if isinstance(ledger, dict) else None,
    }


async def records(
    engine: AsyncEngine,
    tenant: str,
    name: str,
    *,
    kind: str | None = None,
    since: int | None = None,
    until: int | None = None,
    after: str = "",
    limit: int = 100,
) -> dict[str, Any]:
    """Records of one gateway by their time, since <= time < until, bodies decoded: {"records": [...], "next": cursor or ""}.

    `kind` is a RecordKind's name or letter. Raises InputError for an unknown kind or a cursor that is none.
    """
    table, name, limit = schema.records, _text(name), _bounded(limit)
    order = (table.c.wall_ns, table.c.boot, table.c.seq)
    query = select(table).where(table.c.tenant == tenant, table.c.gateway == name).order_by(*order).limit(limit)
    if kind is not None:
        query = query.where(table.c.kind == (letter := _kind(kind)))
        if letter != RecordKind.READING:
            query = query.where(schema.NOT_A_READING)
    if since is not None:
        query = query.where(table.c.wall_ns >= _stamp(since))
    if until is not None:
        query = query.where(table.c.wall_ns < _stamp(until))
    if after:
        cursor = _cursor(after)
        query = query.where(table.c.wall_ns >= cursor[0], tuple_(*order) > tuple_(*cursor))
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).all()
    following = f"{rows[-1].wall_ns}:{rows[-1].seq}:{rows[-1].boot}" if len(rows) == limit else ""
    return {"records": [_record(row) for row in rows], "next": following}


async def desired(engine: AsyncEngine, tenant: str, name: str, *, before: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Every revision offered to one gateway, newest first, without its signed message. `before` is the last revision seen."""
    table, name = schema.desired, _text(name)
    columns = [column for column in table.c if column.name != "message"]
    query = select(*columns).where(table.c.tenant == tenant, table.c.gateway == name)
    if before is not None:
        query = query.where(table.c.revision < before)
    async with engine.connect() as connection:
        rows = await connection.execute(query.order_by(table.c.revision.desc()).limit(_bounded(limit)))
        return [dict(row._mapping) for row in rows]


async def quarantined(engine: AsyncEngine, tenant: str, name: str, *, limit: int = 100) -> list[dict[str, Any]]:
    """Batches of one gateway that could not be read, newest first, without their payload."""
    table, name = schema.quarantine, _text(name)
    query = select(table.c.boot, table.c.first_seq, table.c.reason, table.c.received_wall_ns).where(
        table.c.tenant == tenant, table.c.gateway == name
    )
    async with engine.connect() as connection:
        rows = await connection.execute(query.order_by(table.c.received_wall_ns.desc(), table.c.first_seq.desc()).limit(_bounded(limit)))
        return [dict(row._mapping) for row in rows]


async def totals(engine: AsyncEngine) -> dict[str, int]:
    """Rows, duplicates refused and batches in quarantine, over all gateways."""
    parts = {
        "rows": select(func.coalesce(func.sum(schema.boots.c.rows), 0)),
        "duplicates": select(func.coalesce(func.sum(schema.gateways.c.duplicates), 0)),
        "quarantined": select(func.count()).select_from(schema.quarantine),
    }
    async with engine.connect() as connection:
        return {name: int(await connection.scalar(query) or 0) for name, query in parts.items()}


def _recount(tenant: str, name: str) -> Any:
    table = schema.records
    counted = select(table.c.boot, func.count(), func.min(table.c.seq), func.max(table.c.seq))
    mine = counted.where(table.c.tenant == tenant, table.c.gateway == name).group_by(table.c.boot)
    return mine.order_by(func.min(table.c.received_wall_ns).desc()).limit(_MAX_BOOTS)


def _gateway(row: Row[Any], max_state: int = 1 << 30) -> dict[str, Any]:
    state = _state(row.state)
    if len(row.state) > max_state:
        status = state.get("status")
        deployment = status.get("deployment", {}) if isinstance(status, dict) else {}
        state = {"ledger": state.get("ledger", {}), "status": {"deployment": deployment}, "cut": True}
    return dict(row._mapping) | {"state": state, "labels": _state(row.labels)}


def _state(text: str) -> dict[str, Any]:
    try:
        state = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return {}
    return _plain(state) if isinstance(state, dict) else {}


def _record(row: Row[Any]) -> dict[str, Any]:
    try:
        body = decode_body(msgspec.Raw(row.body))
    except (InputError, RecursionError, ValueError):
        body = None
    if row.kind == RecordKind.READING and isinstance(body, list):
        body = dict(zip(_READING_FIELDS, body, strict=False))
    names = {kind.value: kind.name.lower() for kind in RecordKind}
    stamps = {"mono_ns": row.mono_ns, "wall_ns": row.wall_ns, "wall_err_ns": row.wall_err_ns, "received_wall_ns": row.received_wall_ns}
    return {"boot": row.boot, "seq": row.seq, "kind": names.get(row.kind, row.kind), **stamps, "body": _plain(body)}


def _plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold: bytes (blocks: little-endian float32) as base64, NaN and infinities as None, nothing deeper than 32."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if depth >= _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, depth + 1) for item in value]
    return None


def _kind(text: str) -> str:
    for kind in RecordKind:
        if text in (kind.value, kind.name.lower()):
            return kind.value
    raise InputError(f"expected one of {', '.join(kind.name.lower() for kind in RecordKind)}, got {text[:80]!r}")


def _cursor(text: str) -> tuple[int, str, int]:
    wall_ns, _, rest = text.partition(":")
    seq, _, boot = rest.partition(":")
    try:
        return _stamp(int(wall_ns)), _text(boot), _stamp(int(seq))
    except ValueError as err:
        raise InputError(f"expected `after` as `next` of the page before gave it, got {text[:80]!r}") from err


def _text(name: str) -> str:
    """Without what PostgreSQL refuses even to look for."""
    return name.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _stamp(value: int) -> int:
    return max(-(2**63), min(2**63 - 1, value))


def _bounded(limit: int) -> int:
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"expected a limit of 1 to {MAX_LIMIT}, got {limit}")
    return limit
