"""`controller run`: the whole controller in one process beside its broker: telemetry in, deployments out, API, discovery.

The broker is a child of this process where `broker.run` says so, and is started again when it dies. When another part fails, the process
ends with its reason, for a service manager to start it again: all that counts is in the database and the signed repository.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from cloud_sync.controller.api.app import create_app
from cloud_sync.controller.broker import BrokerProcess, controllers_broker
from cloud_sync.controller.context import Context
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.enrolment import publish_revocations
from cloud_sync.controller.keys import SOON_NS
from cloud_sync.controller.publisher import Publisher
from cloud_sync.controller.resigning import resign
from cloud_sync.controller.serving import server
from cloud_sync.controller.settings import CONTROLLER, PUBLISHER, Settings, load
from cloud_sync.controller.setup import open_authority
from cloud_sync.controller.signing import Repository
from cloud_sync.controller.sink import Sink
from cloud_sync.discovery import announced
from cloud_sync.mqtt import MqttOptions, open_transport
from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError, InputError, MissingDependency, TransportError

_log = logging.getLogger(__name__)
_DAY_S = 86_400.0
_DAY_NS = 86_400 * 10**9
_TIMESTAMP_S = 3600.0
_REPOSITORY_LOOK_S = 1.0
_BROKER_LOOK_S = 0.5
_BROKER_RETRY_S = 2.0


async def run(folder: Path, *, start_broker: bool = True) -> None:
    """Runs until SIGTERM or SIGINT. Prints one JSON line once broker and API are reached."""
    settings = load(folder)
    listening = _listen(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listening.close)
        parts = await _open(settings, stack, start_broker=start_broker)
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await parts.run(listening, stopping)


@dataclass
class Parts:
    """Everything that runs, opened and not started."""

    settings: Settings
    context: Context
    sink: Sink
    publisher: Publisher
    broker: BrokerProcess | None
    linked: asyncio.Event

    async def run(self, listening: socket.socket, stopping: asyncio.Event) -> None:
        """Returns when `stopping` is set, everything ended. Raises what the first part that failed has raised."""
        api = server(create_app(self.context), self.settings)
        jobs = [self.sink.run(), self.publisher.run(), _keep_fresh(self.context, self.publisher), _announce(self.context)]
        jobs.append(_follow_repository(self.context, self.publisher))
        if self.broker is not None:
            jobs.append(_keep_broker(self.broker))
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(job) for job in jobs]
            serving = tasks.create_task(api._serve(sockets=[listening]), name="api")
            background.append(tasks.create_task(self._tell_ready()))
            await stopping.wait()
            api.should_exit = True
            await serving
            for task in background:
                task.cancel()

    async def _tell_ready(self) -> None:
        await self.linked.wait()
        facts = {"ready": True, "url": self.settings.url, "broker_port": self.settings.broker.port, "pid": os.getpid()}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


async def _open(settings: Settings, stack: contextlib.AsyncExitStack, *, start_broker: bool) -> Parts:
    authority = open_authority(settings)
    repository = Repository.open(settings.folder)
    repository.refresh_timestamp()
    database = await open_database(settings.database_url)
    stack.push_async_callback(database.close)
    broker = await asyncio.to_thread(controllers_broker, settings) if start_broker else None
    if broker is not None:
        stack.callback(broker.stop)
    writer = database.writer()
    stack.callback(writer.close)
    linked = asyncio.Event()
    publisher = Publisher(open_transport(_link(settings, PUBLISHER)), database.engine, repository, settings.tenant)
    sink = Sink(open_transport(_link(settings, CONTROLLER)), writer, tenant=settings.tenant, on_ready=lambda _: linked.set())
    context = Context(settings, database, repository, authority, publisher.deployed, sink)
    await publish_revocations(context)
    return Parts(settings, context, sink, publisher, broker, linked)


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.api.host, settings.api.port
    try:
        if host:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        return (
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            if socket.has_dualstack_ipv6()
            else (socket.create_server(("", port)))
        )
    except OSError as err:
        raise InputError(
            f"api: cannot listen on port {port}: {err.strerror}; end what listens there, or change it in controller.yaml"
        ) from err


def _link(settings: Settings, name: str) -> MqttOptions:
    """How this controller reaches its own broker as `name`."""
    host = settings.broker.host or "localhost"
    if settings.broker.run == "embedded":
        return MqttOptions(host="127.0.0.1", port=settings.broker.port, client_id=name, receive_maximum=256, session_expiry_s=0)
    cert, key = settings.client(name)
    return MqttOptions(
        host=host,
        port=settings.broker.port,
        client_id=name,
        ca=str(settings.ca),
        cert=str(cert),
        key=str(key),
        receive_maximum=256,
        session_expiry_s=0,
    )


async def _announce(context: Context) -> None:
    """By mDNS, while the controller runs; a machine without multicast only loses `join` without a URL."""
    if not context.settings.file.discovery:
        return
    try:
        async with announced(context.settings.api.port, context.tenant, context.authority.fingerprint):
            await asyncio.Event().wait()
    except (MissingDependency, OSError) as err:
        _log.warning("not announced on the local network: %s", err)


async def _keep_fresh(context: Context, publisher: Publisher) -> None:
    """The signed timestamp every hour, certificates and revocations every day."""
    await asyncio.gather(
        _every(_TIMESTAMP_S, lambda: _refresh_timestamp(context, publisher)), _every(_DAY_S, lambda: _refresh_identity(context))
    )


async def _follow_repository(context: Context, publisher: Publisher) -> None:
    """Models are approved and keys are rotated by commands beside this process: gateways are told, deployments signed by the new key."""
    seen: object = None
    while True:
        try:
            state = await asyncio.to_thread(context.repository.state)
            if state != seen:
                await resign(context)
                publisher.refreshed()
                _warn_of_expiry(context)
                seen = state
        except (EdgeRuntimeError, SQLAlchemyError, OSError) as err:
            _log.error("cannot follow the signed repository: %s", err)
        await asyncio.sleep(_REPOSITORY_LOOK_S)


def _warn_of_expiry(context: Context) -> None:
    for role, expires in context.repository.expiries().items():
        left_ns = expires - context.now_ns()
        if role in ("root", "targets") and left_ns < SOON_NS:
            _log.warning("metadata_due role=%s days=%.0f next=%r", role, left_ns / _DAY_NS, f"controller keys renew {role}")


async def _refresh_timestamp(context: Context, publisher: Publisher) -> None:
    await asyncio.to_thread(context.repository.refresh_timestamp)
    publisher.refreshed()


async def _refresh_identity(context: Context) -> None:
    await asyncio.to_thread(open_authority, context.settings)
    await publish_revocations(context)


async def _every(seconds: float, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await job()
        except (EdgeRuntimeError, OSError) as err:
            _log.error("cannot refresh: %s; trying again in %g s", err, seconds)


async def _keep_broker(broker: BrokerProcess) -> None:
    """Starts the broker again when it has died; sessions and what it had queued may be gone, which nobody relies on."""
    while True:
        await asyncio.sleep(_BROKER_LOOK_S)
        if broker.pid:
            continue
        _log.error("broker_died kind=%s log=%s", broker.kind, broker.log)
        try:
            await asyncio.to_thread(broker.restart)
        except (TransportError, DeadlineExceeded) as err:
            _log.error("broker does not start: %s", err)
            await asyncio.sleep(_BROKER_RETRY_S)
