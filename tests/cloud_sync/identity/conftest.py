"""A real controller for tests of identity: its folder as `controller init` makes it, its API over HTTPS, and mosquitto over mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloud_sync.controller import enrolment
from cloud_sync.controller.api.app import create_app
from cloud_sync.controller.authority import Authority, Issued
from cloud_sync.controller.broker import BrokerProcess, controllers_broker, find_mosquitto, free_port
from cloud_sync.controller.context import Context
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.serving import server
from cloud_sync.controller.settings import CONTROLLER, Settings, load
from cloud_sync.controller.setup import initialize, open_authority
from cloud_sync.controller.signing import Repository
from cloud_sync.https import Place, ask
from cloud_sync.identity import Identity
from cloud_sync.join import Joined, join
from cloud_sync.mqtt import MqttOptions, MqttSession, open_transport

TENANT = "acme"
ROOT = f"fl/v1/{TENANT}/g"


@dataclass
class Controller:
    """One controller that runs. `ahead_ns` moves its clock."""

    settings: Settings
    context: Context
    place: Place
    folder: Path
    ahead_ns: int = 0

    async def token(self, gateway: str = "", **options: Any) -> str:
        return (await enrolment.create_token(self.context, "ada", gateway, **options)).text

    async def join(self, name: str, token: str | None = None, folder: Path | None = None) -> Joined:
        text = token if token is not None else await self.token()
        return await join(self.place, text, name, folder or self.folder / name)

    def identity(self, name: str) -> Identity:
        return Identity(self.folder / name / "trust")

    def advance(self, days: float) -> None:
        self.ahead_ns += int(days * 86_400e9)

    async def call(self, method: str, path: str, identity: Identity | None = None, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """A request to the API with a gateway's certificate, or with none."""
        context = ssl.create_default_context(cafile=self.settings.ca)
        if identity is not None:
            context.load_cert_chain(identity.cert, identity.key)
        return await ask(self.place, method, path, context, body)


@dataclass
class Broker:
    """mosquitto as `controller init` configured it, and certificates for whoever a test needs."""

    settings: Settings
    authority: Authority
    process: BrokerProcess
    folder: Path
    issued: dict[str, Issued] = field(default_factory=dict)

    def options(self, name: str, **changes: Any) -> MqttOptions:
        """How the bearer of the certificate of `name` connects."""
        files = self.settings.client(name) if name == CONTROLLER else self.certificate(name)
        given = {"ca": str(self.settings.ca), "cert": str(files[0]), "key": str(files[1]), "client_id": name, "session_expiry_s": 0}
        return MqttOptions(host="127.0.0.1", port=self.settings.broker.port, **(given | {"protocol": "5"} | changes))

    def certificate(self, name: str, authority: Authority | None = None, days: float = 7.0) -> tuple[Path, Path]:
        cert, path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not cert.exists():
            secret = ec.generate_private_key(ec.SECP256R1())
            path.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            self.issued[name] = (authority or self.authority).issue(name, secret.public_key(), datetime.now(UTC), days)
            cert.write_text(self.issued[name].pem)
        return cert, path

    async def connect(self, name: str, **changes: Any) -> MqttSession:
        return await open_transport(self.options(name, **changes)).connect()

    def tls(self, name: str | None) -> ssl.SSLSocket:
        """A bare TLS connection to the broker."""
        context = ssl.create_default_context(cafile=self.settings.ca)
        if name is not None:
            context.load_cert_chain(*self.certificate(name))
        plain = socket.create_connection(("127.0.0.1", self.settings.broker.port), timeout=10)
        return context.wrap_socket(plain, server_hostname="localhost")


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A controller's folder, to be copied."""
    folder = tmp_path_factory.mktemp("initialised") / "controller"
    initialize(folder, ["localhost"], tenant=TENANT)
    return folder


@pytest.fixture(scope="session")
def copy_controller(initialised: Path) -> Callable[[Path], Settings]:
    def copy(folder: Path) -> Settings:
        shutil.copytree(initialised, folder)
        path = folder / "controller.yaml"
        text = path.read_text().replace("{port: 8443}", f"{{host: 127.0.0.1, port: {free_port()}}}")
        path.write_text(text.replace("{port: 8883}", f"{{host: 127.0.0.1, port: {free_port()}}}"))
        return load(folder)

    return copy


@pytest.fixture
async def controller(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> AsyncIterator[Controller]:
    settings = copy_controller(tmp_path / "controller")
    authority = open_authority(settings)
    database = await open_database(settings.database_url)
    context = Context(settings, database, Repository.open(settings.folder), authority, lambda _gateway: None)
    made = Controller(settings, context, Place("localhost", settings.api.port), tmp_path)
    context.now_ns = lambda: time.time_ns() + made.ahead_ns
    api = server(create_app(context), settings)
    running = asyncio.ensure_future(api.serve())
    async with asyncio.timeout(20):
        while not api.started:
            assert not running.done()
            await asyncio.sleep(0.005)
    yield made
    api.should_exit = True
    await running
    await database.close()


@pytest.fixture
def controller_broker(controller: Controller) -> Iterator[Broker]:
    """The broker of `controller`."""
    yield from _broker(controller.settings, controller.context.authority, controller.folder)


@pytest.fixture(scope="module")
def broker(copy_controller: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker alone, shared by a module's tests."""
    folder = tmp_path_factory.mktemp("broker")
    settings = copy_controller(folder / "controller")
    yield from _broker(settings, open_authority(settings), folder)


def _broker(settings: Settings, authority: Authority, folder: Path) -> Iterator[Broker]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    process = controllers_broker(settings)
    assert process is not None
    with process:
        yield Broker(settings, authority, process, folder)


@pytest.fixture
def other_authority(tmp_path: Path) -> Authority:
    """Somebody else's."""
    return Authority.create(tmp_path / "other.pem", tmp_path / "other.key", "edge-runtime acme", datetime.now(UTC) - timedelta(days=1))
