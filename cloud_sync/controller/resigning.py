"""After the director's key was rotated, what gateways shall run is signed anew: what the old key signed is refused by all of them.

The text stays the same, so a gateway that runs it takes the new revision and restarts nothing. Called at every start and whenever the
signed repository changes, for keys are rotated by a command beside the controller, or while it is down.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller import audit
from cloud_sync.controller.context import Context
from cloud_sync.controller.deployments import digests, judge, reported_revision
from cloud_sync.controller.schema import desired, documents, gateways
from edge_runtime.errors import EdgeRuntimeError

_log = logging.getLogger(__name__)


async def resign(context: Context) -> list[str]:
    """Signs with the present director what an earlier one signed and still is to run; the gateways that it was done for.

    A deployment with a model whose approval was withdrawn, or that is refused now, is left and logged. What was refused or taken back
    by its gateway is left as well, and what has expired.
    """
    first, _ = await asyncio.to_thread(lambda: context.repository.term)
    async with context.database.engine.connect() as connection:
        rows = (await connection.execute(_outdated(context, first))).all()
    done = []
    for row in rows:
        try:
            await _sign(context, row)
        except IntegrityError:
            continue  # somebody has pushed to it meanwhile, with the present key
        except EdgeRuntimeError as err:
            _log.error("not_signed_anew gateway=%s revision=%d reason=%s", row.gateway, row.revision, err)
            continue
        done.append(row.gateway)
        context.deployed(row.gateway)
    return done


def _outdated(context: Context, first: int) -> Any:
    newest = (
        select(desired.c.gateway, func.max(desired.c.revision).label("revision"))
        .where(desired.c.tenant == context.tenant)
        .group_by(desired.c.gateway)
        .subquery()
    )
    mine = (desired.c.tenant == context.tenant, desired.c.gateway == newest.c.gateway, desired.c.revision == newest.c.revision)
    return select(desired).join(newest, mine[1] & mine[2]).where(mine[0], desired.c.revision < first, _wanted(context.now_ns()))


def _wanted(now_ns: int) -> ColumnElement[bool]:
    """What a gateway refused for its signature alone was made out before the rotation and met after it."""
    ended = desired.c.phase.in_(("reverted", "refused")) & desired.c.reason.not_like("unsigned%")
    return ~ended & (desired.c.expires_wall_ns > now_ns)


async def _sign(context: Context, row: Row[Any]) -> None:
    now = context.now_ns()
    async with context.database.engine.begin() as connection:
        text = str((await connection.execute(select(documents.c.text).where(documents.c.digest == row.digest))).scalar_one())
        models = digests(await judge(text))
        newest = max(row.revision, await _reported(context, connection, row.gateway))
        revision = context.repository.next_revision(newest)
        left_s = (row.expires_wall_ns - now) / 1e9
        message = await asyncio.to_thread(
            context.repository.sign_desired, context.tenant, row.gateway, revision, newest, text, models, left_s
        )
        same = (desired.c.tenant == context.tenant, desired.c.gateway == row.gateway, desired.c.revision == row.revision)
        await connection.execute(update(desired).where(*same).values(phase="superseded", phase_wall_ns=now))
        fresh = {"revision": revision, "message": message, "created_wall_ns": now, "phase_wall_ns": now, "phase": "offered", "reason": ""}
        await connection.execute(insert(desired).values(dict(row._mapping) | fresh))
        detail = {"revision": revision, "before": row.revision, "digest": row.digest}
        await audit.append(connection, "controller", "sign_anew", f"{context.tenant}/{row.gateway}", detail)


async def _reported(context: Context, connection: AsyncConnection, gateway: str) -> int:
    query = select(gateways.c.state).where(gateways.c.tenant == context.tenant, gateways.c.gateway == gateway)
    return reported_revision(str((await connection.execute(query)).scalar_one_or_none() or ""))
