"""The REST API over a real controller's folder: who may do what, pushing, looking, and what it says to those who err."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert, update

from cloud_sync.controller import audit
from cloud_sync.controller.api.app import create_app
from cloud_sync.controller.context import Context
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.schema import audit as audit_rows
from cloud_sync.controller.schema import gateways
from cloud_sync.controller.settings import load
from cloud_sync.controller.setup import initialize, open_authority
from cloud_sync.controller.signing import Repository
from cloud_sync.controller.tokens import Role, create_token

PLAIN = "schema: 1\nsensors: {temp: {unit: degC}}\n"


@dataclass
class Api:
    """The API with one bearer of every role."""

    context: Context
    tokens: dict[str, str]
    app: Callable[..., object]

    def as_(self, role: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.tokens[role]}"} if role in self.tokens else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="https://controller", headers=headers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("controller")
    initialize(made, ["localhost"], tenant="plant")
    return made


@pytest.fixture
async def api(folder: Path, tmp_path: Path) -> AsyncIterator[Api]:
    settings = load(folder)
    database = await open_database(tmp_path / "api.sqlite")
    context = Context(settings, database, Repository.open(folder), open_authority(settings), lambda gateway: None)
    tokens = {}
    async with database.engine.begin() as connection:
        for role in Role:
            tokens[role.value] = await create_token(connection, f"the {role}", role)
        for name in ("gw-1", "gw-2"):
            await connection.execute(insert(gateways).values(tenant="plant", gateway=name))
    yield Api(context, tokens, create_app(context))
    await database.close()


READS = ["/v1/gateways", "/v1/gateways/gw-1", "/v1/gateways/gw-1/why", "/v1/gateways/gw-1/records", "/v1/models", "/v1/audit", "/metrics"]


@pytest.mark.parametrize("path", READS)
async def test_looking_needs_a_viewer(api: Api, path: str) -> None:
    assert (await api.as_("nobody").get(path)).status_code == 401
    assert (await api.as_("viewer").get(path)).status_code == 200


async def test_operator_without_the_role_is_refused_and_audited(api: Api) -> None:
    refused = await api.as_("viewer").post("/v1/deployments", json={"document": PLAIN, "gateways": ["gw-1"]})
    assert refused.status_code == 403
    assert (await api.as_("operator").post("/v1/tokens", json={"name": "me", "role": "approver"})).status_code == 403
    entries = (await api.as_("viewer").get("/v1/audit")).json()["entries"]
    assert [(entry["action"], entry["actor"]) for entry in entries] == [("refused", "the operator"), ("refused", "the viewer")]


async def test_a_push_is_shown_with_its_history(api: Api) -> None:
    made = await api.as_("operator").post("/v1/deployments", json={"document": PLAIN, "every": True})
    assert made.status_code == 201
    assert [(offer["gateway"], offer["revision"]) for offer in made.json()] == [("gw-1", 1), ("gw-2", 1)]
    shown = (await api.as_("viewer").get("/v1/gateways/gw-1")).json()
    assert [(d["revision"], d["phase"], d["created_by"]) for d in shown["deployments"]] == [(1, "offered", "the operator")]
    text = (await api.as_("viewer").get(f"/v1/documents/{made.json()[0]['digest']}")).json()["text"]
    assert text == PLAIN


async def test_a_wrong_deployment_comes_back_with_line_and_key(api: Api) -> None:
    answer = await api.as_("operator").post("/v1/deployments", json={"document": "schema: 1\nsensor: {}\n", "gateways": ["gw-1"]})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["line"] == 2
    assert answer.json()["problems"][0]["key"] == "sensor"


async def test_a_push_on_another_revision_conflicts(api: Api) -> None:
    await api.as_("operator").post("/v1/deployments", json={"document": PLAIN, "gateways": ["gw-1"]})
    body = {"document": PLAIN + "flags: {a: true}\n", "gateways": ["gw-1"], "expected_revision": 0}
    assert (await api.as_("operator").post("/v1/deployments", json=body)).status_code == 409


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"gateways": ["gw-1"]}', b'{"document": "", "gateways": ["../x"]}', b"[" * 5000])
async def test_a_malformed_request_says_what_was_expected(api: Api, body: bytes) -> None:
    answer = await api.as_("operator").post("/v1/deployments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "error" in answer.json()


async def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    answer = await api.as_("operator").post("/v1/deployments", content=b"x" * (3 * 1024 * 1024))
    assert answer.status_code == 413


async def test_guessing_is_slowed_down(api: Api) -> None:
    guess = httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app), base_url="https://controller")
    codes = [(await guess.get("/v1/gateways", headers={"Authorization": f"Bearer era1.x.{n}"})).status_code for n in range(12)]
    assert codes == [401] * 10 + [429] * 2


async def test_tokens_are_made_shown_without_secret_and_ended(api: Api) -> None:
    approver = api.as_("approver")
    made = (await approver.post("/v1/tokens", json={"name": "ci", "role": "viewer", "days": 1})).json()["token"]
    api.tokens["ci"] = made
    assert (await api.as_("ci").get("/v1/gateways")).status_code == 200
    listed = (await approver.get("/v1/tokens")).json()
    assert "secret" not in str(listed)
    assert made.rsplit(".", 1)[1] not in str(listed)
    assert (await approver.delete(f"/v1/tokens/{next(t['id'] for t in listed if t['name'] == 'ci')}")).status_code == 204
    assert (await api.as_("ci").get("/v1/gateways")).status_code == 401


async def test_a_changed_audit_row_is_told(api: Api) -> None:
    await api.as_("operator").post("/v1/deployments", json={"document": PLAIN, "every": True})
    assert (await api.as_("viewer").get("/v1/audit?verify=true")).json()["intact"]
    async with api.context.database.engine.begin() as connection:
        await connection.execute(update(audit_rows).where(audit_rows.c.seq == 1).values(actor="nobody"))
        assert await audit.verify(connection) == 1
    assert (await api.as_("viewer").get("/v1/audit?verify=true")).json()["broken_at"] == 1


async def test_metrics_are_openmetrics(api: Api) -> None:
    answer = await api.as_("viewer").get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert re.search(r"^edge_controller_build_info\{", answer.text, re.MULTILINE)


async def test_every_route_is_described(api: Api) -> None:
    described = (await api.as_("nobody").get("/openapi.json")).json()["paths"]
    assert {"/v1/gateways", "/v1/deployments", "/v1/join", "/v1/renew", "/metrics"} <= set(described)
    assert all(operation.get("summary") for path in described.values() for operation in path.values())


@pytest.mark.parametrize(
    "name", ["models/" + "0" * 64 + ".tar", "../ca/ca.key", "models/../../ca/ca.key", "%2e%2e/ca/ca.key", "tuf/root.json.bak"]
)
async def test_only_artifacts_are_served(api: Api, name: str) -> None:
    answer = await api.as_("nobody").get(f"/v1/artifacts/{name}")
    assert answer.status_code in (401, 404)


async def test_an_unknown_gateway_is_named(api: Api) -> None:
    answer = await api.as_("viewer").get("/v1/gateways/gw-9")
    assert answer.status_code == 404
    assert "gw-9" in answer.json()["error"]
