"""Builds the gateway's uplink over MQTT from plain settings: the entry point `mqtt` of `edge_runtime.sync_transports`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cloud_sync.mqtt import MqttOptions, open_transport
from cloud_sync.renewal import Renewer, open_renewer
from cloud_sync.session import Uplink, UplinkSettings
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import Clock
from edge_runtime.errors import InputError
from edge_runtime.ports import DeploymentHost, Outbox, StateReport
from edge_runtime.types import LinkSettings

if TYPE_CHECKING:
    from cloud_sync.agent import SyncAgent


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
    renewer = open_renewer(settings, clock)
    reporter = _Reporter()
    agent = _open_agent(settings, host, topics, clock, reporter.report)
    uplink = Uplink(
        outbox,
        open_transport(options),
        topics,
        settings.boot,
        clock,
        version=settings.version,
        state=state if agent is None else lambda: _merged(agent, state()),
        on_link=on_link,
        on_failure=lambda reason: _ask_when_refused(renewer, reason),
        settings=limits,
        companions=() if agent is None else (agent.serve,),
        beside=() if renewer is None else (renewer.run,),
    )
    reporter.uplink = uplink
    return uplink


def _ask_when_refused(renewer: Renewer | None, reason: str) -> None:
    """A broker that does not take the certificate is a reason to ask for another, whatever this machine's clock says of it."""
    if renewer is not None and "certificate" in reason:
        renewer.poke()


class _Reporter:
    """Passes the agent's wish to report on to the uplink, which is made after it."""

    uplink: Uplink | None = None

    def report(self) -> None:
        if self.uplink is not None:
            self.uplink.report()


def _open_agent(
    settings: LinkSettings, host: DeploymentHost | None, topics: GatewayTopics, clock: Clock, report: Callable[[], None]
) -> SyncAgent | None:
    """The sync agent, where deployments are trusted by somebody's root and there is a host to take them."""
    if host is None or settings.trust_root is None:
        return None
    from cloud_sync.agent import SyncAgent
    from cloud_sync.downloads import open_downloads
    from cloud_sync.trust import Verifier

    folder = Path(settings.state_dir) / "sync"
    verifier = Verifier(folder / "trust", settings.tenant, settings.gateway, trust_root=Path(settings.trust_root))
    return SyncAgent(host, verifier, topics, folder, clock, report, downloads=open_downloads(settings))


def _merged(agent: SyncAgent, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "status": agent.merged(facts.get("status", {}))}
