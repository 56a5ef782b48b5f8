"""`controller init`: everything is made once, a killed run is completed, keys are their owner's alone; and its settings, judged by line."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from cloud_sync.controller import mosquitto
from cloud_sync.controller.authority import Authority
from cloud_sync.controller.settings import Settings, load
from cloud_sync.controller.setup import initialize, open_authority, server_names
from edge_runtime.errors import ConfigError, InputError

_INIT = "import sys; from argparse import ArgumentParser; from cloud_sync.controller.command import Command as C; c = C(); "
_INIT += "p = ArgumentParser(); c.configure(p); sys.exit(c.run(p.parse_args(['init', *sys.argv[1:]])))"


def init(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _INIT, *arguments], capture_output=True, text=True, timeout=55)


def files(folder: Path) -> dict[str, bytes]:
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and "data" not in path.parts and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_a_second_run_keeps_everything(tmp_path: Path) -> None:
    first = init("--dir", str(tmp_path / "c"), "--name", "controller.example", "--tenant", "acme", "--json")
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    assert made["token"].startswith("era1.")
    assert made["url"] == "https://controller.example:8443"
    before = files(tmp_path / "c")
    again = json.loads(init("--dir", str(tmp_path / "c"), "--json").stdout)
    assert (again["made"], again["token"]) == ([], None)
    assert files(tmp_path / "c") == before
    assert made["token"].split(".")[2].encode() not in b"".join(before.values())


@pytest.mark.slow
def test_it_says_what_it_did_and_what_comes_next(tmp_path: Path) -> None:
    out = init("--dir", str(tmp_path / "c")).stdout
    assert "API token (approver), shown this once" in out
    assert f"edge-runtime controller run --dir {tmp_path / 'c'}" in out
    assert "keys/offline" in out
    assert init("--dir", str(tmp_path / "c"), "--new-token").stdout.count("era1.") == 2


def test_secrets_are_their_owners_alone(initialised: Path) -> None:
    secret = [path for path in initialised.rglob("*") if path.is_file() and (path.suffix == ".key" or "keys" in path.parts)]
    assert len(secret) >= 10
    assert not [path for path in secret if path.stat().st_mode & 0o077]
    assert not (initialised / "data").stat().st_mode & 0o077


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", ["controller.yaml", "ca/ca.key", "ca/ca.pem", "ca/server.key", "ca/controller-publisher.pem", "keys/online"]
)
def test_a_run_that_was_killed_is_completed(tmp_path: Path, after: str) -> None:
    folder = tmp_path / "c"
    process = subprocess.Popen([sys.executable, "-c", _INIT, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (folder / after).exists() and time.monotonic() < deadline:
        time.sleep(0.0002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {path: path.read_bytes() for path in folder.rglob("ca/*.key")}
    done = init("--dir", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in made} == made
    open_authority(load(folder))
    assert len(list((folder / "keys/offline").iterdir())) == 4
    assert json.loads(init("--dir", str(folder), "--json").stdout)["made"] == []


def test_a_name_is_added_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    initialize(tmp_path, ["one.example"])
    path = tmp_path / "controller.yaml"
    path.write_text(path.read_text() + "# mine\n")
    initialize(tmp_path, ["two.example", "10.9.8.7"])
    assert path.read_text().endswith("# mine\n")
    assert load(tmp_path).file.names == ("one.example", "two.example", "10.9.8.7")
    server = x509.load_pem_x509_certificate((tmp_path / "ca/server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"one.example", "two.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"10.9.8.7", "127.0.0.1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}


@pytest.mark.parametrize(("option", "value"), [("tenant", "other"), ("database", "postgresql://db/other")])
def test_a_tenant_and_a_database_are_not_changed_by_mistake(initialised: Path, option: str, value: str) -> None:
    with pytest.raises(InputError, match=option):
        initialize(initialised, **{option: value})


def test_bad_settings_are_named_by_line(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    copy_controller(tmp_path / "c")
    path = tmp_path / "c/controller.yaml"
    path.write_text("schema: 1\ntenant: a/b\nap: {port: 1}\nbroker: {port: 99999}\n")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "c")
    assert {(problem.line, problem.key) for problem in refused.value.problems} >= {(3, "ap"), (4, "broker.port")}


def test_one_port_for_two(initialised: Path, copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    copy_controller(tmp_path / "c")
    (tmp_path / "c/controller.yaml").write_text("schema: 1\napi: {port: 8883}\n")
    with pytest.raises(ConfigError, match="another port"):
        load(tmp_path / "c")


@pytest.mark.parametrize("names", [["a b"], ["x\n"], ["'"], ["ü.example"], ["a" * 300]])
def test_names_that_are_none(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(InputError):
        initialize(tmp_path / "c", names)
    assert not (tmp_path / "c/controller.yaml").exists()


def test_a_folder_without_a_controller(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="controller init"):
        load(tmp_path)


def test_a_key_that_others_can_read_is_not_used(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    settings = copy_controller(tmp_path / "c")
    settings.ca_key.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        open_authority(settings)


def test_the_controllers_certificates_are_renewed_in_their_last_third(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    settings = copy_controller(tmp_path / "c")
    open_authority(settings)
    before = settings.server_cert.read_bytes(), settings.client("controller")[0].read_bytes(), settings.server_key.read_bytes()
    open_authority(settings, time.time_ns() + 500 * 86_400 * 10**9)
    assert (settings.server_cert.read_bytes(), settings.client("controller")[0].read_bytes(), settings.server_key.read_bytes()) == before
    open_authority(settings, time.time_ns() + 600 * 86_400 * 10**9)
    assert settings.server_cert.read_bytes() != before[0]
    assert settings.client("controller")[0].read_bytes() != before[1]
    assert settings.server_key.read_bytes() == before[2]


def test_a_key_and_a_certificate_of_two_backups(initialised: Path, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    Authority.create(tmp_path / "ca.pem", tmp_path / "ca.key", "x", datetime.now(UTC))
    with pytest.raises(InputError, match="is not the key"):
        Authority(load(initialised).ca, tmp_path / "ca.key")


def test_a_gateway_without_a_clock_trusts_the_server(initialised: Path) -> None:
    for name in ("ca.pem", "server.pem"):
        assert x509.load_pem_x509_certificate((initialised / "ca" / name).read_bytes()).not_valid_before_utc.timestamp() == 0


def test_the_brokers_configuration_follows_the_settings(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    settings = copy_controller(tmp_path / "c")
    open_authority(settings)
    text = settings.mosquitto_conf.read_text()
    assert f"listener {settings.broker.port} 127.0.0.1\n" in text
    for line in ("require_certificate true", "use_identity_as_username true", "use_username_as_clientid true", "allow_anonymous false"):
        assert f"{line}\n" in text
    assert f"listener {settings.broker.port}\n" in mosquitto.configuration(_everywhere(settings))


def test_reload_signals_nothing_but_a_broker(copy_controller: Callable[[Path], Settings], tmp_path: Path) -> None:
    settings = copy_controller(tmp_path / "c")
    assert "no broker runs here" in mosquitto.reload(settings)
    for text in (str(os.getpid()), "", "x", "-1", "0", "99999999999999999999999"):
        settings.broker_pid.write_text(text)
        assert "no broker runs here" in mosquitto.reload(settings)


def test_the_database_holds_no_token(initialised: Path) -> None:
    with sqlite3.connect(initialised / "data/controller.db") as database:
        rows: list[Any] = database.execute("SELECT name, role, length(secret_sha256) FROM api_tokens").fetchall()
        actions = database.execute("SELECT action FROM audit").fetchall()
    database.close()
    assert (rows, actions) == ([("init", "approver", 64)], [("token",)])


def test_every_address_of_the_machine_is_served(initialised: Path) -> None:
    assert {"localhost", "127.0.0.1", "::1"} <= set(server_names(load(initialised)))


def _everywhere(settings: Settings) -> Settings:
    import dataclasses

    import msgspec

    broker = msgspec.structs.replace(settings.file.broker, host="")
    return dataclasses.replace(settings, file=msgspec.structs.replace(settings.file, broker=broker))
