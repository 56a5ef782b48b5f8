"""From the signed repository to the gateway's host and back, over a real broker: offered, verified, fetched, applied, reported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import insert, select, update

from cloud_sync.agent import SyncAgent
from cloud_sync.controller import audit
from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, free_port, start_broker
from cloud_sync.controller.context import Context
from cloud_sync.controller.deployments import offer
from cloud_sync.controller.engine import Database, open_database
from cloud_sync.controller.publisher import Publisher
from cloud_sync.controller.schema import audit as audit_rows
from cloud_sync.controller.schema import desired, gateways
from cloud_sync.controller.signing import Repository
from cloud_sync.downloads import Downloads
from cloud_sync.https import Place
from cloud_sync.messages import encode_state
from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.topics import GatewayTopics
from cloud_sync.trust import Verifier
from edge_runtime.bundle import read_bundle
from edge_runtime.clock import SystemClock
from edge_runtime.errors import DeploymentReason, DeploymentRefused, TransportError
from edge_runtime.types import DeploymentPhase, DesiredDeployment, ReportedDeployment
from models import archive

ZOO = Path(__file__).resolve().parents[3] / "models/zoo/bearing"
TOPICS = GatewayTopics("plant", "gw-1")
PLAIN = "schema: 1\nsensors: {temp: {unit: degC}}\n"


@dataclass
class Host:
    """A gateway that runs what it is given; refuses with `refuses`, and holds `apply` until `gate` is set."""

    running: DesiredDeployment | None = None
    applied: list[int] = field(default_factory=list)
    installed: dict[str, int] = field(default_factory=dict)
    refuses: DeploymentReason | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    phase: DeploymentPhase = DeploymentPhase.FACTORY
    offered: tuple[int, str, str] = (0, "", "")
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def reported(self) -> ReportedDeployment:
        running = self.running
        revision, digest, reason = self.offered
        return ReportedDeployment(
            running_revision=running.revision if running else 0,
            running_digest=running.digest if running else "",
            slot="good" if running else "factory",
            revision=revision,
            digest=digest,
            phase=self.phase,
            reason=reason,
        )

    def has_model(self, digest: str) -> bool:
        return digest in self.installed

    async def install_model(self, archive: Path, digest: str) -> None:
        self.installed[digest] = archive.stat().st_size

    async def apply(self, wanted: DesiredDeployment) -> ReportedDeployment:
        await self.gate.wait()
        self.applied.append(wanted.revision)
        reason = self.refuses.value if self.refuses else ""
        self.offered = (wanted.revision, wanted.digest, reason)
        self.phase = DeploymentPhase.REFUSED if reason else DeploymentPhase.CONFIRMED
        if self.refuses:
            raise DeploymentRefused(self.refuses, "as told")
        self.running = wanted
        self.changed.set()
        return self.reported()

    async def deployment_changed(self) -> None:
        await self.changed.wait()
        self.changed.clear()


@dataclass
class Field:
    """A controller, a broker and one gateway's agent."""

    broker: BrokerProcess
    context: Context
    publisher: Publisher
    host: Host
    agent: SyncAgent
    seq: int = 0

    async def push(self, text: str = PLAIN, **options: Any) -> int:
        return (await offer(self.context, "anna", ["gw-1"], text, **options))[0].revision

    async def phase(self, revision: int) -> str:
        async with self.context.database.engine.connect() as connection:
            query = select(desired.c.phase).where(desired.c.gateway == "gw-1", desired.c.revision == revision)
            return str((await connection.execute(query)).scalar_one())

    async def serve(self) -> None:
        """The gateway's link, again and again, as the uplink keeps it."""
        while True:
            try:
                session = await link(self.broker, "gw-1").connect()
                await asyncio.gather(self.agent.serve(session), self.report(session), closed(session))
            except* TransportError:
                await asyncio.sleep(0.05)

    async def report(self, session: Any) -> None:
        while True:
            self.seq += 1
            status = self.agent.merged({"deployment": _plain(self.host.reported())})
            await session.publish(TOPICS.state, encode_state("b1", self.seq, 1, {}, status))
            await asyncio.sleep(0.05)


def _plain(told: ReportedDeployment) -> dict[str, Any]:
    return {"revision": told.revision, "digest": told.digest, "phase": told.phase.value, "reason": told.reason, "message": told.message}


async def closed(session: Any) -> None:
    raise TransportError(await session.closed())


def link(broker: BrokerProcess, name: str) -> Any:
    return open_transport(MqttOptions(host=broker.host, port=broker.port, client_id=name))


async def until(condition: Callable[[], Awaitable[bool] | bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


@dataclass
class Names:
    tenant: str = "plant"


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def plant(tmp_path: Path, broker_kind: str) -> AsyncIterator[Field]:
    if broker_kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    broker = await asyncio.to_thread(start_broker, 0, tmp_path / "broker", cast(Any, broker_kind))
    database: Database = await open_database(tmp_path / "controller.sqlite")
    async with database.engine.begin() as connection:
        await connection.execute(insert(gateways).values(tenant="plant", gateway="gw-1"))
    repository = Repository.create(tmp_path / "dir")
    publisher = Publisher(link(broker, "controller-publisher"), database.engine, repository, "plant")
    context = Context(cast(Any, Names()), database, repository, cast(Any, None), publisher.deployed)
    host = Host()
    host.gate.set()
    verifier = Verifier(tmp_path / "gateway/trust", "plant", "gw-1", trust_root=repository.trust_root)
    agent = SyncAgent(host, verifier, TOPICS, tmp_path / "gateway", SystemClock(), lambda: None, draw=lambda: 0.001)
    field_ = Field(broker, context, publisher, host, agent)
    publishing = asyncio.ensure_future(publisher.run())
    yield field_
    publishing.cancel()
    await asyncio.wait((publishing,))
    await database.close()
    await asyncio.to_thread(broker.stop)


class Serving:
    """The gateway is connected inside."""

    def __init__(self, field_: Field) -> None:
        self._field = field_

    async def __aenter__(self) -> None:
        self._task = asyncio.ensure_future(self._field.serve())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))


only_mosquitto = pytest.mark.parametrize("broker_kind", ["mosquitto"], indirect=True)


async def test_a_push_is_fetched_applied_and_known_to_be(plant: Field, tmp_path: Path) -> None:
    bundle = read_bundle(ZOO)
    archive.pack(bundle, tmp_path / "b.tar")
    plant.context.repository.approve(tmp_path / "b.tar", plant.context.repository.offline_keys)
    async with Serving(plant):
        revision = await plant.push(f"schema: 1\nmodels: {{bearing: {{digest: '{bundle.digest}'}}}}\n")
        await until(lambda: plant.host.applied == [revision])
        assert plant.host.installed == {bundle.digest: (tmp_path / "b.tar").stat().st_size}

        async def confirmed() -> bool:
            return await plant.phase(revision) == "confirmed"

        await until(confirmed)


@only_mosquitto
async def test_a_model_that_https_does_not_give_comes_over_mqtt(plant: Field, tmp_path: Path) -> None:
    bundle = read_bundle(ZOO)
    archive.pack(bundle, tmp_path / "b.tar")
    plant.context.repository.approve(tmp_path / "b.tar", plant.context.repository.offline_keys)
    nowhere = Downloads(Place("localhost", free_port()), tmp_path / "ca.pem", tmp_path / "gw.pem", tmp_path / "gw.key")
    plant.agent._downloads = nowhere
    async with Serving(plant):
        revision = await plant.push(f"schema: 1\nmodels: {{bearing: {{digest: '{bundle.digest}'}}}}\n")
        await until(lambda: plant.host.applied == [revision])
    assert plant.host.installed == {bundle.digest: (tmp_path / "b.tar").stat().st_size}
    assert nowhere.received == 0


@only_mosquitto
async def test_a_gateway_that_was_away_applies_only_the_newest(plant: Field) -> None:
    for number in range(3):
        newest = await plant.push(f"{PLAIN}flags: {{f{number}: true}}\n")
    await until(lambda: plant.publisher.published >= 1)
    async with Serving(plant):
        await until(lambda: newest in plant.host.applied)
    assert plant.host.applied == [newest]


@only_mosquitto
async def test_a_broker_that_forgot_everything_is_told_again(plant: Field, tmp_path: Path) -> None:
    revision = await plant.push()
    await until(lambda: plant.publisher.published >= 1)
    await asyncio.to_thread(plant.broker.kill)
    for kept in (tmp_path / "broker").glob("*.db"):
        kept.unlink()
    await asyncio.to_thread(plant.broker.start)
    async with Serving(plant):
        await until(lambda: plant.host.applied == [revision])


@only_mosquitto
@pytest.mark.parametrize("poison", [b"", b"{", b"\xff" * 1000, b"[" * 100_000, b"x" * (10 * 1024 * 1024), b'{"v":1}'])
async def test_a_poisoned_message_touches_nothing_and_is_tried_once(plant: Field, poison: bytes) -> None:
    async with Serving(plant):
        await until(lambda: plant.publisher.published >= 0)
        session = await link(plant.broker, "attacker").connect()
        await session.publish(TOPICS.desired, poison, retain=True)
        if 0 < len(poison) < 1_000_000:  # the broker keeps back what is over the size that the gateway takes
            await until(lambda: plant.agent.refusals >= 1)
        revision = await plant.push()
        await until(lambda: plant.host.applied == [revision])
        await session.close()
    assert plant.agent.refusals <= 1


@only_mosquitto
async def test_another_gateways_deployment_is_refused_and_said_so(plant: Field) -> None:
    stolen = plant.context.repository.sign_desired("plant", "gw-2", 7, 6, PLAIN, [], 3600)
    async with Serving(plant):
        session = await link(plant.broker, "attacker").connect()
        await session.publish(TOPICS.desired, stolen, retain=True)
        await until(lambda: plant.agent.refusals == 1)
        told = plant.agent.merged({"deployment": _plain(plant.host.reported())})["deployment"]
        assert (told["phase"], told["reason"], told["revision"]) == ("refused", "wrong_gateway", 7)
        await session.close()
    assert not plant.host.applied


@only_mosquitto
async def test_what_the_host_refused_is_known_to_the_controller(plant: Field) -> None:
    plant.host.refuses = DeploymentReason.DOES_NOT_FIT
    async with Serving(plant):
        revision = await plant.push()

        async def refused() -> bool:
            return await plant.phase(revision) == "refused"

        await until(refused)
        assert plant.host.applied == [revision]


@only_mosquitto
async def test_a_newer_push_waits_until_the_host_has_ended_with_the_older(plant: Field) -> None:
    plant.host.gate.clear()
    async with Serving(plant):
        first = await plant.push()
        await until(lambda: _noted(plant) == first)
        second = await plant.push(PLAIN + "flags: {a: true}\n")
        plant.host.gate.set()
        await until(lambda: second in plant.host.applied)
    assert plant.host.applied in ([first, second], [second])


@only_mosquitto
async def test_a_lower_revision_reported_is_offered_again(plant: Field) -> None:
    revision = await plant.push()
    await until(lambda: plant.publisher.published >= 1)  # twice, where the push came while the publisher was connecting
    session = await link(plant.broker, "gw-1").connect()
    before = plant.publisher.published
    plant.publisher._told.clear()
    told = {"deployment": {"revision": 0, "digest": "", "phase": "factory"}}
    await session.publish(TOPICS.state, encode_state("b9", 1, 1, {}, told))
    await until(lambda: plant.publisher.published > before)
    await session.close()
    assert revision == 1


@only_mosquitto
async def test_reports_out_of_order_or_malformed_change_nothing(plant: Field) -> None:
    revision = await plant.push()
    async with plant.context.database.engine.begin() as connection:
        await connection.execute(update(desired).values(phase="confirmed"))
    session = await link(plant.broker, "gw-1").connect()
    digest = json.loads((await _message(plant, revision)).decode())["metadata"]["signed"]["targets"]["deployment"]["hashes"]["sha256"]
    for seq, told in enumerate(
        [
            {"revision": revision, "digest": f"sha256:{digest}", "phase": "probation"},
            {"revision": "x", "phase": "confirmed"},
            {"revision": -1, "phase": "confirmed"},
            {"revision": revision, "digest": "sha256:" + "0" * 64, "phase": "reverted"},
            {"revision": revision, "digest": f"sha256:{digest}", "phase": "made up"},
            [],
            {"revision": revision, "digest": f"sha256:{digest}", "phase": "reverted", "reason": "unhealthy", "message": "p99\0"},
        ],
        start=2,
    ):
        await session.publish(TOPICS.state, encode_state("b1", seq, 1, {}, {"deployment": told}))

    async def reverted() -> bool:
        return await plant.phase(revision) == "reverted"

    await until(reverted)
    await session.close()


async def audited(plant: Field, action: str) -> list[dict[str, Any]]:
    async with plant.context.database.engine.connect() as connection:
        rows = await connection.execute(select(audit_rows).where(audit_rows.c.action == action).order_by(audit_rows.c.seq))
        found = [{"actor": row.actor, **json.loads(row.detail)} for row in rows]
        assert await audit.verify(connection) is None
    return found


@only_mosquitto
async def test_what_became_of_every_signed_revision_is_in_the_audit_chain(plant: Field) -> None:
    async with Serving(plant):
        revision = await plant.push()
        await until(lambda: _count(plant, "confirmed", 1))
        plant.host.refuses = DeploymentReason.DOES_NOT_FIT
        second = await plant.push(PLAIN + "flags: {a: true}\n")
        await until(lambda: _count(plant, "refused", 1))
    (pushed, _), (confirmed,) = await audited(plant, "push"), await audited(plant, "confirmed")
    assert (confirmed["actor"], confirmed["revision"], confirmed["digest"]) == ("gw-1", revision, pushed["digest"])
    (refused,) = await audited(plant, "refused")
    assert (refused["revision"], refused["reason"], refused["offered"]) == (second, "does_not_fit", True)


@only_mosquitto
async def test_a_forgery_that_a_gateway_refused_is_in_the_audit_chain(plant: Field) -> None:
    stolen = plant.context.repository.sign_desired("plant", "gw-2", 7, 6, PLAIN, [], 3600)
    async with Serving(plant):
        session = await link(plant.broker, "attacker").connect()
        await session.publish(TOPICS.desired, stolen, retain=True)
        await until(lambda: _count(plant, "refused", 1))
        await until(lambda: plant.seq > 10)
        await session.close()
    (refused,) = await audited(plant, "refused")
    assert (refused["revision"], refused["offered"]) == (7, False)
    assert refused["reason"].startswith("wrong_gateway")


async def _count(plant: Field, action: str, count: int) -> bool:
    return len(await audited(plant, action)) == count


async def _message(plant: Field, revision: int) -> bytes:
    async with plant.context.database.engine.connect() as connection:
        query = select(desired.c.message).where(desired.c.revision == revision)
        return bytes((await connection.execute(query)).scalar_one())


def _noted(plant: Field) -> int:
    note = plant.agent._note
    return note.revision if note is not None else 0
