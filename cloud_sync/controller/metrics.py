"""What the controller tells a monitoring system, as OpenMetrics 1.0 text: the fleet from the database, the sink and the API from memory.

Counts are per tenant, never per gateway: a fleet of ten thousand is not ten thousand time series. It serves nothing itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, and_, case, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cloud_sync.controller import schema
from cloud_sync.controller.sink import Sink
from edge_runtime import __version__

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PREFIX = "edge_controller"
_SOON_NS = 7 * 86_400 * 10**9
_MAX_ROUTES = 500
_NS = 1e9

Labels = tuple[tuple[str, str], ...]


class ApiRequests:
    """Counts the REST API's requests: call `observe` once per request, with the route's template and not its path."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[tuple[str, str], float] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answer. Routes beyond the first 500 are counted together."""
        key = (method, route)
        if key not in self.seconds and len(self.seconds) >= _MAX_ROUTES:
            key = ("other", "other")
        self.counts[(*key, status)] += 1
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `kind` is counter, gauge or info. A counter's samples get `_total`, a unit is the name's ending."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Labels, float], ...]
    unit: str = ""


@dataclass(slots=True)
class Snapshot:
    """Everything at one moment, in the order in which it is shown."""

    families: list[Family] = field(default_factory=list)

    def add(self, name: str, kind: str, about: str, samples: Iterable[tuple[Mapping[str, object], Any]], unit: str = "") -> None:
        kept = tuple((tuple((key, str(value)) for key, value in labels.items()), float(value)) for labels, value in samples)
        if kept:
            self.families.append(Family(f"{_PREFIX}_{name}", kind, about, kept, unit))


async def snapshot(engine: AsyncEngine, sink: Sink | None = None, requests: ApiRequests | None = None) -> Snapshot:
    """Asks the database, the sink and the API's counters."""
    found = Snapshot()
    found.add("build", "info", "The program.", [({"version": __version__}, 1)])
    async with engine.connect() as connection:
        await _gateways(found, connection)
        await _telemetry(found, connection)
        await _deployments(found, connection)
        await _certificates(found, connection)
    if sink is not None:
        _sink(found, sink)
    if requests is not None:
        _requests(found, requests)
    return found


def render(found: Snapshot) -> str:
    """OpenMetrics text, ending with `# EOF`."""
    lines: list[str] = []
    for family in found.families:
        lines.append(f"# TYPE {family.name} {family.kind}")
        if family.unit:
            lines.append(f"# UNIT {family.name} {family.unit}")
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
        lines += [f"{family.name}{suffix}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "\n".join([*lines, "# EOF", ""])


async def _gateways(found: Snapshot, connection: AsyncConnection) -> None:
    table = schema.gateways
    query = select(table.c.tenant, table.c.online, func.count(), func.sum(table.c.duplicates)).group_by(table.c.tenant, table.c.online)
    rows = (await connection.execute(query)).all()
    links = [({"tenant": tenant, "link": "online" if online else "offline"}, count) for tenant, online, count, _ in rows]
    found.add("gateways", "gauge", "Gateways that joined or were heard of, by the state of their link.", links)
    duplicates: Counter[str] = Counter()
    for tenant, _, _, count in rows:
        duplicates[tenant] += int(count)
    found.add("duplicates", "counter", "Records that came again and were not stored twice.", _by_tenant(duplicates.items()))


async def _telemetry(found: Snapshot, connection: AsyncConnection) -> None:
    boots, quarantine, counters = schema.boots, schema.quarantine, schema.counters
    rows = await connection.execute(select(boots.c.tenant, func.sum(boots.c.rows)).group_by(boots.c.tenant))
    found.add("records", "counter", "Records stored.", _by_tenant(tuple(row) for row in rows))
    held = select(quarantine.c.tenant, func.count()).group_by(quarantine.c.tenant)
    batches = (tuple(row) for row in await connection.execute(held))
    found.add("quarantined_batches", "gauge", "Batches kept that could not be read.", _by_tenant(batches))
    rejected = await connection.scalar(select(counters.c.value).where(counters.c.name == "messages_rejected"))
    found.add("messages_rejected", "counter", "Messages and batches that could not be read.", [({}, rejected or 0)])
    sizes = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        "postgresql": "SELECT pg_database_size(current_database())",
    }
    size = await connection.scalar(text(sizes[connection.dialect.name]))
    found.add("database_bytes", "gauge", "What the database occupies.", [({}, size)], "bytes")


async def _deployments(found: Snapshot, connection: AsyncConnection) -> None:
    table = schema.desired
    newest = select(table.c.tenant, table.c.gateway, func.max(table.c.revision).label("revision")).group_by(table.c.tenant, table.c.gateway)
    last = newest.subquery()
    same = and_(table.c.tenant == last.c.tenant, table.c.gateway == last.c.gateway, table.c.revision == last.c.revision)
    query = select(table.c.tenant, table.c.phase, func.count()).join(last, same).group_by(table.c.tenant, table.c.phase)
    phases = [({"tenant": tenant, "phase": phase}, count) for tenant, phase, count in await connection.execute(query)]
    found.add("deployments", "gauge", "Gateways by what became of the newest deployment that they were offered.", phases)


async def _certificates(found: Snapshot, connection: AsyncConnection) -> None:
    table, now = schema.certificates, time.time_ns()
    valid = table.c.revoked_wall_ns == 0
    newest = select(table.c.tenant, table.c.gateway, func.max(table.c.not_after_wall_ns).label("ends")).where(valid)
    held = newest.group_by(table.c.tenant, table.c.gateway).subquery()
    state = case((held.c.ends <= now, "expired"), (held.c.ends <= now + _SOON_NS, "expiring"), else_="valid")
    query: Select[Any] = select(held.c.tenant, state.label("state"), func.count(), func.min(held.c.ends)).group_by(held.c.tenant, "state")
    rows = (await connection.execute(query)).all()
    states = [({"tenant": tenant, "state": name}, count) for tenant, name, count, _ in rows]
    found.add("certificates", "gauge", "Gateways by their newest certificate; expiring: within 7 days.", states)
    ends: dict[str, int] = {}
    for tenant, name, _, end in rows:
        if name != "expired":
            ends[tenant] = min(end, ends.get(tenant, end))
    stamps = [({"tenant": tenant}, end / _NS) for tenant, end in ends.items()]
    found.add("certificate_next_expiry_timestamp_seconds", "gauge", "When the next valid certificate expires.", stamps, "seconds")


def _sink(found: Snapshot, sink: Sink) -> None:
    found.add("sink_connected", "gauge", "1 while the sink is connected to the broker.", [({}, sink.connected)])
    found.add("sink_store_up", "gauge", "0 while the database cannot be written.", [({}, sink.store_up)])
    found.add("sink_store_failures", "counter", "Commits that failed and were tried again.", [({}, sink.store_failures)])
    found.add("sink_messages", "counter", "Messages committed since the start.", [({}, sink.messages)])
    found.add("sink_shed", "counter", "Messages thrown away for want of memory; gateways send them again.", [({}, sink.shed)])
    found.add("sink_commits", "counter", "Commits since the start.", [({}, sink.commits)])
    found.add("sink_commit_seconds", "counter", "Time spent in commits.", [({}, sink.commit_s)], "seconds")
    found.add("sink_waiting_bytes", "gauge", "Payload that waits for its commit.", [({}, sink.waiting_bytes)], "bytes")
    found.add("ingest_lag_seconds", "gauge", "How long the oldest uncommitted message has waited.", [({}, sink.lag_s)], "seconds")


def _requests(found: Snapshot, requests: ApiRequests) -> None:
    counts = [({"method": method, "route": route, "code": code}, count) for (method, route, code), count in requests.counts.items()]
    found.add("api_requests", "counter", "Answers of the REST API.", counts)
    spent = [({"method": method, "route": route}, seconds) for (method, route), seconds in requests.seconds.items()]
    found.add("api_request_seconds", "counter", "Time spent answering.", spent, "seconds")


def _by_tenant(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Mapping[str, object], Any]]:
    return [({"tenant": tenant}, int(count)) for tenant, count in rows]


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
