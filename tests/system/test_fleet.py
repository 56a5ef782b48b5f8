"""A fleet as a new user sets it up, by the commands of the how-to alone: real processes, real mosquitto over mutual TLS, both databases."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.controller.broker import find_mosquitto, free_port
from edge_runtime.store import read_ledger
from edge_runtime.testing.postgres import find_postgres, postgres_server

DEPLOYMENT = """\
schema: 1
sensors: {load: {rate_hz: 20}}
flags: {mark%d: true}
sync: {telemetry: {mode: scalars}}
health: {probation_s: 0}
"""


@dataclass
class Plant:
    """One controller's folder, one gateway's, and what runs."""

    folder: Path
    database: str = ""
    certificate_days: float = 7.0
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def command(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(self.line(*arguments), capture_output=True, text=True, timeout=120, env=self.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.command(*arguments, "--json"))

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edge_runtime", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"EDGE_RUNTIME_PROFILE": str(self.folder / "profile.json")}

    @property
    def controller(self) -> str:
        return str(self.folder / "controller")

    def set_up(self) -> None:
        (self.folder / "controller").mkdir()
        database = f"database: '{self.database}'\n" if self.database else ""
        (self.folder / "controller/controller.yaml").write_text(
            "schema: 1\nnames: [localhost]\ndiscovery: false\n"
            f"api: {{host: 127.0.0.1, port: {free_port()}}}\nbroker: {{host: 127.0.0.1, port: {free_port()}}}\n"
            f"certificates: {{days: {self.certificate_days}, grace_days: 30}}\n{database}"
        )
        made = self.ask("controller", "init", "--dir", self.controller)
        self.start_controller()
        self.command("fleet", "login", made["url"], "--token", made["token"], "--ca", made["ca"])
        token = self.ask("fleet", "token", "--gateway", "gw-1")["token"]
        self.command("join", made["url"], "--token", token, "--id", "gw-1", "--dir", str(self.folder / "gateway"))
        self.command("check", str(self.folder / "gateway/gateway.yaml"))

    def certify_for(self, days: float) -> None:
        """Certificates live this long from the controller's next start."""
        path = self.folder / "controller/controller.yaml"
        path.write_text(path.read_text().replace(f"days: {self.certificate_days}", f"days: {days}"))
        self.certificate_days = days

    def start_controller(self) -> None:
        with (self.folder / "controller.log").open("a") as log:
            process = subprocess.Popen(
                self.line("controller", "run", "--dir", self.controller),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.running["controller"] = process
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"], (self.folder / "controller.log").read_text()

    def start_gateway(self) -> None:
        arguments = ["run", "--config", str(self.folder / "gateway/gateway.yaml"), "--state", str(self.folder / "state")]
        with (self.folder / "gateway.log").open("a") as log:
            self.running["gateway"] = subprocess.Popen(self.line(*arguments), stdout=log, stderr=log, text=True, start_new_session=True)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _reap(process)

    def close(self) -> None:
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _reap(process)

    def push(self, mark: int, code: int = 0) -> Any:
        path = self.folder / "deployment.yaml"
        path.write_text(DEPLOYMENT % mark)
        return json.loads(self.command("fleet", "push", str(path), "--gateway", "gw-1", "--wait", "90", "--json", code=code))

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            self.line("status", "--state", str(self.folder / "state"), "--json"), capture_output=True, text=True, timeout=30
        )
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def until(self, condition: Callable[[], bool], limit_s: float = 90.0) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "gateway.log").read_text()[-3000:]
            time.sleep(0.2)


def _reap(process: subprocess.Popen[str]) -> None:
    process.wait(20)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plant]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with contextlib.ExitStack() as stack:
        database = ""
        if request.param == "postgresql":
            if find_postgres() is None:
                pytest.skip("PostgreSQL is not installed: apt install postgresql")
            database = stack.enter_context(postgres_server()).emptied()
        made = Plant(tmp_path, database)
        stack.callback(made.close)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_fleet_by_the_book(plant: Plant) -> None:
    plant.set_up()
    plant.start_gateway()
    plant.until(lambda: bool(plant.ask("fleet", "list")[0]["online"]))
    assert [(row["gateway"], row["phase"]) for row in plant.push(1)] == [("gw-1", "confirmed")]
    assert plant.push(1)[0]["unchanged"]
    plant.stop("controller", signal.SIGKILL)
    plant.until(lambda: plant.status().get("ledger", {}).get("pending", 0) > 20)
    plant.start_controller()
    assert plant.push(2)[0]["phase"] == "confirmed"
    assert "confirmed" in plant.command("fleet", "why", "gw-1")
    plant.until(lambda: plant.status()["ledger"]["pending"] < 20)
    plant.stop("gateway")
    ledger = read_ledger(plant.folder / "state").as_dict()
    shown = plant.ask("fleet", "show", "gw-1")
    assert ledger["offered"] == ledger["delivered"] + ledger["pending"]
    assert not ledger["dropped"]
    assert shown["accounts"]["rows"] == ledger["delivered"]
    assert shown["accounts"]["holes"] <= ledger["pending"]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_a_gateway_away_beyond_its_certificate_decides_on_returns_renews_and_reconciles(plant: Plant) -> None:
    plant.certificate_days = 12 / 86_400
    plant.set_up()
    plant.start_gateway()
    assert plant.push(1)[0]["phase"] == "confirmed"
    plant.stop("controller", signal.SIGKILL)
    before = plant.status()["ledger"]["offered"]
    certificate = plant.folder / "gateway/trust/gateway.pem"
    noted = certificate.read_bytes()
    plant.until(lambda: plant.status()["ledger"]["offered"] > before + 14 * 20)
    plant.stop("gateway", signal.SIGKILL)
    plant.start_gateway()
    plant.until(lambda: plant.status().get("deployment", {}).get("running_revision") == 1)
    plant.certify_for(days=7)
    plant.start_controller()
    plant.until(lambda: certificate.read_bytes() != noted)
    assert plant.push(2)[0]["phase"] == "confirmed"
    plant.until(lambda: plant.status()["ledger"]["pending"] < 40)
