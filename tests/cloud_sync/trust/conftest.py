"""A real repository, a gateway's verifier with its real child, and everything between them to be tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.controller.signing import Repository
from cloud_sync.trust import Verified, Verifier
from edge_runtime.clock import BUILD_WALL_NS

DAY_NS = 86_400 * 10**9
NOW_NS = BUILD_WALL_NS + 30 * DAY_NS
DOCUMENT = "schema: 1\nname: pump\n"


def bundle_tar(path: Path, name: str = "pump", version: int = 1, content: bytes = b"weights") -> Path:
    """The tar of a small bundle: a manifest and one file."""
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest = {
        "schema": 1,
        "name": name,
        "version": version,
        "model": "model.onnx",
        "files": {"model.onnx": entry},
        "inputs": [],
        "outputs": [],
        "license": "Apache-2.0",
    }
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member_name, data in (("manifest.json", json.dumps(manifest).encode()), ("model.onnx", content)):
            member = tarfile.TarInfo(member_name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@dataclass
class Wall:
    """A wall clock that both sides read."""

    now_ns: int = NOW_NS

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Gateway:
    """One gateway's verifier over a repository, with a wire that can lie: `instead` answers for blobs by name."""

    repository: Repository
    verifier: Verifier
    wall: Wall
    trust_dir: Path
    last_revision: int = 0
    instead: dict[str, bytes | Exception] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=dict)

    async def fetch(self, name: str) -> bytes:
        self.fetched.append(name)
        answer = self.instead.get(name)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        if name.startswith("documents/"):
            return self.documents[name]
        return self.repository.blob(name).read_bytes()

    async def verify(self, message: bytes, now_wall_ns: int | None = None) -> Verified:
        now = self.wall.now_ns if now_wall_ns is None else now_wall_ns
        verified = await self.verifier.verify(message, self.last_revision, now, self.fetch)
        self.last_revision = verified.desired.revision
        return verified


@dataclass
class World:
    """A controller's folder, its clock and one approved model."""

    repository: Repository
    wall: Wall
    model: str
    folder: Path
    tmp: Path

    def gateway(self, name: str = "press-7", tenant: str = "acme", **options: Any) -> Gateway:
        trust_dir = self.tmp / "gateways" / tenant / name
        root = self.repository.metadata_dir / "1.root.json"
        verifier = Verifier(trust_dir, tenant, name, trust_root=root, **options)
        return Gateway(self.repository, verifier, self.wall, trust_dir)

    def sign(self, revision: int = 1, document: str = DOCUMENT, gateway: str = "press-7", tenant: str = "acme", **given: Any) -> bytes:
        models = given.get("models", [self.model])
        return self.repository.sign_desired(tenant, gateway, revision, revision - 1, document, models, given.get("expires_s", 86_400 * 90))


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    def make(name: str = "controller", **options: Any) -> World:
        wall = Wall()
        folder = tmp_path / name
        folder.mkdir()
        repository = Repository.create(folder, clock=wall, **options)
        approved = repository.approve(bundle_tar(tmp_path / f"{name}.tar"), repository.offline_keys)
        return World(repository, wall, approved.digest, folder, tmp_path)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
