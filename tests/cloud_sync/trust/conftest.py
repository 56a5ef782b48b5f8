"""A real repository, a gateway's verifier with its real child, and everything between them to be tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from cloud_sync.controller.signing import KeyRing, Repository
from cloud_sync.trust import Verified, Verifier
from cloud_sync.trust.exchange import Answer, Request, blob_path
from edge_runtime.clock import BUILD_WALL_NS
from edge_runtime.errors import DeploymentReason, DeploymentRefused

DAY_NS = 86_400 * 10**9
NOW_NS = BUILD_WALL_NS + 30 * DAY_NS
_ROOTS = [f"tuf/{version}.root.json" for version in range(2, 20)]
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

    def stolen(self, role: str) -> CryptoSigner:
        """The private key of a role, as a thief has it."""
        ring = self.folder / ("keys/offline" if role in ("root", "targets") else "keys/online")
        (path,) = sorted(ring.glob(f"{role}-*.pem"))[:1]
        keyids = self.served("root.json").signed.keys if role != "director" else self.served_targets().signed.delegations.keys
        return KeyRing(ring).need(role, [keyid for keyid in keyids if keyid.startswith(path.stem.split("-")[1])], 1)[0]

    def served(self, name: str) -> Any:
        """Metadata as the repository serves it."""
        return Metadata.from_file(str(self.repository.metadata_dir / name))

    def served_targets(self) -> Any:
        snapshot = self.served(f"{self.served('timestamp.json').signed.snapshot_meta.version}.snapshot.json")
        return self.served(f"{snapshot.signed.meta['targets.json'].version}.targets.json")

    def forge(self, message: bytes, change: Callable[[Any], None], *signers: CryptoSigner) -> bytes:
        """A dn/desired payload whose signed part was changed and signed again."""
        whole = json.loads(message)
        metadata = Metadata.from_dict(whole["metadata"])
        metadata.signatures.clear()
        change(metadata.signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return json.dumps({**whole, "metadata": metadata.to_dict()}).encode()


def forged(metadata: Any, change: Callable[[Any], None], *signers: CryptoSigner) -> bytes:
    """Metadata changed and signed again."""
    metadata.signatures.clear()
    change(metadata.signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return bytes(metadata.to_bytes())


@pytest.fixture(name="forged")
def forged_fixture() -> Callable[..., bytes]:
    return forged


class Child:
    """One verifier's child, asked many times: each time with all blobs at hand, some of them replaced."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._folder = world.tmp / "child"
        self._folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        command = [sys.executable, "-P", "-m", "cloud_sync.trust.verify_process"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def ask(self, message: bytes, instead: Mapping[str, bytes] | None = None, **given: Any) -> Answer:
        fetched = self._folder / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        for path in self._world.repository.metadata_dir.glob("*.json"):
            blob_path(fetched, f"tuf/{path.name}").write_bytes(path.read_bytes())
        for name, data in (instead or {}).items():
            blob_path(fetched, name).write_bytes(data)
        (fetched / "message").write_bytes(message)
        request = Request(
            trust_dir=str(given.get("trust_dir", self._folder / "trust")),
            trust_root=str(self._world.repository.metadata_dir / "1.root.json"),
            fetched=str(fetched),
            message=str(fetched / "message"),
            tenant="acme",
            gateway="press-7",
            last_revision=0,
            now_wall_ns=self._world.wall.now_ns,
            absent=tuple(
                f"tuf/{version}.root.json" for version in range(1, 20) if not blob_path(fetched, f"tuf/{version}.root.json").exists()
            ),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")
        self.process.stdin.flush()
        return msgspec.json.decode(self.process.stdout.readline(), type=Answer)

    def document(self, answer: Answer) -> bytes:
        assert answer.desired is not None
        return Path(answer.desired.document).read_bytes()


@pytest.fixture
def child(world: World) -> Iterator[Child]:
    made = Child(world)
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture
def refused() -> Callable[..., Any]:
    """Expects a verification to be refused for one reason, with nothing kept of it."""

    async def expect(gateway: Gateway, message: bytes, reason: DeploymentReason, says: str = "", now_wall_ns: int | None = None) -> str:
        with pytest.raises(DeploymentRefused) as caught:
            await gateway.verify(message, now_wall_ns)
        assert caught.value.reason is reason, str(caught.value)
        assert says in str(caught.value)
        assert not list(gateway.trust_dir.glob("incoming-*"))
        return str(caught.value)

    return expect


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


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A controller's folder with one approved model, to be copied."""
    folder = tmp_path_factory.mktemp("pristine")
    repository = Repository.create(folder / "controller", clock=Wall())
    return folder, repository.approve(bundle_tar(folder / "bundle.tar"), repository.offline_keys).digest


@pytest.fixture
def world(pristine: tuple[Path, str], tmp_path: Path) -> World:
    folder, model = pristine
    shutil.copytree(folder / "controller", tmp_path / "controller")
    wall = Wall()
    return World(Repository.open(tmp_path / "controller", clock=wall), wall, model, tmp_path / "controller", tmp_path)


@pytest.fixture
def second_tar(world: World) -> Path:
    """Another bundle, not yet approved."""
    return bundle_tar(world.tmp / "second.tar", "valve", 2, b"other weights")
