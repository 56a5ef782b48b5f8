"""Keys of a controller that serves a fleet change hands: by the command, with gateways of the old keys following."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import insert, select, update

from cloud_sync.controller import audit
from cloud_sync.controller.context import Context
from cloud_sync.controller.deployments import offer
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.resigning import resign
from cloud_sync.controller.schema import desired, gateways
from cloud_sync.controller.signing import Repository
from cloud_sync.trust import Verified, Verifier
from edge_runtime.bundle import read_bundle
from edge_runtime.cli.main import main
from edge_runtime.clock import SystemClock
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError
from models import archive

ZOO = Path(__file__).resolve().parents[3] / "models/zoo/bearing"
PLAIN = "schema: 1\nsensors: {temp: {unit: degC}}\n"


@dataclass
class Names:
    tenant: str = "plant"


@dataclass
class Plant:
    """A controller's database and repository, and gateways that trust its first root."""

    context: Context
    folder: Path
    told: list[str]
    verifiers: dict[str, Verifier] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)

    def keys(self, *arguments: str, code: int = 0, capsys: pytest.CaptureFixture[str]) -> Any:
        capsys.readouterr()
        assert main(["controller", "keys", *arguments, "--dir", str(self.folder), "--json"]) == code
        shown = capsys.readouterr()
        return json.loads(shown.out) if code == 0 else shown.err

    async def newest(self, name: str) -> Any:
        query = select(desired).where(desired.c.gateway == name).order_by(desired.c.revision.desc()).limit(1)
        async with self.context.database.engine.connect() as connection:
            return (await connection.execute(query)).one()

    async def verify(self, name: str, message: bytes | None = None) -> Verified:
        """The newest deployment of a gateway, as this judges it with the metadata of now."""

        async def fetch(blob: str) -> bytes:
            return self.context.repository.blob(blob).read_bytes()

        given = message if message is not None else bytes((await self.newest(name)).message)
        verified = await self.verifiers[name].verify(given, self.revisions.get(name, 0), SystemClock().now().wall_ns, fetch)
        self.revisions[name] = verified.desired.revision
        return verified


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    database = await open_database(tmp_path / "controller.sqlite")
    told: list[str] = []
    folder = tmp_path / "controller"
    repository = Repository.create(folder)
    context = Context(cast(Any, Names()), database, repository, cast(Any, None), told.append)
    made = Plant(context, folder, told)
    async with database.engine.begin() as connection:
        for name in ("gw-1", "gw-2"):
            await connection.execute(insert(gateways).values(tenant="plant", gateway=name))
            root = repository.metadata_dir / "1.root.json"
            made.verifiers[name] = Verifier(tmp_path / name, "plant", name, trust_root=root)
    yield made
    await database.close()


async def phase(plant: Plant, name: str, what: str, reason: str = "") -> None:
    async with plant.context.database.engine.begin() as connection:
        await connection.execute(update(desired).where(desired.c.gateway == name).values(phase=what, reason=reason))


async def test_after_a_directors_rotation_every_gateway_follows_what_is_signed_anew(plant: Plant, capsys) -> None:
    await offer(plant.context, "anna", ["gw-1", "gw-2"], PLAIN)
    for name in ("gw-1", "gw-2"):
        await plant.verify(name)
        await phase(plant, name, "confirmed")
    old = bytes((await plant.newest("gw-1")).message)
    shown = plant.keys("rotate", "director", capsys=capsys)
    with pytest.raises(DeploymentRefused) as refused:
        await plant.verify("gw-1", old)
    assert refused.value.reason in (DeploymentReason.UNSIGNED, DeploymentReason.OLD_REVISION)
    plant.told.clear()
    assert await resign(plant.context) == ["gw-1", "gw-2"] == plant.told
    for name in ("gw-1", "gw-2"):
        verified = await plant.verify(name)
        assert verified.desired.revision >= shown["director"]["first_revision"]
        assert verified.desired.document == PLAIN.encode()
    assert await resign(plant.context) == []
    async with plant.context.database.engine.connect() as connection:
        assert await audit.verify(connection) is None


async def test_pushing_the_same_again_after_a_rotation_is_not_unchanged(plant: Plant, capsys) -> None:
    await offer(plant.context, "anna", ["gw-1"], PLAIN)
    plant.keys("rotate", "director", capsys=capsys)
    (made,) = await offer(plant.context, "anna", ["gw-1"], PLAIN)
    assert not made.unchanged
    assert (await plant.verify("gw-1")).desired.revision == made.revision
    assert await resign(plant.context) == []


@pytest.mark.parametrize(
    ("what", "reason", "again"),
    [("reverted", "unhealthy", False), ("refused", "invalid: x", False), ("refused", "unsigned: key", True), ("offered", "", True)],
)
async def test_only_what_is_still_wanted_is_signed_anew(plant: Plant, capsys, what: str, reason: str, again: bool) -> None:
    await offer(plant.context, "anna", ["gw-1"], PLAIN)
    await phase(plant, "gw-1", what, reason)
    plant.keys("rotate", "director", capsys=capsys)
    assert await resign(plant.context) == (["gw-1"] if again else [])


async def test_what_has_expired_is_not_signed_anew(plant: Plant, capsys) -> None:
    await offer(plant.context, "anna", ["gw-1"], PLAIN)
    async with plant.context.database.engine.begin() as connection:
        await connection.execute(update(desired).values(expires_wall_ns=1))
    plant.keys("rotate", "director", capsys=capsys)
    assert await resign(plant.context) == []


@pytest.mark.parametrize("roles", [["timestamp"], ["snapshot", "timestamp"], ["targets"], ["root"]])
async def test_a_gateway_of_the_old_keys_follows(plant: Plant, capsys, roles: list[str]) -> None:
    await offer(plant.context, "anna", ["gw-1"], PLAIN)
    await plant.verify("gw-1")
    plant.keys("rotate", *roles, capsys=capsys)
    assert await resign(plant.context) == []
    await offer(plant.context, "anna", ["gw-1"], PLAIN + "flags: {a: true}\n")
    assert (await plant.verify("gw-1")).desired.revision == 2


async def test_offline_metadata_is_renewed_before_its_end(plant: Plant, capsys) -> None:
    before = {role["role"]: role for role in plant.keys("list", capsys=capsys)["roles"]}
    assert not any(role["due"] for role in before.values())
    versions = {path.name for path in plant.context.repository.metadata_dir.iterdir()}
    after = {role["role"]: role for role in plant.keys("renew", "root", "targets", capsys=capsys)["roles"]}
    assert all(after[role]["expires_wall_ns"] >= before[role]["expires_wall_ns"] for role in ("root", "targets"))
    assert {"2.root.json", "2.targets.json"} <= {path.name for path in plant.context.repository.metadata_dir.iterdir()} - versions
    await offer(plant.context, "anna", ["gw-1"], PLAIN)
    await plant.verify("gw-1")


async def test_a_model_whose_approval_is_withdrawn_is_pushed_no_more(plant: Plant, capsys, tmp_path: Path) -> None:
    bundle = read_bundle(ZOO)
    archive.pack(bundle, tmp_path / "b.tar")
    plant.context.repository.approve(tmp_path / "b.tar", plant.context.repository.offline_keys)
    text = f"schema: 1\nmodels: {{bearing: {{digest: '{bundle.digest}'}}}}\n"
    await offer(plant.context, "anna", ["gw-1"], text)
    assert plant.keys("withdraw", bundle.digest, capsys=capsys)["models"] == []
    with pytest.raises(DeploymentRefused):
        await plant.verify("gw-1")
    with pytest.raises(InputError, match="approve"):
        await offer(plant.context, "anna", ["gw-2"], text)
    plant.keys("rotate", "director", capsys=capsys)
    assert await resign(plant.context) == []  # left as it is, and logged


def test_without_the_offline_keys_nothing_changes(tmp_path: Path, capsys) -> None:
    repository = Repository.create(tmp_path)
    repository.offline_keys.rename(tmp_path / "vault")
    before = repository.state()
    for verb in (["rotate", "director"], ["rotate", "root"], ["renew", "targets"], ["withdraw", "sha256:" + "a" * 64]):
        assert main(["controller", "keys", *verb, "--dir", str(tmp_path)]) == 2
        assert "bring them there" in capsys.readouterr().err
    assert repository.state() == before
    assert main(["controller", "keys", "rotate", "director", "--dir", str(tmp_path), "--keys", str(tmp_path / "vault")]) == 0
    assert "signs revisions 1000000001 to" in capsys.readouterr().out
