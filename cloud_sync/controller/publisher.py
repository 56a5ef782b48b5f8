"""Tells gateways what they shall run, and notes what became of it: dn/desired and dn/meta retained, up/state taken in, files served.

The database says what is wanted; the broker only rings. All is published again at every connection, for a broker may have forgotten,
and whenever a gateway reports an older revision than the one wanted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cloud_sync.backoff import full_jitter_s
from cloud_sync.cancellation import stoppable
from cloud_sync.controller import audit
from cloud_sync.controller.blob_server import BlobServer
from cloud_sync.controller.schema import desired, gateways
from cloud_sync.controller.signing import Repository
from cloud_sync.controller.sink import SinkTransport
from cloud_sync.messages import decode_state
from cloud_sync.topics import ROOT, GatewayTopics, parse_uplink
from edge_runtime.errors import DeadlineExceeded, InputError, TransportError
from edge_runtime.ports import TransportSession
from edge_runtime.types import DeploymentPhase

_log = logging.getLogger(__name__)
_RECONNECT_MAX_S = 2.0
_AGAIN_S = 60.0
_MAX_REPORTS = 10_000
_PACE = 200  # retained messages between two breaths of the loop
_PHASES = {phase.value for phase in DeploymentPhase} - {DeploymentPhase.FACTORY.value}
_ENDS = ("confirmed", "reverted", "refused", "superseded")
_VERDICTS = ("confirmed", "reverted", "refused")
_STRANGE_S = 60.0


class Publisher:
    """Runs until cancelled, on a connection of its own."""

    def __init__(self, transport: SinkTransport, engine: AsyncEngine, repository: Repository, tenant: str) -> None:
        self._transport = transport
        self._engine = engine
        self._repository = repository
        self._tenant = tenant
        self._blobs = BlobServer(repository, engine, tenant)
        self._due: set[str] = set()
        self._meta_due = False
        self._reports: asyncio.Queue[tuple[str, str, int, Mapping[str, Any]]] = asyncio.Queue(_MAX_REPORTS)
        self._wake = asyncio.Event()
        self._seen: dict[str, tuple[str, int]] = {}
        self._told: dict[str, float] = {}
        self._strange: dict[str, float] = {}
        self.published = 0

    def deployed(self, gateway: str) -> None:
        """A gateway has a new desired revision in the database."""
        self._due.add(gateway)
        self._wake.set()

    def refreshed(self) -> None:
        """The repository has a new timestamp."""
        self._meta_due = True
        self._wake.set()

    async def run(self) -> None:
        """Connects, publishes, listens, reconnects."""
        attempt = 0
        while True:
            try:
                session = await self._transport.connect()
                attempt = 0
                await stoppable(self._serve(session))
            except* (TransportError, DeadlineExceeded, SQLAlchemyError, OSError) as group:
                _log.warning("publisher_link_down reason=%r", str(group.exceptions[0]))
            await asyncio.sleep(full_jitter_s(attempt, 0.2, _RECONNECT_MAX_S, random.random))
            attempt += 1

    async def _serve(self, session: TransportSession) -> None:
        try:
            await session.subscribe(f"{ROOT}/{self._tenant}/g/+/up/state", self._on_state)
            await session.subscribe(f"{ROOT}/{self._tenant}/g/+/up/blob/req", self._blobs.receive, qos=0)
            self._due |= await self._every_gateway()
            self._meta_due = True
            self._wake.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish(session), name="publish")
                tasks.create_task(self._note_reports(), name="reports")
                tasks.create_task(self._blobs.run(session), name="blobs")
                tasks.create_task(_raise_when_closed(session), name="watch")
        finally:
            await session.close()

    # -- down -------------------------------------------------------------------------------------------------------------

    async def _publish(self, session: TransportSession) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, set()
            meta_due, self._meta_due = self._meta_due, False
            try:
                await self._publish_meta(session, await self._every_gateway() if meta_due else due)
                await self._publish_desired(session, due)
            except BaseException:
                self._due |= due
                self._meta_due |= meta_due
                raise

    async def _publish_meta(self, session: TransportSession, names: set[str]) -> None:
        if not names:
            return
        timestamp = await asyncio.to_thread((self._repository.metadata_dir / "timestamp.json").read_bytes)
        for count, name in enumerate(sorted(names), start=1):
            await session.publish(GatewayTopics(self._tenant, name).meta, timestamp, retain=True)
            if count % _PACE == 0:
                await asyncio.sleep(0)

    async def _publish_desired(self, session: TransportSession, names: set[str]) -> None:
        for name in sorted(names):
            row = await self._wanted(name)
            if row is not None:
                await session.publish(GatewayTopics(self._tenant, name).desired, row.message, retain=True)
                self._told[name] = time.monotonic()
                self.published += 1

    async def _wanted(self, name: str) -> Row[Any] | None:
        query = select(desired).where(desired.c.tenant == self._tenant, desired.c.gateway == name)
        async with self._engine.connect() as connection:
            return (await connection.execute(query.order_by(desired.c.revision.desc()).limit(1))).one_or_none()

    async def _every_gateway(self) -> set[str]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(gateways.c.gateway).where(gateways.c.tenant == self._tenant))
            return {row.gateway for row in rows}

    # -- up ---------------------------------------------------------------------------------------------------------------

    def _on_state(self, topic: str, payload: bytes) -> None:
        try:
            origin, state = parse_uplink(topic), decode_state(payload)
        except InputError:
            return
        told = state.status.get("deployment")
        if isinstance(told, dict) and not self._reports.full():
            self._reports.put_nowait((origin.gateway, state.boot, state.seq, told))

    async def _note_reports(self) -> None:
        while True:
            gateway, boot, seq, told = await self._reports.get()
            before = self._seen.get(gateway)
            if before is not None and before[0] == boot and before[1] >= seq:
                continue
            self._seen[gateway] = (boot, seq)
            await self._note(gateway, told)

    async def _note(self, gateway: str, told: Mapping[str, Any]) -> None:
        revision, phase = told.get("revision"), told.get("phase")
        if not isinstance(revision, int) or not isinstance(phase, str) or not 0 <= revision < 2**63:
            return
        mine = (desired.c.tenant == self._tenant, desired.c.gateway == gateway)
        async with self._engine.begin() as connection:
            newest = await connection.scalar(select(func.max(desired.c.revision)).where(*mine)) or 0
            if phase in _PHASES:
                reason = ": ".join(text for text in (str(told.get("reason") or ""), str(told.get("message") or "")) if text)[:2000]
                await self._keep(connection, gateway, revision, str(told.get("digest")), phase, reason.replace("\0", ""))
        if revision < newest and time.monotonic() - self._told.get(gateway, float("-inf")) > _AGAIN_S:
            self.deployed(gateway)

    async def _keep(self, connection: AsyncConnection, gateway: str, revision: int, digest: str, phase: str, reason: str) -> None:
        """Notes a phase; a verdict goes into the audit log too, also that on a revision which was never offered here."""
        mine = (desired.c.tenant == self._tenant, desired.c.gateway == gateway, desired.c.revision == revision, desired.c.digest == digest)
        changed = (desired.c.phase != phase) | (desired.c.reason != reason)
        open_or_same = desired.c.phase.not_in(_ENDS) | (phase in _VERDICTS)
        values = {"phase": phase, "reason": reason, "phase_wall_ns": time.time_ns()}
        noted = (await connection.execute(update(desired).where(*mine, changed, open_or_same).values(values))).rowcount > 0
        if phase in _VERDICTS and (noted or await self._is_strange(connection, gateway, phase, mine)):
            detail = {"revision": revision, "digest": digest[:80], "reason": reason[:1000], "offered": noted}
            await audit.append(connection, gateway, phase, f"{self._tenant}/{gateway}", detail)

    async def _is_strange(self, connection: AsyncConnection, gateway: str, phase: str, mine: tuple[ColumnElement[bool], ...]) -> bool:
        """Whether a refused offer is none of this controller's; told of once a minute, for a gateway may say so in a loop."""
        if phase != "refused" or (await connection.execute(select(desired.c.revision).where(*mine))).one_or_none() is not None:
            return False
        now_s = time.monotonic()
        if now_s - self._strange.get(gateway, float("-inf")) < _STRANGE_S:
            return False
        self._strange[gateway] = now_s
        return True


async def _raise_when_closed(session: TransportSession) -> None:
    raise TransportError(await session.closed())
