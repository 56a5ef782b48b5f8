"""The controller's settings: `controller.yaml` in its folder, typed and checked like a gateway file. Where everything else lies, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_runtime.config.load import decode, read
from edge_runtime.config.positions import parse_document
from edge_runtime.errors import ConfigError, InputError, Problem

FILE = "controller.yaml"
CONTROLLER, PUBLISHER = "controller", "controller-publisher"
"""The controller's own names at the broker, which takes one connection of a name: for what comes in, and for what goes out."""
RESERVED = (CONTROLLER, PUBLISHER)
"""Names that no gateway may have."""

Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="letters, digits, _ . -; no / + #")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:_-]{0,253}$", description="a host name or an address")]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ApiSpec(_Document, frozen=True, kw_only=True):
    """Where the REST API listens. An empty `host` is every address of the machine."""

    host: Host = ""
    port: Port = 8443


class BrokerSpec(_Document, frozen=True, kw_only=True):
    """Where the broker listens. `public_host` is what gateways are told when they reach it by another name than the API.

    `run`: mosquitto beside the controller, the embedded broker (on the loopback, without TLS: to try things out), or somebody else's.
    """

    run: Literal["mosquitto", "embedded", "none"] = "mosquitto"
    host: Host = ""
    port: Port = 8883
    public_host: Host = ""


class CertificateSpec(_Document, frozen=True, kw_only=True):
    """How long a gateway's certificate lives, and for how long after that the gateway may still renew it by itself."""

    days: Annotated[float, msgspec.Meta(gt=0, le=825)] = 7.0
    grace_days: Annotated[float, msgspec.Meta(ge=0, le=3650)] = 365.0


class ControllerFile(_Document, frozen=True, kw_only=True):
    """The document itself."""

    schema: Literal[1]
    tenant: Identifier = "default"
    names: tuple[Host, ...] = ()  # names and addresses that gateways and people use; the server's certificate holds them
    database: str = "data/controller.db"  # a file, relative to the folder, or postgresql://USER@HOST/NAME
    api: ApiSpec = ApiSpec()
    broker: BrokerSpec = BrokerSpec()
    certificates: CertificateSpec = CertificateSpec()
    discovery: bool = True  # announced on the local network by mDNS


@dataclass(frozen=True, slots=True)
class Settings:
    """A controller's folder with what its `controller.yaml` says."""

    folder: Path
    file: ControllerFile

    @property
    def tenant(self) -> str:
        return self.file.tenant

    @property
    def api(self) -> ApiSpec:
        return self.file.api

    @property
    def broker(self) -> BrokerSpec:
        return self.file.broker

    @property
    def certificates(self) -> CertificateSpec:
        return self.file.certificates

    @property
    def database_url(self) -> str:
        """As `engine.open_database` takes it; a relative file is made absolute."""
        given = self.file.database
        return given if "://" in given else str(self.folder / given)

    @property
    def ca(self) -> Path:
        return self.folder / "ca/ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca/ca.key"

    @property
    def crl(self) -> Path:
        return self.folder / "ca/crl.pem"

    @property
    def server_cert(self) -> Path:
        """The API's and the broker's."""
        return self.folder / "ca/server.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "ca/server.key"

    def client(self, name: str) -> tuple[Path, Path]:
        """Certificate and key by which the controller shows itself to its broker, as one of `RESERVED`."""
        return self.folder / f"ca/{name}.pem", self.folder / f"ca/{name}.key"

    @property
    def mosquitto_conf(self) -> Path:
        return self.folder / "mosquitto/mosquitto.conf"

    @property
    def broker_acl(self) -> Path:
        return self.folder / "mosquitto/acl"

    @property
    def broker_pid(self) -> Path:
        """Written by the broker when it starts."""
        return self.folder / "mosquitto/mosquitto.pid"

    @property
    def url(self) -> str:
        """The API as others are told to reach it."""
        name = self.file.names[0] if self.file.names else "localhost"
        return f"https://{f'[{name}]' if ':' in name else name}:{self.api.port}"


def load(folder: Path) -> Settings:
    """The settings of a controller's folder. Raises InputError when it has none, ConfigError with every problem."""
    path = folder.resolve() / FILE
    if not path.exists():
        raise InputError(f"{folder} has no {FILE}; make a controller there: edge-runtime controller init --dir {folder}")
    document = parse_document(read(path), str(path))
    settings = Settings(path.parent, decode(document, ControllerFile))
    if settings.api.port == settings.broker.port:
        raise ConfigError([Problem(str(path), document.line("broker.port"), "broker.port", "expected another port than the API's")])
    return settings
