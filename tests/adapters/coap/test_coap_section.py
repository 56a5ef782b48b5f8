"""The section `coap` of the gateway file: what is wrong in it is found before anything runs, and what is risky is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.access.address import is_loopback, parse_listen
from edge_runtime.config.check import check_files
from edge_runtime.errors import InputError

FILE = """\
schema: 1
gateway: {{id: gw-1}}
adapters: {adapters}
sensors:
  level: {{adapter: coap_server, channel: {channel}}}
coap:
  listen: "{listen}"
  ingest:
    tank: {{unit: {unit}, minimum: 0, maximum: {maximum}}}
"""
SOUND = {"adapters": "{}", "channel": "tank", "listen": "127.0.0.1:5683", "unit": "cm", "maximum": "400"}


def problems(folder: Path, **changes: str) -> list[tuple[str, str, bool]]:
    path = folder / "gateway.yaml"
    path.write_text(FILE.format(**{**SOUND, **changes}))
    return [(problem.key, problem.message, problem.fatal) for problem in check_files([path])]


def test_a_sound_section_passes(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"listen": "5683"}, "coap.listen", "expected an IP address and a port such as 127.0.0.1:5683"),
        ({"listen": "plant.example:5683"}, "coap.listen", "expected an IP address"),
        ({"listen": "127.0.0.1:0"}, "coap.listen", "expected an IP address"),
        ({"unit": "furlongs"}, "coap.ingest.tank.unit", "furlongs"),
        ({"maximum": "-1"}, "coap.ingest.tank.minimum", "expected less than maximum -1, got 0"),
        ({"channel": "tnak"}, "sensors.level.channel", "no channel of coap.ingest `tnak`; did you mean `tank`?"),
        ({"adapters": "{coap_server: {driver: simulated}}"}, "adapters.coap_server", "this name is taken by the section `coap`"),
    ],
)
def test_what_is_wrong_is_found_at_its_place(tmp_path: Path, changes: dict[str, str], key: str, message: str) -> None:
    [(found_key, found, fatal)] = problems(tmp_path, **changes)
    assert found_key == key
    assert message in found
    assert fatal


def test_to_be_reached_from_outside_is_a_warning(tmp_path: Path) -> None:
    [(key, message, fatal)] = problems(tmp_path, listen="0.0.0.0:5683")
    assert key == "coap.listen"
    assert "not encrypted" in message
    assert "pushes readings" in message
    assert not fatal


def test_the_name_of_the_server_means_nothing_without_the_section(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("schema: 1\ngateway: {id: gw-1}\nsensors:\n  level: {adapter: coap_server, channel: tank}\n")
    assert "no adapter `coap_server`" in str(check_files([path])[0])


def test_a_pushed_unit_that_the_deployment_cannot_convert_is_found(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(FILE.format(**SOUND))
    (tmp_path / "deployment.yaml").write_text("schema: 1\nrevision: 1\nsensors:\n  level: {unit: degC}\n")
    [problem] = check_files([tmp_path / "deployment.yaml"], tmp_path / "gateway.yaml")
    assert problem.key == "sensors.level.unit"
    assert "cm" in problem.message


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:5683", ("127.0.0.1", 5683)), ("localhost:1", ("127.0.0.1", 1)), ("[::1]:65535", ("::1", 65535)), ("[::]:9", ("::", 9))],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text, "coap.listen") == address
    assert is_loopback(address[0]) == (address[0] != "::")


@pytest.mark.parametrize("text", ["", ":", "[]:1", "::1:5", "127.0.0.1", "127.0.0.1:99999", "[::1]", "1.2.3:4", "a b:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"coap\.listen: expected an IP address"):
        parse_listen(text, "coap.listen")
