"""Routes for those who run the controller: API tokens, the audit log, health and metrics."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import select, text

from cloud_sync.controller import audit, metrics
from cloud_sync.controller.api.auth import Approver, ContextOf, Viewer
from cloud_sync.controller.schema import audit as audit_table
from cloud_sync.controller.tokens import Role, create_token, list_tokens, revoke_token

router = APIRouter()


class NewToken(BaseModel):
    """A token to make."""

    name: Annotated[str, Field(min_length=1, max_length=64, description="who it is for, as the audit log will show")]
    role: Role
    days: Annotated[float, Field(gt=0, le=3650)] = 365.0


class MadeToken(BaseModel):
    """A token that was made. Its text is not kept: this is the only time it is shown."""

    token: str


@router.get("/healthz", tags=["operation"], summary="whether the controller and its database answer")
async def healthz(context: ContextOf) -> dict[str, bool]:
    async with context.database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return {"ok": True}


@router.get("/metrics", tags=["operation"], summary="OpenMetrics, for Prometheus with a viewer's token")
async def read_metrics(request: Request, context: ContextOf, _who: Viewer) -> Response:
    snapshot = await metrics.snapshot(context.database.engine, context.sink, request.app.state.requests)
    return Response(metrics.render(snapshot), media_type="application/openmetrics-text; version=1.0.0; charset=utf-8")


@router.post("/v1/tokens", tags=["operation"], status_code=201, summary="make an API token")
async def post_token(wanted: NewToken, context: ContextOf, who: Approver) -> MadeToken:
    async with context.database.engine.begin() as connection:
        made = await create_token(connection, wanted.name, wanted.role, wanted.days)
        await audit.append(connection, who.name, "token", wanted.name, {"role": wanted.role.value, "days": wanted.days})
    return MadeToken(token=made)


@router.get("/v1/tokens", tags=["operation"], summary="every API token, without its secret")
async def get_tokens(context: ContextOf, _who: Approver) -> list[dict[str, Any]]:
    async with context.database.engine.connect() as connection:
        return [{field: getattr(info, field) for field in info.__slots__} for info in await list_tokens(connection)]


@router.delete("/v1/tokens/{token_id}", tags=["operation"], status_code=204, summary="end an API token at once")
async def delete_token(token_id: str, context: ContextOf, who: Approver) -> None:
    async with context.database.engine.begin() as connection:
        await revoke_token(connection, token_id, context.now_ns())
        await audit.append(connection, who.name, "token_revoked", token_id[:64], {})


@router.get("/v1/audit", tags=["operation"], summary="the audit log, newest first; with `verify`, whether its chain holds")
async def get_audit(
    context: ContextOf,
    _who: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=0)] = None,
    verify: bool = False,
) -> dict[str, Any]:
    query = select(audit_table).order_by(audit_table.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(audit_table.c.seq < before)
    async with context.database.engine.connect() as connection:
        rows = [dict(row._mapping) for row in await connection.execute(query)]
        broken = await audit.verify(connection) if verify else None
    entries = [row | {"detail": msgspec.json.decode(row["detail"])} for row in rows]
    return {"entries": entries} | ({"intact": broken is None, "broken_at": broken} if verify else {})
