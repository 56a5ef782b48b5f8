"""Joining as a new user does, killed and run again, and what it leaves on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from cloud_sync.controller.schema import certificates
from cloud_sync.discovery import Found, announced, discover
from cloud_sync.https import Place, ask, parse_url
from cloud_sync.join import Command, choose, default_name, meant_for, pinned, request_for
from edge_runtime.config.check import check_files
from edge_runtime.config.load import load_gateway
from edge_runtime.errors import InputError, TransportError

_JOIN = "import sys; from argparse import ArgumentParser; from cloud_sync.join import Command as C; c = C(); p = ArgumentParser(); "
_JOIN += "c.configure(p); sys.exit(c.run(p.parse_args(sys.argv[1:])))"


async def run_join(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _JOIN, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def count(controller: Any) -> int:
    async with controller.context.database.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(certificates))).scalar_one())


async def test_the_command_leaves_a_gateway_that_check_accepts(controller: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gw-1"
    code, out, err = await run_join(
        controller.place.url, "--token", await controller.token(), "--id", "gw-1", "--dir", str(folder), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["gateway"] == "gw-1"
    assert not [problem for problem in check_files([folder / "gateway.yaml"], None, None) if problem.fatal]
    gateway = load_gateway(folder / "gateway.yaml")
    assert (gateway.gateway.id, gateway.gateway.tenant) == ("gw-1", "acme")
    assert gateway.broker is not None
    assert (gateway.broker.host, gateway.broker.port) == ("localhost", controller.settings.broker.port)
    assert gateway.controller.url == controller.place.url
    root = controller.context.repository.trust_root.read_bytes()
    assert (folder / str(gateway.controller.trust_root)).read_bytes() == root
    assert (folder / "trust/gateway.key").stat().st_mode & 0o777 == 0o600
    assert await controller.call("GET", "/v1/whoami", controller.identity("gw-1")) == (200, {"gateway": "gw-1"})


async def test_a_gateway_that_joined_speaks_to_the_broker(controller: Any, controller_broker: Any) -> None:
    await controller.join("gw-1")
    identity = controller.identity("gw-1")
    session = await controller_broker.connect("gw-1", cert=str(identity.cert), key=str(identity.key))
    await session.publish("fl/v1/acme/g/gw-1/up/tlm", b"x")
    await session.close()


async def test_a_lost_answer_is_given_again(controller: Any, tmp_path: Path) -> None:
    """Killed after the controller issued and before the gateway wrote: the same key and token bring the same certificate."""
    token = await controller.token()
    (tmp_path / "gw-1/trust").mkdir(parents=True)
    csr = request_for(tmp_path / "gw-1/trust/gateway.key", "gw-1")
    status, lost = await controller.call("POST", "/v1/join", body={"token": token, "csr": csr})
    assert status == 200
    await controller.join("gw-1", token)
    assert controller.identity("gw-1").cert.read_text() == lost["certificate"]
    assert await count(controller) == 1


async def test_a_gateway_whose_token_ran_out_joins_with_the_next_one(controller: Any, tmp_path: Path) -> None:
    token = await controller.token(hours=1)
    (tmp_path / "gw-1/trust").mkdir(parents=True)
    csr = request_for(tmp_path / "gw-1/trust/gateway.key", "gw-1")
    assert (await controller.call("POST", "/v1/join", body={"token": token, "csr": csr}))[0] == 200
    controller.advance(1)
    assert (await controller.join("gw-1")).gateway == "gw-1"


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [0.3, 0.4, 0.45, 0.5])
async def test_killed_at_any_moment_it_is_run_again(controller: Any, tmp_path: Path, killed_at: float) -> None:
    folder, token = tmp_path / "gw-1", await controller.token()
    arguments = (controller.place.url, "--token", token, "--id", "gw-1", "--dir", str(folder))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _JOIN, *arguments, stdout=subprocess.DEVNULL)
    await asyncio.sleep(killed_at)
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.wait()
    code, _, err = await run_join(*arguments)
    assert code == 0, err
    assert await count(controller) == 1
    assert (await controller.call("GET", "/v1/whoami", controller.identity("gw-1")))[0] == 200


async def test_killed_between_any_two_writes_it_is_run_again(controller: Any, tmp_path: Path) -> None:
    """Every order in which files can be missing after a kill."""
    token = await controller.token()
    await controller.join("gw-1", token)
    identity, file = controller.identity("gw-1"), tmp_path / "gw-1/gateway.yaml"
    whole = [identity.ca, identity.trust_root, identity.cert, file]
    before = [path.read_bytes() for path in whole]
    for written in range(len(whole)):
        for path in whole[written:]:
            path.unlink()
        await controller.join("gw-1", token)
        assert [path.read_bytes() for path in whole] == before
    assert await count(controller) == 1


async def test_a_gateway_file_that_is_there_stays(controller: Any, tmp_path: Path) -> None:
    file = tmp_path / "gw-1/gateway.yaml"
    file.parent.mkdir()
    file.write_text("schema: 1\ngateway: {id: gw-1}\n")
    assert (await controller.join("gw-1")).kept
    assert file.read_text() == "schema: 1\ngateway: {id: gw-1}\n"


async def test_the_folder_of_another_gateway_is_not_reused(controller: Any, tmp_path: Path) -> None:
    await controller.join("gw-1")
    with pytest.raises(InputError, match="is of the gateway `gw-1`"):
        await controller.join("gw-2", folder=tmp_path / "gw-1")


_LONG, _PIN = "A" * 20, "0" * 64


async def test_a_token_tells_the_gateway_that_it_is_for(controller: Any) -> None:
    assert meant_for(await controller.token("pump-7.north")) == "pump-7.north"
    assert meant_for(await controller.token()) == ""
    assert meant_for(f"ert1.0a.{_LONG}.{_PIN}.gw-1") == "gw-1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        f"ert1.0a.{_LONG}.{_PIN}.",
        f"ert1.0a.{_LONG}.{_PIN}.a/b",
        "era1.aa.bb",
        "ert1.aa.bb",
        f"ert1.aa.short.{_PIN}",
        f"ert1.0a.{_LONG}.{_PIN[:-1]}",
    ],
)
def test_what_is_no_token_is_named_before_anything_is_asked(text: str) -> None:
    with pytest.raises(InputError, match="join token"):
        pinned(text)


@pytest.mark.parametrize(
    "url", ["http://x", "https://", "https://x/path", "https://x:99999", "https://u:p@x", "ftp://x", "https://[::1", "https://x?y"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("controller", Place("controller", 8443)),
        ("controller:1", Place("controller", 1)),
        ("https://[fe80::1]:8443/", Place("fe80::1", 8443)),
        ("https://10.0.0.1", Place("10.0.0.1", 8443)),
    ],
)
def test_urls(url: str, place: Place) -> None:
    assert parse_url(url) == place
    assert parse_url(place.url) == place


def test_a_machines_name_becomes_a_gateways(tmp_path: Path) -> None:
    assert default_name(tmp_path, lambda: "raspberry pi.example.org") == "raspberry-pi"
    with pytest.raises(InputError, match="--id"):
        default_name(tmp_path, lambda: "localhost")


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="cannot reach"):
        await ask(Place("127.0.0.1", 9), "GET", "/v1/ca", ssl.create_default_context())


_A, _B = "a" * 64, "b" * 64


def test_the_controller_of_the_token_is_chosen() -> None:
    found = [Found("one", "https://10.0.0.1:8443", "x", _A), Found("two", "https://10.0.0.2:8443", "x", _B)]
    assert choose(found, _B).name == "two"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "no controller was heard"),
        ([Found("one", "https://10.0.0.1:8443", "", _B)], "none of the controllers"),
        ([Found("one", "https://10.0.0.1:8443", "", _A), Found("two", "https://10.0.0.2:8443", "", _A)], "name one"),
    ],
)
def test_several_or_none_are_listed(found: list[Found], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        choose(found, _A)
    assert all(one.url in str(refused.value) for one in found)


@pytest.mark.slow
async def test_a_controller_that_announces_itself_is_found() -> None:
    async with announced(8443, "acme", _A, interfaces=["127.0.0.1"]):
        for _ in range(5):  # it answers a second question within a second late (RFC 6762, section 6)
            found = [one for one in await discover(2.0, interfaces=["127.0.0.1"]) if one.fingerprint == _A]
            if found:
                break
    assert [(one.url, one.tenant) for one in found] == [("https://127.0.0.1:8443", "acme")]


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys; from cloud_sync.join import Command; print(' '.join(sorted(sys.modules)))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout.split()
    assert not {"cryptography", "zeroconf", "ifaddr", "tuf", "sqlalchemy", "fastapi", "paho"} & set(modules)
    assert re.match("edge-runtime join", Command.example)
