"""The demo's processes: gateway, broker and controller sink, each started by the same commands a user would type."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.access.local import ask
from edge_runtime.demo.node import ROOM_CELSIUS, EmulatedNode
from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError, MissingDependency
from edge_runtime.store import read_boots, read_drops

GATEWAY = "gw-demo"
_START_TIMEOUT_S = 30.0

T = TypeVar("T")

_GATEWAY_FILE = """\
schema: 1
gateway: {{id: {gateway}, tenant: demo, site: waterworks}}
adapters:
  plant: {{driver: simulated, options: {{panel: {panel}, seed: 7}}}}
sensors:
  vibration:   {{adapter: plant, channel: pump/vibration}}
  temperature: {{adapter: plant, channel: pump/temperature}}
  current:     {{adapter: plant, channel: pump/current}}
  flow:        {{adapter: plant, channel: pump/flow}}
  speed:       {{adapter: plant, channel: pump/speed}}
actuators:
  valve: {{adapter: plant, channel: pump/valve}}
broker: {{host: 127.0.0.1, port: {port}, reconnect_max_s: 2}}
deployment: deployment.yaml
"""


@dataclass(frozen=True, slots=True)
class SinkCount:
    """What the controller's database holds of the gateway: rows, rows that are there twice, and rows that are not there."""

    rows: int
    duplicates: int
    missing: int


def run(story: Coroutine[Any, Any, T]) -> T:
    """asyncio.run that SIGTERM and a closed terminal end as Ctrl-C does: with all that the story started."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        return asyncio.run(story)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class GatewayStage:
    """Processes in one folder, a gateway among them; every one of them can be killed and started again."""

    directory: Path
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict, kw_only=True)

    @property
    def state_dir(self) -> Path:
        return self.directory / "gateway-state"

    async def start_gateway(self) -> None:
        """Starts the gateway and waits until it serves its model."""
        arguments = ["run", "--config", str(self.directory / "gateway.yaml"), "--state", str(self.state_dir)]
        await self._spawn("gateway", arguments, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not (await self.status()).get("ready"):
                self._check_alive("gateway")
                await asyncio.sleep(0.05)

    async def kill(self, name: str) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def stop(self, name: str, deadline_s: float = 5.0) -> float:
        """SIGTERM; returns how long the process took to stop."""
        process = self.processes.pop(name)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), deadline_s)
        except TimeoutError as err:
            raise DeadlineExceeded(f"{name} did not stop within {deadline_s:g} s; see {self.log_path(name)}") from err
        return loop.time() - begun

    async def close(self) -> None:
        """Ends whatever still runs."""
        for name in list(self.processes):
            await self.kill(name)

    async def status(self) -> dict[str, Any]:
        """The gateway's own status, or an empty dict while it does not run."""
        try:
            answer: dict[str, Any] = await asyncio.to_thread(ask, self.state_dir, "/status", timeout_s=2.0)
        except (OSError, EdgeRuntimeError, ValueError):
            return {}
        return answer

    def log_path(self, name: str) -> Path:
        """Where a process's log goes."""
        return self.directory / f"{name}.log"

    async def _start(self, name: str, arguments: Sequence[str], stdin: int | None = None) -> dict[str, Any]:
        """Starts a command that prints one JSON line when it is ready; returns that line."""
        process = await self._spawn(name, arguments, stdout=asyncio.subprocess.PIPE, stdin=stdin)
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S)
        except TimeoutError as err:
            raise DeadlineExceeded(f"{name} was not ready within {_START_TIMEOUT_S:g} s; see {self.log_path(name)}") from err
        if not line:
            await process.wait()
            self._check_alive(name)
        ready: dict[str, Any] = json.loads(line)
        return ready

    async def _spawn(self, name: str, arguments: Sequence[str], stdout: int, stdin: int | None = None) -> asyncio.subprocess.Process:
        with self.log_path(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_runtime", *arguments, stdin=stdin, stdout=stdout, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def _check_alive(self, name: str) -> None:
        process = self.processes[name]
        if process.returncode is not None:
            tail = self.log_path(name).read_text(errors="replace").strip().splitlines()[-3:]
            raise EdgeRuntimeError(f"{name} ended with code {process.returncode}: {' | '.join(tail) or 'no log'}")


@dataclass
class Stage(GatewayStage):
    """All processes of the demo."""

    port: int
    broker: str = "mosquitto"
    node: EmulatedNode | None = None
    _broker_pid: int = 0

    @property
    def database(self) -> Path:
        return self.directory / "controller.sqlite"

    @property
    def panel(self) -> Path:
        return self.directory / "panel.json"

    def prepare(self) -> None:
        """Writes the gateway file and the deployment."""
        text = _GATEWAY_FILE.format(gateway=GATEWAY, panel=json.dumps(str(self.panel)), port=self.port)
        deployment = resources.files("edge_runtime.demo").joinpath("deployment.yaml").read_text()
        if self.node:
            text, deployment = self.node.gateway_file(text), self.node.deployment(deployment)
        (self.directory / "gateway.yaml").write_text(text)
        (self.directory / "deployment.yaml").write_text(deployment)

    async def start_node(self) -> str:
        """Starts an emulated sensor node, before `prepare`; returns why there is none here, or nothing."""
        for module, package in (("serial", "pyserial"), ("cobs", "cobs")):
            if find_spec(module) is None:
                return str(MissingDependency(package, "serial"))
        try:
            ready = await self._start("node", ["node", "emulate", "--alone", "--json"], stdin=asyncio.subprocess.PIPE)
        except EdgeRuntimeError as err:
            self.processes.pop("node", None)
            return str(err).partition("edge-runtime: ")[2] or str(err)
        self.node = EmulatedNode(self.processes["node"], ready["port"])
        await self.node.heat(ROOM_CELSIUS)
        return ""

    def set_faults(self, faults: Mapping[str, float]) -> None:
        """Turns knobs on the plant's panel; the running plant sees it within 100 ms."""
        panel = json.loads(self.panel.read_text()) if self.panel.exists() else {}
        panel["faults"] = dict(faults)
        scratch = self.panel.with_suffix(".new")
        scratch.write_text(json.dumps(panel))
        scratch.replace(self.panel)

    async def start_broker(self) -> str:
        """Starts the broker; returns which one it is."""
        return await self._run_broker(["--port", str(self.port), "--dir", str(self.directory / "broker"), "--prefer", self.broker])

    async def _run_broker(self, arguments: Sequence[str]) -> str:
        ready = await self._start("broker", ["controller", "broker", *arguments])
        self._broker_pid = int(ready["pid"])
        return str(ready["broker"])

    async def start_sink(self) -> None:
        """Starts the controller's sink."""
        arguments = ["controller", "sink", "--host", "127.0.0.1", "--port", str(self.port), "--database", str(self.database)]
        await self._start("controller", arguments)

    async def kill(self, name: str) -> None:
        """As for any process; the broker's own is not in the group of the command that started it."""
        if name == "broker" and self._broker_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._broker_pid, signal.SIGKILL)
        await super().kill(name)

    async def close(self) -> None:
        """The emulator tidies up after itself; the rest is killed."""
        if "node" in self.processes:
            with contextlib.suppress(DeadlineExceeded):
                await self.stop("node")
        await super().close()

    def compare(self) -> SinkCount:
        """Looks up in the controller's database every record number that the gateway's disk has committed and not dropped."""
        found = set(self._query("SELECT boot, seq FROM records WHERE gateway = ?", (GATEWAY,)))
        expected = {(boot, seq) for boot, last in read_boots(self.state_dir).items() for seq in range(1, last + 1)}
        for run in read_drops(self.state_dir):
            expected -= {(run.boot, seq) for seq in range(run.first_seq, run.last_seq + 1)}
        duplicates = self.sink_rows() - len(found)
        return SinkCount(len(found), duplicates, len(expected - found))

    def sink_rows(self) -> int:
        """How many records the controller's database holds."""
        return int(self._query("SELECT count(*) FROM records WHERE gateway = ?", (GATEWAY,))[0][0])

    def _query(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute(sql, parameters).fetchall()
