"""Routes for the fleet: gateways, what they sent, and what they are to run."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from sqlalchemy import select

from cloud_sync.controller import queries
from cloud_sync.controller.api.auth import ContextOf, Operator, Viewer
from cloud_sync.controller.api.enrolment import Gateway
from cloud_sync.controller.deployments import MAX_DOCUMENT_BYTES, digests, judge, known_gateways, offer
from cloud_sync.controller.explanation import explain
from cloud_sync.controller.schema import documents
from edge_runtime.errors import InputError

router = APIRouter()

GatewayName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Push(BaseModel):
    """A deployment for some gateways, or for all of them."""

    document: Annotated[str, Field(max_length=MAX_DOCUMENT_BYTES, description="the deployment's text, YAML or JSON")]
    gateways: Annotated[list[GatewayName], Field(max_length=10_000)] = []
    every: Annotated[bool, Field(description="push to every gateway of the tenant")] = False
    days: Annotated[float, Field(gt=0, le=3650, description="after that it is not taken any more; what runs goes on")] = 30.0
    expected_revision: Annotated[int | None, Field(ge=0, description="refuse (409) when the newest is another")] = None


class Pushed(BaseModel):
    """What a push became for one gateway."""

    gateway: str
    revision: int
    digest: str
    unchanged: bool


@router.get("/v1/gateways", tags=["fleet"], summary="every gateway, with what it runs")
async def get_gateways(
    context: ContextOf, _who: Viewer, online: bool | None = None, after: str = "", limit: Limit = 100
) -> list[dict[str, Any]]:
    return await queries.gateways(context.database.engine, context.tenant, online=online, after=after, limit=limit)


@router.get("/v1/gateways/{gateway}", tags=["fleet"], summary="one gateway: its state, its deployments, its accounts")
async def get_gateway(gateway: str, context: ContextOf, _who: Viewer) -> dict[str, Any]:
    engine = context.database.engine
    found = await queries.gateway(engine, context.tenant, gateway)
    if found is None:
        raise HTTPException(404, f"no gateway `{gateway}`; list them: edge-runtime fleet list")
    history = await queries.desired(engine, context.tenant, gateway, limit=20)
    return found | {"deployments": history, "accounts": await queries.accounts(engine, context.tenant, gateway)}


@router.get("/v1/gateways/{gateway}/records", tags=["fleet"], summary="readings, inferences, decisions, actions and notices")
async def get_records(
    gateway: str,
    context: ContextOf,
    _who: Viewer,
    kind: str | None = None,
    since_wall_ns: int | None = None,
    until_wall_ns: int | None = None,
    after: str = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    return await queries.records(
        context.database.engine, context.tenant, gateway, kind=kind, since=since_wall_ns, until=until_wall_ns, after=after, limit=limit
    )


@router.get("/v1/gateways/{gateway}/why", tags=["fleet"], summary="why the gateway runs what it runs, in sentences")
async def get_why(gateway: str, context: ContextOf, _who: Viewer) -> dict[str, Any]:
    found = await get_gateway(gateway, context, _who)
    return {"gateway": gateway, "sentences": explain(found, context.now_ns())}


@router.post("/v1/deployments", tags=["fleet"], status_code=201, summary="push a deployment")
async def post_deployment(push: Push, context: ContextOf, who: Operator) -> list[Pushed]:
    names = push.gateways
    if push.every:
        async with context.database.engine.connect() as connection:
            names = await known_gateways(connection, context.tenant)
    if not names or (push.every and push.gateways):
        raise InputError("expected `gateways`, a list of names, or `every`: true with at least one gateway in the fleet")
    made = await offer(context, who.name, list(dict.fromkeys(names)), push.document, days=push.days, expected=push.expected_revision)
    return [Pushed(gateway=o.gateway, revision=o.revision, digest=o.digest, unchanged=o.unchanged) for o in made]


@router.post("/v1/deployments/check", tags=["fleet"], summary="judge a deployment without pushing it")
async def check_deployment(push: Push, context: ContextOf, _who: Viewer) -> dict[str, Any]:
    deployment = await judge(push.document)
    models = digests(deployment)
    approved = {model.digest for model in await asyncio.to_thread(context.repository.approved)}
    return {"ok": True, "models": {digest: digest in approved for digest in models}}


@router.get("/v1/documents/{digest}", tags=["fleet"], summary="the text of a deployment that was pushed")
async def get_document(digest: str, context: ContextOf, _who: Viewer) -> dict[str, Any]:
    async with context.database.engine.connect() as connection:
        row = (await connection.execute(select(documents).where(documents.c.digest == digest))).one_or_none()
    if row is None:
        raise HTTPException(404, f"no deployment has the digest {digest[:80]!r}")
    return dict(row._mapping)


@router.get("/v1/models", tags=["fleet"], summary="the models that were signed offline and may be pushed")
async def get_models(context: ContextOf, _who: Viewer) -> list[dict[str, Any]]:
    return [asdict(model) for model in await asyncio.to_thread(context.repository.approved)]


@router.get("/v1/artifacts/{name:path}", tags=["gateways"], summary="a model's bundle, whole or by range, for a gateway of the fleet")
async def get_artifact(name: str, context: ContextOf, _who: Gateway) -> FileResponse:
    """Gateways show their certificate: a model is its owner's."""
    try:
        path = context.repository.artifact(name)
    except (InputError, FileNotFoundError) as err:
        raise HTTPException(404, f"no artifact {name[:200]!r}") from err
    return FileResponse(path, media_type="application/octet-stream")
