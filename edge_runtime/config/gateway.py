"""The gateway file: identity, hardware bindings, broker, store. Local to one machine; never pushed. Types only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edge_runtime.config.deployment import Name, Seconds, _Document

Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="letters, digits, _ . -; no / + #")]


COAP_SERVER = "coap_server"
"""The adapter that sensors bind readings pushed over CoAP by."""


class Identity(_Document, frozen=True, kw_only=True):
    """Who this gateway is; names in topics."""

    id: Identifier
    tenant: Identifier = "default"
    site: str = ""
    labels: dict[str, str] = {}


class AdapterSpec(_Document, frozen=True, kw_only=True):
    """One adapter instance: the driver's name and its own options."""

    driver: str
    options: dict[str, Any] = {}


class SensorBinding(_Document, frozen=True, kw_only=True):
    """A logical channel on a physical one. reading = scale * raw + offset, in `unit` (default: the channel's own), then
    converted to the deployment's unit."""

    adapter: str
    channel: str
    unit: str | None = None
    scale: float = 1.0
    offset: float = 0.0


class ActuatorBinding(_Document, frozen=True, kw_only=True):
    """A logical actuator on a physical channel; `states` maps logical states to what the driver wants."""

    adapter: str
    channel: str
    states: dict[str, str] = {}


class TlsSpec(_Document, frozen=True, kw_only=True):
    """mutual TLS; paths relative to the gateway file."""

    ca: str
    cert: str | None = None
    key: str | None = None


class BrokerSpec(_Document, frozen=True, kw_only=True):
    """Where the controller's broker is. Absent: the gateway runs offline and stores."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8883
    tls: TlsSpec | None = None
    username: str | None = None
    password_file: str | None = None
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    transport: str = "mqtt"
    reconnect_max_s: Seconds = 60.0


class ControllerSpec(_Document, frozen=True, kw_only=True):
    """Where the controller's API is and what it is trusted by; `join` writes this. Paths relative to the gateway file.

    Without `trust_root` the gateway sends telemetry and takes no pushed deployments.
    """

    url: str | None = None
    ca: str | None = None
    trust_root: str | None = None


class StoreSpec(_Document, frozen=True, kw_only=True):
    """Hard limits of the durable store and of the models on disk."""

    max_bytes: Annotated[int, msgspec.Meta(ge=1_048_576)] = 256 * 1024 * 1024
    when_full: Literal["keep_newest", "keep_oldest", "by_priority"] = "by_priority"
    reserve_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 1024 * 1024
    models_max_bytes: Annotated[int, msgspec.Meta(ge=1_048_576)] = 1024 * 1024 * 1024  # and as much for optimised graphs


class IngestSpec(_Document, frozen=True, kw_only=True):
    """One channel that a reading may be pushed to; a value outside the bounds is refused."""

    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None


class CoapSpec(_Document, frozen=True, kw_only=True):
    """The gateway's own CoAP resources. Not encrypted: whoever reaches the address reads them, and pushes to what `ingest` names.

    Sensors bind pushed channels as `adapter: coap_server`.
    """

    listen: str = "127.0.0.1:5683"
    ingest: dict[Name, IngestSpec] = {}
    max_observers: Annotated[int, msgspec.Meta(ge=0, le=256)] = 64
    notify_interval_s: Seconds = 1.0


class LogSpec(_Document, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    style: Literal["text", "json"] = "text"


class GatewayFile(_Document, frozen=True, kw_only=True):
    """Everything local about one gateway."""

    schema: Literal[1]
    gateway: Identity
    adapters: dict[Name, AdapterSpec] = {}
    sensors: dict[Name, SensorBinding] = {}
    actuators: dict[Name, ActuatorBinding] = {}
    broker: BrokerSpec | None = None
    controller: ControllerSpec = ControllerSpec()
    coap: CoapSpec | None = None
    store: StoreSpec = StoreSpec()
    log: LogSpec = LogSpec()
    deployment: str | None = None  # the factory deployment, relative to this file
    on_stop: Literal["safe", "hold"] = "safe"  # actuators at a graceful stop
