"""The demo's stage with a whole controller: set up, joined and pushed to by the commands that a user would type."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_runtime.demo.stage import GATEWAY, Stage
from edge_runtime.errors import EdgeRuntimeError

_CONTROLLER_FILE = """\
schema: 1
tenant: demo
names: [localhost]
database: data/controller.db
api: {{host: 127.0.0.1, port: {api_port}}}
broker: {{host: 127.0.0.1, port: {broker_port}, run: {broker}}}
certificates: {{days: 7}}
discovery: false
"""
_TLS = "tls: {ca: gateway/trust/ca.pem, cert: gateway/trust/gateway.pem, key: gateway/trust/gateway.key}"
_SYNC = "broker: {{host: localhost, port: {port}, reconnect_max_s: 2{tls}}}\ncontroller: {{trust_root: gateway/trust/root.json}}\n"
_ZOO_MODEL = '{path: "zoo:bearing"'
_COMMAND_S = 60.0


@dataclass
class FleetStage(Stage):
    """A stage whose broker wants certificates (mosquitto; the embedded one has none) and whose controller signs what it pushes."""

    node_missing: str = ""
    _profile: str = ""

    @property
    def controller_dir(self) -> Path:
        return self.directory / "controller"

    @property
    def database(self) -> Path:
        return self.controller_dir / "data/controller.db"

    async def set_up(self) -> None:
        """Makes the controller and, where it can be emulated, the sensor node; writes the gateway file and the deployment."""
        self.node_missing = await self.start_node()
        self.prepare()
        secure = self.broker == "mosquitto" and _mosquitto_is_here()
        self.controller_dir.mkdir(exist_ok=True)
        kind = "mosquitto" if secure else "embedded"
        text = _CONTROLLER_FILE.format(api_port=_free_port(), broker_port=self.port, broker=kind)
        (self.controller_dir / "controller.yaml").write_text(text)
        made = await self._ask("controller", "init", "--dir", str(self.controller_dir), "--json")
        profile = {"url": made["url"], "token": made["token"], "ca": made["ca"]}
        self._profile = str(self.controller_dir / "profile.json")
        Path(self._profile).write_text(json.dumps(profile))
        path = self.directory / "gateway.yaml"
        kept = [line for line in path.read_text().splitlines() if not line.startswith("broker:")]
        path.write_text("\n".join(kept) + "\n" + _SYNC.format(port=self.port, tls=f", {_TLS}" if secure else ""))

    async def start_broker(self) -> str:
        return await self._run_broker(["--dir", str(self.controller_dir)])

    async def start_sink(self) -> None:
        await self._start("controller", ["controller", "run", "--dir", str(self.controller_dir), "--no-broker"])

    async def join(self) -> None:
        """The gateway makes its key and is let in with a one-use token."""
        token = (await self._fleet("token", "--gateway", GATEWAY))["token"]
        url = json.loads(Path(self._profile).read_text())["url"]
        await self._ask("join", url, "--token", token, "--id", GATEWAY, "--dir", str(self.directory / "gateway"), "--json")

    async def push(self, model: Path, name: str, changes: dict[str, str]) -> int:
        """Signs a model and pushes the demo's deployment with it; returns the revision. `model` is a bundle's folder or tar."""
        return await self.offer((await self.signed(model, name, changes))[1])

    async def signed(self, model: Path, name: str, changes: dict[str, str]) -> tuple[Path, Path]:
        """A model's tar, signed offline, and the demo's deployment with it and with `changes` of its text."""
        tar = self.directory / f"{name}.tar"
        if model.is_dir():
            await self._command("model", "pack", str(model), "--out", str(tar))
        else:
            shutil.copyfile(model, tar)
        approved = await self._ask("controller", "approve", str(tar), "--dir", str(self.controller_dir), "--json")
        text = (self.directory / "deployment.yaml").read_text().replace(_ZOO_MODEL, f'{{digest: "{approved[0]["digest"]}"')
        for old, new in changes.items():
            text = text.replace(old, new)
        document = self.directory / f"{name}.yaml"
        document.write_text(text)
        return tar, document

    async def offer(self, document: Path) -> int:
        """Pushes a deployment to the gateway; returns its revision."""
        return int((await self._fleet("push", str(document), "--gateway", GATEWAY))[0]["revision"])

    async def _fleet(self, *arguments: str) -> Any:
        return await self._ask("fleet", "--profile", self._profile, *arguments, "--json")

    async def _ask(self, *arguments: str) -> Any:
        return json.loads(await self._command(*arguments))

    async def _command(self, *arguments: str) -> bytes:
        """Runs one command to its end; returns what it printed. Raises EdgeRuntimeError with what it complained of."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_runtime", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(_COMMAND_S):
            printed, complaint = await process.communicate()
        if process.returncode:
            raise EdgeRuntimeError(f"edge-runtime {' '.join(arguments[:2])}: {complaint.decode(errors='replace').strip()[-500:]}")
        return printed


def good_model() -> Path:
    """The bundle that the demo's first push carries."""
    return _zoo() / "bearing"


def bad_model() -> Path:
    """A model that passes its trial run and cries wolf in service: only the health gate can tell."""
    return _zoo() / "bearing/impaired.tar"


def _zoo() -> Path:
    spec = find_spec("models")
    if spec is None or not spec.submodule_search_locations:
        raise EdgeRuntimeError("the package `models` is not installed; install edge-runtime anew")
    return Path(spec.submodule_search_locations[0]) / "zoo"


def _mosquitto_is_here() -> bool:
    return bool(shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
