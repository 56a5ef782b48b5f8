"""Offering deployments: judged, numbered, signed and noted, on a real database and a real repository."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import insert, select, update

from cloud_sync.controller import audit
from cloud_sync.controller.context import Context
from cloud_sync.controller.deployments import Conflict, Offer, digests, judge, offer
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.schema import desired, gateways
from cloud_sync.controller.signing import Repository
from edge_runtime.bundle import read_bundle
from edge_runtime.errors import ConfigError, InputError
from models import archive

ZOO = Path(__file__).resolve().parents[3] / "models/zoo/bearing"
PLAIN = "schema: 1\nsensors: {temp: {unit: degC}}\n"


@dataclass
class Names:
    """The one setting that offering needs."""

    tenant: str = "plant"


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Context]:
    database = await open_database(tmp_path / "controller.sqlite")
    told: list[str] = []
    made = Context(cast(Any, Names()), database, Repository.create(tmp_path), cast(Any, None), told.append)
    async with database.engine.begin() as connection:
        for name in ("gw-1", "gw-2"):
            await connection.execute(insert(gateways).values(tenant="plant", gateway=name))
    yield made
    await database.close()


def told(context: Context) -> list[str]:
    """The gateways whose publisher was told."""
    return cast(list[str], cast(Any, context.deployed).__self__)


async def rows(context: Context) -> list[Any]:
    async with context.database.engine.connect() as connection:
        return list(await connection.execute(select(desired).order_by(desired.c.gateway, desired.c.revision)))


async def test_an_offer_is_numbered_signed_noted_and_told(context: Context) -> None:
    made = await offer(context, "anna", ["gw-1", "gw-2"], PLAIN)
    digest = "sha256:" + hashlib.sha256(PLAIN.encode()).hexdigest()
    assert made == [Offer("gw-1", 1, digest), Offer("gw-2", 1, digest)]
    assert told(context) == ["gw-1", "gw-2"]
    message = json.loads((await rows(context))[0].message)
    assert message["document"] == PLAIN
    assert message["metadata"]["signed"]["version"] == 1
    assert message["metadata"]["signed"]["edge_runtime"]["gateway"] == "gw-1"
    async with context.database.engine.connect() as connection:
        assert await audit.verify(connection) is None


async def test_the_same_again_changes_nothing_until_it_failed(context: Context) -> None:
    await offer(context, "anna", ["gw-1"], PLAIN)
    again = await offer(context, "anna", ["gw-1"], PLAIN)
    assert again[0].unchanged
    assert again[0].revision == 1
    async with context.database.engine.begin() as connection:
        await connection.execute(update(desired).values(phase="reverted"))
    assert (await offer(context, "anna", ["gw-1"], PLAIN))[0].revision == 2


async def test_a_newer_offer_supersedes_the_open_one(context: Context) -> None:
    await offer(context, "anna", ["gw-1"], PLAIN)
    await offer(context, "ben", ["gw-1"], PLAIN + "flags: {maintenance: false}\n")
    assert [(row.revision, row.phase) for row in await rows(context)] == [(1, "superseded"), (2, "offered")]


async def test_a_restored_controller_goes_on_above_what_the_gateway_has_seen(context: Context) -> None:
    state = json.dumps({"status": {"deployment": {"revision": 41}}})
    async with context.database.engine.begin() as connection:
        await connection.execute(update(gateways).where(gateways.c.gateway == "gw-1").values(state=state))
    assert (await offer(context, "anna", ["gw-1"], PLAIN))[0].revision == 42


async def test_pushing_on_a_state_that_has_changed_conflicts(context: Context) -> None:
    await offer(context, "anna", ["gw-1"], PLAIN, expected=0)
    with pytest.raises(Conflict, match="expected revision 0, the newest is 1"):
        await offer(context, "ben", ["gw-1"], PLAIN + "flags: {a: true}\n", expected=0)


async def test_offers_at_once_get_revisions_of_their_own(context: Context) -> None:
    texts = [f"schema: 1\nflags: {{f{n}: true}}\n" for n in range(8)]
    made = await asyncio.gather(*(offer(context, "anna", ["gw-1"], text) for text in texts))
    assert sorted(offers[0].revision for offers in made) == list(range(1, 9))


async def test_all_or_none_are_offered(context: Context) -> None:
    with pytest.raises(InputError, match="no gateway `gw-9`"):
        await offer(context, "anna", ["gw-1", "gw-9"], PLAIN)
    assert not await rows(context)
    assert not told(context)


async def test_a_model_must_have_been_signed_offline(context: Context, tmp_path: Path) -> None:
    bundle = read_bundle(ZOO)
    text = f"schema: 1\nmodels: {{bearing: {{digest: '{bundle.digest}'}}}}\n"
    with pytest.raises(InputError, match=r"signed offline|approve"):
        await offer(context, "anna", ["gw-1"], text)
    archive.pack(bundle, tmp_path / "bearing.tar")
    context.repository.approve(tmp_path / "bearing.tar", tmp_path / "keys/offline")
    assert (await offer(context, "anna", ["gw-1"], text))[0].revision == 1
    targets = json.loads((await rows(context))[0].message)["metadata"]["signed"]["targets"]
    assert f"models/{bundle.digest.removeprefix('sha256:')}.tar" in targets


async def test_a_canary_is_a_model_too() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    deployment = await judge(f"schema: 1\nmodels: {{m: {{digest: '{one}', canary: {{digest: '{two}'}}}}}}\n")
    assert digests(deployment) == [one, two]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema: 1\nsensor: {}\n", "deployment:2:sensor"),
        ("schema: 2\n", "schema"),
        ("schema: 1\nmodels: {m: {path: model.onnx}}\n", "models.m.path"),
        ("schema: 1\nrules: [{rule: r, when: 'nothing > 3', then: {}}]\n", "deployment:2:rules"),
        ("[" * 2000, "more than 32 levels"),
    ],
)
async def test_a_wrong_deployment_is_refused_with_its_line(context: Context, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        await offer(context, "anna", ["gw-1"], text)
    assert not await rows(context)


async def test_an_expired_offer_is_offered_anew(context: Context) -> None:
    await offer(context, "anna", ["gw-1"], PLAIN, days=1)
    context.now_ns = lambda: time.time_ns() + 2 * 86_400 * 10**9
    assert (await offer(context, "anna", ["gw-1"], PLAIN))[0].revision == 2
