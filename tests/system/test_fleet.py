"""A fleet as a new user sets it up, by the commands of the how-to alone: real processes, real mosquitto over mutual TLS, both databases."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    grace_days: float = 30.0
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
            f"certificates: {{days: {self.certificate_days}, grace_days: {self.grace_days}}}\n{database}"
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


def age(plant: Plant, days: float) -> None:
    """Everything at rest as it is after so many days: the gateway's certificate, the metadata on its disk, its deployment's expiry."""
    from cryptography import x509

    from cloud_sync.controller.authority import Authority

    by = timedelta(days=days)
    folder = plant.folder / "controller"
    authority = Authority(folder / "ca/ca.pem", folder / "ca/ca.key")
    certificate = plant.folder / "gateway/trust/gateway.pem"
    key: Any = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    old = authority.issue("gw-1", key, datetime.now(UTC) - by, 7)
    certificate.write_text(old.pem)
    with contextlib.closing(sqlite3.connect(folder / "data/controller.db")) as database, database:
        row = (old.serial, old.sha256, old.not_before_wall_ns, old.not_after_wall_ns, old.pem)
        fields = "serial = ?, sha256 = ?, not_before_wall_ns = ?, not_after_wall_ns = ?, pem = ?"
        assert database.execute(f"UPDATE certificates SET {fields} WHERE gateway = 'gw-1'", row).rowcount == 1
        database.execute("UPDATE desired SET expires_wall_ns = expires_wall_ns - ?", (int(days * 86_400e9),))
    _age_metadata(plant.folder / "state/sync/trust/metadata", folder, by)


def _age_metadata(kept: Path, controller: Path, by: timedelta) -> None:
    from tuf.api.metadata import Metadata, MetaFile

    from cloud_sync.controller.signing import KeyRing

    root: Any = Metadata.from_file(str(controller / "repository/metadata/root.json")).signed
    snapshot: Any = Metadata.from_file(str(kept / "snapshot.json"))
    timestamp: Any = Metadata.from_file(str(kept / "timestamp.json"))
    for metadata in (snapshot, timestamp):
        metadata.signed.expires -= by
        metadata.signatures.clear()
        for signer in KeyRing(controller / "keys/online").need(metadata.signed.type, root.roles[metadata.signed.type].keyids, 1):
            metadata.sign(signer, append=True)
        (kept / f"{metadata.signed.type}.json").write_bytes(metadata.to_bytes())
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
    assert timestamp.signed.is_expired()
    assert snapshot.signed.is_expired()


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
    assert ledger["delivered"] <= shown["accounts"]["rows"] <= ledger["offered"]  # the last acknowledgement may have met a closed link
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


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_90_days_away_with_certificate_and_metadata_expired(plant: Plant) -> None:
    """It decides on, starts without the network, comes back, renews, reads fresh metadata, takes what is new and gives up its backlog."""
    plant.grace_days = 365
    plant.set_up()
    plant.start_gateway()
    assert plant.push(1)[0]["phase"] == "confirmed"
    plant.stop("controller", signal.SIGKILL)
    before = plant.status()["ledger"]["pending"]
    plant.until(lambda: plant.status()["ledger"]["pending"] > before + 40)
    plant.stop("gateway", signal.SIGKILL)
    age(plant, days=90)
    certificate = plant.folder / "gateway/trust/gateway.pem"
    expired = certificate.read_bytes()
    plant.start_gateway()
    plant.until(lambda: plant.status().get("deployment", {}).get("running_revision") == 1)
    before = plant.status()["ledger"]["pending"]
    plant.until(lambda: plant.status()["ledger"]["pending"] > before + 40)
    assert certificate.read_bytes() == expired

    plant.start_controller()
    plant.until(lambda: certificate.read_bytes() != expired)
    assert [(row["revision"], row["phase"]) for row in plant.push(2)] == [(2, "confirmed")]
    plant.until(lambda: plant.status()["ledger"]["pending"] < 40)
    plant.stop("gateway")
    ledger = read_ledger(plant.folder / "state").as_dict()
    accounts = plant.ask("fleet", "show", "gw-1")["accounts"]
    assert ledger["offered"] == ledger["delivered"] + ledger["pending"]
    assert not ledger["dropped"]
    assert accounts["rows"] == ledger["delivered"]
    assert accounts["holes"] <= ledger["pending"]
    boots = _boots(plant.folder / "controller/data/controller.db")
    assert len(boots) == 2
    assert boots == sorted(boots, key=lambda boot: boot[1]) == sorted(boots, key=lambda boot: boot[2])


def _boots(path: Path) -> list[tuple[int, int, int]]:
    """By when each boot's first record was made: that time, and when the first and the last of its records came."""
    query = "SELECT min(wall_ns), min(received_wall_ns), max(received_wall_ns) FROM records WHERE gateway = 'gw-1' GROUP BY boot"
    with contextlib.closing(sqlite3.connect(path)) as database:
        return sorted(database.execute(query).fetchall())


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("plant", ["sqlite"], indirect=True)
def test_a_running_fleet_follows_the_rotation_of_its_directors_key(plant: Plant) -> None:
    plant.set_up()
    plant.start_gateway()
    assert plant.push(1)[0]["phase"] == "confirmed"
    first = json.loads(plant.command("controller", "keys", "rotate", "director", "--dir", plant.controller, "--json"))["director"]
    plant.until(lambda: plant.status().get("deployment", {}).get("running_revision") == first["first_revision"])
    newest = plant.ask("fleet", "show", "gw-1")["deployments"][0]
    assert newest["revision"] == first["first_revision"]
    assert plant.push(2)[0]["phase"] == "confirmed"
