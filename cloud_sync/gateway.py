"""Builds the gateway's uplink over MQTT from plain settings: the entry point `mqtt` of `edge_runtime.sync_transports`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import Clock
from edge_runtime.errors import InputError
from edge_runtime.ports import DeploymentHost, Outbox, StateReport
from edge_runtime.types import LinkSettings


def mqtt_uplink(
    settings: LinkSettings,
    outbox: Outbox,
    clock: Clock,
    state: StateReport,
    on_link: Callable[[bool, str], None],
    host: DeploymentHost | None = None,
) -> Uplink:
    """An uplink that has not connected yet. The gateway's id is its client id. Raises InputError on settings that cannot work."""
    try:
        options = msgspec.convert(
            {
                "client_id": settings.gateway,
                **{
                    name: getattr(settings, name)
                    for name in ("host", "port", "ca", "cert", "key", "username", "password", "keepalive_s", "protocol")
                },
            },
            MqttOptions,
        )
    except msgspec.ValidationError as err:
        raise InputError(f"broker: {err}") from err
    limits = UplinkSettings(
        ack_timeout_s=2.0,  # then doubling: a controller that comes back after its broker is met soon
        reconnect_base_s=min(1.0, settings.reconnect_max_s),
        reconnect_max_s=settings.reconnect_max_s,
        max_bytes_per_day=settings.max_bytes_per_day,
    )
    topics = GatewayTopics(settings.tenant, settings.gateway)
    return Uplink(
        outbox,
        open_transport(options),
        topics,
        settings.boot,
        clock,
        version=settings.version,
        state=state,
        on_link=on_link,
        settings=limits,
    )
