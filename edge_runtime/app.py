"""The composition root: the only place that wires adapters, store, local loop, uplink and service into a running gateway.

Nothing here waits for the network. An uplink that fails is started again beside a loop that goes on; an adapter likewise.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime import __version__
from edge_runtime.access.address import is_loopback, parse_listen
from edge_runtime.access.local import SOCKET_NAME, LocalApi
from edge_runtime.access.status import StatusReport
from edge_runtime.actuation.driver import Output
from edge_runtime.clock import SystemClock
from edge_runtime.config.check import absolute_options
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import COAP_SERVER, BrokerSpec, CoapSpec, GatewayFile
from edge_runtime.deploy.disk import Disk
from edge_runtime.deploy.health import Totals, Watch
from edge_runtime.deploy.incoming import Incoming
from edge_runtime.deploy.slots import Slots
from edge_runtime.deploy.updates import FACTORY, Runtime, Updates
from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.loop import LocalLoop
from edge_runtime.ports import Actuators, PlatformAdapter, Uplink
from edge_runtime.registry import ADAPTERS, SERVERS, SYNC_TRANSPORTS, load
from edge_runtime.service import Notifier
from edge_runtime.serving import GraphCache, Served, note_serving, open_models, serve, unserved
from edge_runtime.store import Store
from edge_runtime.supervision import AdapterSupervisor, Supervision
from edge_runtime.types import ChannelInfo, ChannelKind, DesiredDeployment, LinkSettings, Notice, ReportedDeployment, ServerSettings

log = logging.getLogger(__name__)

_LONGEST_TICK_S = 0.05
_DRAIN_S = 0.8
_UPLINK_RETRY_S = 5.0


DeploymentSource = Callable[[], tuple[Deployment, Path]]
"""Reads the deployment and the folder that its relative paths start from. Raises ConfigError."""


class Gateway:
    """One gateway process. `run` returns when `stop` was called and what is pending is safe on disk.

    `source` reads the factory deployment; it is not asked while a pushed one is in force. The gateway is the host of the sync agent
    (`edge_runtime.ports.DeploymentHost`).
    """

    def __init__(
        self, config: GatewayFile, config_dir: Path, source: DeploymentSource, state_dir: Path, *, disk: Disk | None = None
    ) -> None:
        self.config = config
        self.clock = SystemClock()
        self.state_dir = state_dir
        self._source = source
        self._config_dir = config_dir
        self._store_notices: deque[tuple[str, str]] = deque()
        self.watch = Watch(self._totals, self.clock.monotonic_ns, lambda: self.loop.flow.canaries())
        self._diverged: set[str] = set()
        self.updates = Updates(Slots(state_dir, disk), config, state_dir / "models", self.clock, self.watch, self._runtime())
        chosen = self.updates.choose()
        self._deployment, self._deployment_dir = chosen.deployment, chosen.directory
        self.store = Store.open(
            state_dir,
            clock=self.clock,
            max_bytes=config.store.max_bytes,
            when_full=config.store.when_full,
            reserve_bytes=config.store.reserve_bytes,
            on_notice=self._store_notice,
        )
        self.models = open_models(state_dir / "models")
        self._incoming = Incoming(self.models, config.store.models_max_bytes, self.updates.held_models)
        self._graphs = GraphCache(state_dir / "graphs", config.store.models_max_bytes)
        self.loop = LocalLoop(self.clock, self.store, boot=self.store.boot, on_drop=self.store.count_drop)
        self.watch.listen(self.loop.bus)
        self.adapters: dict[str, PlatformAdapter] = {
            name: load(ADAPTERS, spec.driver)(name, absolute_options(spec.options, config_dir), self.clock)
            for name, spec in config.adapters.items()
        }
        self.served = Served({}, {}, {})
        self.ready = False
        self._units: dict[tuple[str, str], str] = {}
        self._stopping = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._changes = asyncio.Lock()
        self._notifier = Notifier.from_environment()
        self._status = StatusReport(self)
        if config.coap is not None:
            self.adapters[COAP_SERVER] = self._build_server(config.coap)
        self.supervisors = {name: self._supervise(name, adapter) for name, adapter in self.adapters.items()}
        self.uplink = _build_uplink(config, config_dir, self)
        self._api = LocalApi(state_dir / SOCKET_NAME, self._status.routes())

    @property
    def deployment(self) -> Deployment:
        return self._deployment

    def stop(self) -> None:
        """Asks for a graceful stop; safe from a signal handler on the loop."""
        self._stopping.set()

    def reload(self) -> None:
        """Asks for the deployment to be read again; safe from a signal handler on the loop."""
        self._reload_asked.set()

    async def run(self) -> None:
        """Senses, decides and acts until stopped."""
        await self._restore()
        await self._api.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._begin()
                self._start(tasks)
                await self._serve_models()
                self._tasks.append(tasks.create_task(_eternal(self.updates.run()), name="updates"))
                self.ready = True
                self._notifier.ready()
                log.info("gateway ready gateway=%s boot=%s", self.config.gateway.id, self.store.boot)
                await self._stopping.wait()
                self._notifier.stopping()
                await self._wind_down()
        finally:
            await self._api.stop()
            await self.store.close()
            for adapter in self.adapters.values():
                await adapter.close()

    async def change(self, deployment: Deployment, directory: Path) -> None:
        """Replaces the factory deployment while readings flow. Raises InputError and changes nothing when it does not fit."""
        served = await self._load_models(deployment, directory)
        try:
            served.require_all()
            await self._enforce(deployment, directory, served)
        except InputError:
            served.close()
            raise
        self.updates.reloaded(deployment, directory, served)

    # -- the sync agent's host (ports.DeploymentHost) ---------------------------------------------------------------------

    def reported(self) -> ReportedDeployment:
        return self.updates.reported()

    def has_model(self, digest: str) -> bool:
        return self.models.has(digest)

    async def install_model(self, archive: Path, digest: str) -> None:
        await self._incoming.install(archive, digest)

    async def apply(self, desired: DesiredDeployment) -> ReportedDeployment:
        try:
            return await self.updates.apply(desired)
        finally:
            self._incoming.settled(desired.models)

    async def deployment_changed(self) -> None:
        await self.updates.changed()

    def _runtime(self) -> Runtime:
        return Runtime(
            load=self._load_models,
            enforce=self._enforce,
            factory=self._source,
            factory_digest=self._factory_digest,
            has_model=self.has_model,
            passed=lambda key: self.store.put(key, b"1"),
            notice=lambda kind, subject, message: self._notice(kind, subject, message),
            models=lambda: {name: handle.digest for name, handle in self.served.handles.items()},
        )

    async def _enforce(self, deployment: Deployment, directory: Path, served: Served) -> Mapping[str, str]:
        """Puts loaded models and their deployment in force. Raises InputError and changes nothing; returns the pipelines refused."""
        async with self._changes:
            results = self.loop.flow.canaries()
            refused = self._configure(deployment, served)
            for figures in results:
                self._notice("canary_result", figures.pipeline, str(figures))
            before, self._deployment, self._deployment_dir, self.served = self._deployment, deployment, directory, served
            await self._note_serving(before)
            self._want_channels()
            self._notice("deployment_changed", str(deployment.revision), "")
            return refused

    def _totals(self) -> Totals:
        counters = self.loop.flow.counters
        return Totals(counters.inferences + counters.features, counters.errors, counters.overruns, counters.hangs)

    def _factory_digest(self) -> str:
        if self.config.deployment is None:
            return ""
        try:
            return "sha256:" + hashlib.sha256((self._config_dir / self.config.deployment).read_bytes()).hexdigest()
        except OSError:
            return ""

    # -- start ------------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """The best slot whose rules and units fit; its models are not loaded yet."""
        chosen = await self.updates.begin()
        while True:
            self._deployment, self._deployment_dir = chosen.deployment, chosen.directory
            self.served = unserved(self._deployment, self._deployment_dir, self.state_dir / "models")
            try:
                self._configure(self._deployment, self.served)
                break
            except InputError as err:
                chosen = await self.updates.pass_over(err)
        self._want_channels()

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = [
            tasks.create_task(_eternal(job), name=name)
            for name, job in (
                ("tick", self._tick()),
                ("actuation", self.loop.actuation.run()),
                ("watchdog", self._watchdog()),
                ("reload", self._keep_reloading()),
            )
        ]
        self._sensing = [tasks.create_task(s.run(), name=f"adapter:{s.name}") for s in self.supervisors.values()]
        if self.uplink is not None:
            self._tasks.append(tasks.create_task(self._keep_uplink(self.uplink), name="uplink"))

    async def _restore(self) -> None:
        snapshot = await self.store.get("rules")
        if snapshot:
            self.loop.restore(snapshot)

    async def _serve_models(self) -> None:
        """Models are loaded while sensing has already begun; until then their facts are unknown."""
        async with self._changes:
            self.served = await self._load_models(self._deployment, self._deployment_dir)
            refused = self._configure(self._deployment, self.served)
            await self._note_serving(self._deployment)
        await self.updates.loaded(self.served, refused)

    async def _note_serving(self, before: Deployment) -> None:
        """Tells the model store what serves now, so that it keeps this and the one before and clears the rest away."""
        budget = self.config.store.models_max_bytes
        held = self.updates.held_models() | self._incoming.fresh
        gone = await asyncio.to_thread(note_serving, self.models, self._deployment, before, budget, held)
        for digest in gone:
            log.info("model removed digest=%s", digest)

    async def _load_models(self, deployment: Deployment, directory: Path) -> Served:
        async def probed(key: str) -> bool:
            return await self.store.get(key) is not None

        served = await serve(
            deployment,
            directory,
            self.state_dir / "models",
            probed=probed,
            passed=lambda key: self.store.put(key, b"1"),
            cache=self._graphs,
        )
        for name, reason in served.refused.items():
            self._notice("model_refused", name, reason)
        return served

    def _configure(self, deployment: Deployment, served: Served) -> Mapping[str, str]:
        outputs = self._outputs(deployment)
        refused = self.loop.configure(deployment, self.config.sensors, self._units, served.handles, served.labels, outputs)
        for subject, reason in refused.items():
            self._notice("refused", subject, reason)
        return refused

    def _outputs(self, deployment: Deployment) -> dict[str, Output]:
        outputs: dict[str, Output] = {}
        for name, binding in self.config.actuators.items():
            adapter: object = self.adapters.get(binding.adapter)
            if name in deployment.actuators and isinstance(adapter, Actuators):
                outputs[name] = Output(adapter, binding.channel, binding.states, binding.adapter)
        return outputs

    def _want_channels(self) -> None:
        wanted: dict[str, dict[str, float]] = {name: {} for name in self.supervisors}
        for name, spec in self._deployment.sensors.items():
            binding = self.config.sensors.get(name)
            if binding is not None and binding.adapter in wanted:
                channels = wanted[binding.adapter]
                channels[binding.channel] = max(spec.rate_hz, channels.get(binding.channel, 0.0))
        for name, channels in wanted.items():
            self.supervisors[name].want(channels)

    # -- adapters ---------------------------------------------------------------------------------------------------------

    def _supervise(self, name: str, adapter: PlatformAdapter) -> AdapterSupervisor:
        report = Supervision(self._adapter_opened, self._adapter_lost, lambda name: self._notice("source_ended", name, ""))
        return AdapterSupervisor(name, adapter, {}, self.loop.ingest.sink(name), report)

    def _build_server(self, spec: CoapSpec) -> PlatformAdapter:
        settings = server_settings(spec)
        if not is_loopback(settings.host):
            log.warning("coap resources are served in clear at=%s:%d: whoever reaches it reads them", settings.host, settings.port)
        server: PlatformAdapter = load(SERVERS, "coap")(COAP_SERVER, settings, self.clock, self._status)
        return server

    def _adapter_opened(self, name: str, channels: Sequence[ChannelInfo]) -> None:
        units = {(name, info.channel): info.unit for info in channels}
        if any(self._units.get(key) != unit for key, unit in units.items()):
            self._units |= units
            self.loop.ingest.configure(self._deployment.sensors, self.config.sensors, self._units)
        self._notice("adapter_opened", name, f"{len(channels)} channels")
        self.loop.actuation.refresh(name)

    def _adapter_lost(self, name: str, detail: str) -> None:
        self._notice("adapter_lost", name, detail)

    # -- eternal tasks ----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Wakes the loop at its next deadline; a deadline set meanwhile is seen within 50 ms."""
        while True:
            now = self.clock.now()
            self.loop.tick(now)
            while self._store_notices:
                kind, message = self._store_notices.popleft()
                self._notice(kind, "store", message)
            step_ns = self.clock.take_step_ns()
            if step_ns:
                self._notice("clock_step", "wall clock", f"jumped by {step_ns / 1e9:+.3f} s")
            due = self.loop.next_deadline_ns()
            wait_s = _LONGEST_TICK_S if due is None else (due - self.clock.monotonic_ns()) * 1e-9
            await asyncio.sleep(min(_LONGEST_TICK_S, max(0.001, wait_s)))

    async def _watchdog(self) -> None:
        """Feeds systemd's watchdog from this loop, so that a stalled loop is a dead one; keeps the rules' memory."""
        interval_s = min(1.0, self._notifier.watchdog_interval_s or 1.0)
        while True:
            self._notifier.alive()
            self._notifier.status(self._status.line())
            self.store.put("rules", self.loop.snapshot())
            self._tell_divergence()
            await asyncio.sleep(interval_s)

    def _tell_divergence(self) -> None:
        """Once when a canary comes to differ by more than its limit, and once when it has come back below half of it."""
        before, self._diverged = self._diverged, set()
        for figures in self.loop.flow.canaries():
            name, divergence = f"{figures.pipeline}/{figures.digest}", figures.divergence or 0.0
            if divergence > figures.limit * (0.5 if name in before else 1.0) and figures.limit < 1:
                self._diverged.add(name)
            if (name in self._diverged) != (name in before):
                self._notice("canary_diverged" if name in self._diverged else "canary_agrees", figures.pipeline, str(figures))

    async def _keep_reloading(self) -> None:
        """A deployment that does not load or fit changes nothing; the reason is logged and recorded."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._notifier.reloading()
            await self._reload()
            self._notifier.ready()

    async def _reload(self) -> None:
        if self.updates.running.slot != FACTORY:
            log.warning("reload refused: revision %d was pushed and is in force", self._deployment.revision)
            self._notice("deployment_refused", "factory", f"revision {self._deployment.revision} was pushed and is in force")
            return
        try:
            await self.change(*await asyncio.to_thread(self._source))
        except InputError as err:
            log.error("reload refused: %s", err)
            self._notice("deployment_refused", str(self._deployment.revision), str(err))

    async def _keep_uplink(self, uplink: Uplink) -> None:
        while True:
            try:
                await uplink.run()
            except Exception:  # the uplink's border: whatever it does, the local loop goes on
                log.exception("uplink failed; starting it again in %g s", _UPLINK_RETRY_S)
            await asyncio.sleep(_UPLINK_RETRY_S)

    # -- stop -------------------------------------------------------------------------------------------------------------

    async def _wind_down(self) -> None:
        """Within 2 s: actuators become safe while their adapters are open, sensing ends, records are durable, the link takes some."""
        await self.loop.actuation.stop(safe=self.config.on_stop == "safe")
        await _cancel(self._sensing)
        self.store.put("rules", self.loop.snapshot())
        await self.updates.stop()
        await self.store.flush()
        if self.uplink is not None and self.uplink.up:
            await self._drain(_DRAIN_S)
        await _cancel(self._tasks)

    async def _drain(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.store.ledger().pending and loop.time() < deadline:  # noqa: ASYNC110 - bounded, and only while stopping
            await asyncio.sleep(0.02)

    # -- notices ----------------------------------------------------------------------------------------------------------

    def link_changed(self, up: bool, detail: str) -> None:
        """Called by the uplink at every change."""
        self._notice("link_up" if up else "link_down", "controller", detail)

    def _store_notice(self, kind: str, message: str) -> None:
        """From any thread, and before the loop exists: kept until the next tick."""
        log.warning("store notice=%s %s", kind, message)
        self._store_notices.append((kind, message))

    def _notice(self, kind: str, subject: str, message: str) -> None:
        self.loop.bus.publish(Notice(kind, self.clock.now(), subject, message))


def _build_uplink(config: GatewayFile, base: Path, gateway: Gateway) -> Uplink | None:
    broker = config.broker
    if broker is None:
        return None
    daily = gateway.deployment.sync.telemetry.max_bytes_per_day or 0
    settings = link_settings(broker, config, base, gateway.store.boot, daily, gateway.state_dir)
    uplink: Uplink = load(SYNC_TRANSPORTS, broker.transport)(
        settings, gateway.store.outbox, gateway.clock, gateway._status.report, gateway.link_changed, gateway
    )
    return uplink


def server_settings(spec: CoapSpec) -> ServerSettings:
    """The section `coap` as the server takes it. Raises InputError."""
    host, port = parse_listen(spec.listen, "coap.listen")
    pushed = tuple(
        ChannelInfo(name, ChannelKind.STREAMING, channel.unit, minimum=channel.minimum, maximum=channel.maximum)
        for name, channel in spec.ingest.items()
    )
    return ServerSettings(host=host, port=port, pushed=pushed, max_observers=spec.max_observers, notify_interval_s=spec.notify_interval_s)


def link_settings(
    broker: BrokerSpec, config: GatewayFile, base: Path, boot: str, max_bytes_per_day: int, state_dir: Path | None = None
) -> LinkSettings:
    """The broker and controller sections with absolute paths and the password read. Raises InputError when a file cannot be read."""
    tls, controller = broker.tls, config.controller
    password = None
    if broker.password_file is not None:
        try:
            password = (base / broker.password_file).read_text().strip()
        except OSError as err:
            raise InputError(f"broker.password_file: cannot read {base / broker.password_file}: {err.strerror}") from err
    return LinkSettings(
        host=broker.host,
        port=broker.port,
        tenant=config.gateway.tenant,
        gateway=config.gateway.id,
        boot=boot,
        version=__version__,
        ca=str(base / tls.ca) if tls else None,
        cert=str(base / tls.cert) if tls and tls.cert else None,
        key=str(base / tls.key) if tls and tls.key else None,
        username=broker.username,
        password=password,
        keepalive_s=broker.keepalive_s,
        protocol=broker.protocol,
        reconnect_max_s=broker.reconnect_max_s,
        max_bytes_per_day=max_bytes_per_day,
        state_dir=str(state_dir.absolute()) if state_dir else "",
        trust_root=str(base / controller.trust_root) if controller.trust_root else None,
        controller_url=controller.url,
        controller_ca=str(base / controller.ca) if controller.ca else None,
    )


async def _eternal(job: Coroutine[Any, Any, None]) -> None:
    await job
    raise EdgeRuntimeError(f"{getattr(job, '__qualname__', job)} ended; it must run as long as the gateway")


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
