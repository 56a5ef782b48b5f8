"""Updates on a disk with a runtime that has no models and no hardware: for what only the disk can do wrong. As a program, it dies on order.

`python -m tests.deploy.bare`: each line of stdin is JSON {"state", "revision", "text", "kill_at", "revert"}; a forked child applies the
deployment, takes it back if `revert` says so, and kills itself with SIGKILL at that step. The answer is {"status": wait status, "steps":
how many it came to}.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile, Identity
from edge_runtime.deploy.disk import Disk
from edge_runtime.deploy.health import Totals, Watch
from edge_runtime.deploy.slots import Slots
from edge_runtime.deploy.updates import Choice, Runtime, Updates
from edge_runtime.errors import DeploymentReason, InputError
from edge_runtime.serving import Served
from edge_runtime.types import DesiredDeployment, ReportedDeployment

FACTORY = Deployment(schema=1, flags={"factory": True})


class Bare:
    """One start of a gateway without anything but its deployments."""

    def __init__(self, state_dir: Path, disk: Disk | None = None, factory: Callable[[], tuple[Deployment, Path]] | None = None) -> None:
        state_dir.mkdir(exist_ok=True)
        self.clock = VirtualClock()
        self.in_force = Deployment(schema=1)
        self.notices: list[tuple[str, str, str]] = []
        self.totals = Totals()
        self.watch = Watch(lambda: self.totals, self.clock.monotonic_ns)
        runtime = Runtime(
            load=self._load,
            enforce=self._enforce,
            factory=factory or (lambda: (FACTORY, state_dir)),
            factory_digest=lambda: "factory",
            has_model=lambda digest: False,
            passed=lambda key: None,
            notice=lambda *told: self.notices.append(told),
            models=dict,
        )
        config = GatewayFile(schema=1, gateway=Identity(id="gw"))
        self.updates = Updates(Slots(state_dir, disk), config, state_dir, self.clock, self.watch, runtime)
        self.chosen = self.updates.choose()

    async def start(self) -> Choice:
        """As the gateway does: counts the start, then loads."""
        choice = await self.updates.begin()
        self.in_force = choice.deployment
        await self.updates.loaded(Served({}, {}, {}), {})
        return self.updates.running

    async def apply(self, offer: DesiredDeployment) -> ReportedDeployment:
        """With the task that serves offers running meanwhile."""
        task = asyncio.create_task(self.updates.run())
        try:
            return await self.updates.apply(offer)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _load(self, deployment: Deployment, directory: Path) -> Served:
        return Served({}, {}, {})

    async def _enforce(self, deployment: Deployment, directory: Path, served: Served) -> Mapping[str, str]:
        if "unfit" in deployment.flags:
            raise InputError("a flag `unfit`")
        self.in_force = deployment
        return {}


def offer(revision: int, flag: str, probation_s: float = 0.0) -> DesiredDeployment:
    """A deployment that is told by one flag."""
    return parse(revision, f"schema: 1\nflags: {{{flag}: true}}\nhealth: {{probation_s: {probation_s}}}\n")


def parse(revision: int, text: str) -> DesiredDeployment:
    data = text.encode()
    return DesiredDeployment(revision, "sha256:" + hashlib.sha256(data).hexdigest(), data, 2**62)


def flags(bare: Bare) -> set[str]:
    """What is in force."""
    return set(bare.in_force.flags)


def _die(order: dict[str, object], pipe: int) -> None:
    steps = 0

    def told(step: str, path: Path) -> None:
        nonlocal steps
        os.write(pipe, b".")
        if steps == order["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    async def main() -> None:
        bare = Bare(Path(str(order["state"])), Disk(told))
        await bare.start()
        await bare.apply(parse(int(str(order["revision"])), str(order["text"])))
        if order["revert"]:
            await bare.updates.revert(DeploymentReason.UNHEALTHY, "errors: every run failed")

    asyncio.run(main())


def _serve() -> None:
    import edge_runtime.config.check
    import edge_runtime.serving  # noqa: F401 - once, and not in each child

    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                _die(order, writing)
            except BaseException:  # noqa: BLE001 - the child of a fork: nobody else's code may run
                os._exit(1)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            steps = len(pipe.read())
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"status": status, "steps": steps}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
