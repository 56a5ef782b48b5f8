"""Offers deployments to gateways: judged, numbered, signed by the director key and noted before anyone is told.

A deployment that a gateway cannot run is refused here already, as far as the controller can tell; the gateway judges again. Models are
named by digest, and only by digests that were signed offline.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller import audit
from cloud_sync.controller.context import Context
from cloud_sync.controller.schema import desired, documents, gateways
from edge_runtime.config.check import check_file
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.load import decode
from edge_runtime.config.positions import parse_document
from edge_runtime.errors import ConfigError, InputError, Problem

MAX_DOCUMENT_BYTES = 1024 * 1024
_ATTEMPTS = 5
_ZOO = "zoo:"
_LOCAL_PATH = "expected `digest` or zoo:NAME in a pushed deployment"


class Conflict(InputError):
    """Somebody else pushed meanwhile: the revision is not the one that the caller had seen."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One gateway's new desired revision."""

    gateway: str
    revision: int
    digest: str
    unchanged: bool = False


async def judge(text: str, source: str = "deployment") -> Deployment:
    """The deployment in a text, typed and checked. Raises ConfigError with every problem, as `source:line:key: message`."""
    if len(text.encode()) > MAX_DOCUMENT_BYTES:
        raise InputError(f"a deployment has at most {MAX_DOCUMENT_BYTES} bytes; models travel by digest")
    return await asyncio.to_thread(_judge, text, source)


def digests(deployment: Deployment) -> list[str]:
    """Digests of all the models that a deployment names, canaries included."""
    named = {spec.digest for spec in deployment.models.values() if spec.digest}
    return sorted(named | {spec.canary.digest for spec in deployment.models.values() if spec.canary})


async def offer(
    context: Context, actor: str, names: Sequence[str], text: str, *, days: float = 30.0, expected: int | None = None
) -> list[Offer]:
    """Makes `text` the desired deployment of every gateway in `names`; one that has it already keeps its revision.

    All or none are noted. `expected`: the revision that the caller believes is the newest. Raises InputError, ConfigError, Conflict.
    """
    deployment = await judge(text)
    models = digests(deployment)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    for attempt in range(_ATTEMPTS):
        try:
            async with context.database.engine.begin() as connection:
                offers = await _note(context, connection, actor, names, text, digest, models, days, expected)
            break
        except IntegrityError as err:
            if attempt == _ATTEMPTS - 1:
                raise Conflict("other deployments are being pushed to these gateways; look and push again") from err
    for made in offers:
        if not made.unchanged:
            context.deployed(made.gateway)
    return offers


async def _note(
    context: Context,
    connection: AsyncConnection,
    actor: str,
    names: Sequence[str],
    text: str,
    digest: str,
    models: Sequence[str],
    days: float,
    expected: int | None,
) -> list[Offer]:
    now = context.now_ns()
    if (await connection.execute(select(documents.c.digest).where(documents.c.digest == digest))).one_or_none() is None:
        row = {"digest": digest, "text": text, "created_by": actor, "created_wall_ns": now}
        await connection.execute(insert(documents).values(row))
    offers = []
    for name in sorted(names):
        newest, same = await _newest(context, connection, name, digest)
        if expected is not None and newest != expected:
            raise Conflict(f"{name}: expected revision {expected}, the newest is {newest}; look at it and push again")
        if same:
            offers.append(Offer(name, newest, digest, unchanged=True))
            continue
        revision = context.repository.next_revision(newest)
        message = await asyncio.to_thread(
            context.repository.sign_desired, context.tenant, name, revision, newest, text, models, days * 86_400
        )
        await _supersede(connection, context.tenant, name, now)
        row = {
            "tenant": context.tenant,
            "gateway": name,
            "revision": revision,
            "digest": digest,
            "expires_wall_ns": now + int(days * 86_400e9),
            "message": message,
            "created_by": actor,
            "created_wall_ns": now,
            "phase_wall_ns": now,
        }
        await connection.execute(insert(desired).values(row))
        offers.append(Offer(name, revision, digest))
    for made in offers:
        if not made.unchanged:
            detail = {"revision": made.revision, "digest": digest}
            await audit.append(connection, actor, "push", f"{context.tenant}/{made.gateway}", detail)
    return offers


async def _newest(context: Context, connection: AsyncConnection, name: str, digest: str) -> tuple[int, bool]:
    """The highest revision of a gateway, offered or reported, and whether its desired deployment is this one already.

    A controller restored from an older backup goes on above what the gateway has seen.
    """
    known = await connection.execute(select(gateways.c.state).where(gateways.c.tenant == context.tenant, gateways.c.gateway == name))
    state = known.scalar_one_or_none()
    if state is None:
        raise InputError(f"no gateway `{name}`; list them: edge-runtime fleet list")
    reported = reported_revision(state)
    mine = select(desired).where(desired.c.tenant == context.tenant, desired.c.gateway == name)
    row = (await connection.execute(mine.order_by(desired.c.revision.desc()).limit(1))).one_or_none()
    if row is None:
        return reported, False
    stands = row.digest == digest and row.phase not in ("reverted", "refused") and row.expires_wall_ns > context.now_ns()
    return max(row.revision, reported), stands and reported <= row.revision and row.revision >= context.repository.term[0]


def reported_revision(state: str) -> int:
    """The highest revision that a gateway has reported in its state, or 0."""
    found = reported_deployment(state).get("revision", 0)
    return found if isinstance(found, int) and 0 <= found < 2**62 else 0


def reported_deployment(state: str) -> dict[str, Any]:
    """What a gateway's state says of its deployment; empty when it says nothing."""
    try:
        status = msgspec.json.decode(state).get("status", {})
        found = status.get("deployment", {})
    except (msgspec.MsgspecError, RecursionError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


async def _supersede(connection: AsyncConnection, tenant: str, name: str, now: int) -> None:
    open_phases = ("offered", "staging", "probation")
    where = (desired.c.tenant == tenant, desired.c.gateway == name, desired.c.phase.in_(open_phases))
    await connection.execute(update(desired).where(*where).values(phase="superseded", phase_wall_ns=now))


async def known_gateways(connection: AsyncConnection, tenant: str) -> list[str]:
    """Every gateway of the tenant, by name."""
    rows = await connection.execute(select(gateways.c.gateway).where(gateways.c.tenant == tenant).order_by(gateways.c.gateway))
    return [row.gateway for row in rows]


async def count_gateways(connection: AsyncConnection, tenant: str) -> int:
    """How many gateways the tenant has."""
    return int((await connection.execute(select(func.count()).select_from(gateways).where(gateways.c.tenant == tenant))).scalar_one())


def _judge(text: str, source: str) -> Deployment:
    document = parse_document(text.encode(), source)
    deployment = decode(document, Deployment)
    local = [name for name, spec in deployment.models.items() if spec.path is not None and not spec.path.startswith(_ZOO)]
    if local:
        raise ConfigError([Problem(source, 0, f"models.{name}.path", _LOCAL_PATH) for name in local])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deployment.yaml")
        path.write_text(text)
        problems = [problem for problem in check_file(path) if problem.fatal]
    if problems:
        raise ConfigError([Problem(source, p.line, p.key, p.message) for p in problems])
    return deployment
