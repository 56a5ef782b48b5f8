"""`edge-runtime node` as it is typed: an emulated node asked, pushed to and taken back over both links, and the story beside a gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.firmware.emulator import Emulator
from edge_runtime.cli.main import main
from models.export_c.export import export
from models.zoo import path as zoo_path

Order = Callable[[str], dict[str, Any]]


@pytest.fixture
def alone(board: object) -> Iterator[tuple[dict[str, Any], Order]]:
    """`node emulate --alone`: where its node is, and how to give it orders. `board` skips where nothing can be emulated."""
    command = [sys.executable, "-m", "edge_runtime", "node", "emulate", "--alone", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def order(text: str) -> dict[str, Any]:
            stdin.write(text + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        try:
            yield json.loads(stdout.readline()), order
        finally:
            process.terminate()
            assert process.wait(10) == 0


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON document (None: none), and what was complained of."""
    code = main(["node", *arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.fixture
def blob(tmp_path: Path) -> Callable[[int], str]:
    def write(version: int) -> str:
        path = tmp_path / f"thermal-{version}.ern"
        path.write_bytes(export(zoo_path("thermal"), version=version).data)
        return str(path)

    return write


@pytest.mark.slow
def test_a_node_alone_takes_orders_models_and_takes_them_back(
    alone: tuple[dict[str, Any], Order], blob: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    where, order = alone
    serial, coap = ("--port", where["port"]), ("--uri", where["uri"])

    assert order("temperature 44") == {"temperature": 44.0}
    assert order("line 0") == {"line": 0, "level": 0}
    assert "line of 0 to 3" in order("line 9")["error"]
    assert "got `dance`" in order("dance")["error"]

    code, told, _ = printed(capsys, "info", *serial)
    assert (code, told["node"]["board"], told["model"]["source"]) == (0, "lm3s6965evb", "factory")
    assert len(told["lines"]) == told["node"]["lines"] == 4
    for version, link in ((2, coap), (3, serial)):
        code, told, _ = printed(capsys, "push-model", blob(version), *link)
        assert (code, told["phase"], told["running"]) == (0, "confirmed", version)
    code, told, err = printed(capsys, "push-model", blob(3), *coap)
    assert (code, told) == (2, None)
    assert "not above 3" in err
    code, told, _ = printed(capsys, "rollback", *serial)
    assert (code, told["version"]) == (0, 1)

    assert order("power-cycle") == {"done": "power-cycle"}
    code, told, _ = printed(capsys, "info", *coap)
    assert (code, told["model"]["version"]) == (0, 1)


def test_what_is_no_blob_and_no_node_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = printed(capsys, "push-model", str(zoo_path("thermal")), "--port", "socket://127.0.0.1:1")
    assert code == 2
    assert "model export-c" in err
    code, _, err = printed(capsys, "info", "--port", str(tmp_path / "ttyNONE"))
    assert code == 1
    assert "is it plugged in?" in err
    code, _, err = printed(capsys, "info", "--uri", "http://node")
    assert code == 2
    assert "coap://host" in err
    code, _, err = printed(capsys, "emulate", "--duration", "1")
    assert code == 2
    assert "5 to 86400" in err


def test_a_page_makes_a_node_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, key = tmp_path / "node-7.bin", tmp_path / "node-7.key"
    command = ("provision", "--id", "7", "--address", "192.168.7.20/24", "--readonly", "--out", str(page))
    code, told, _ = printed(capsys, *command)
    assert (code, told["mac"], told["key"]) == (0, "02:00:00:00:00:07", str(key))
    assert (page.stat().st_size, key.stat().st_size) == (64, 32)
    assert {path.stat().st_mode & 0o777 for path in (page, key)} == {0o600}
    assert key.read_bytes() in page.read_bytes()

    code, _, err = printed(capsys, *command)
    assert code == 2
    assert "is there already" in err
    before = page.read_bytes()
    assert printed(capsys, *command, "--key", str(key))[0] == 0
    assert page.read_bytes() == before
    for wrong in (("--id", "0"), ("--address", "192.168.7.20/99"), ("--address", "node")):
        code, _, err = printed(capsys, *command, *wrong)
        assert code == 2
        assert wrong[0] in err


@pytest.mark.slow
def test_a_readonly_node_takes_models_over_its_uart_only(board: object, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, key = tmp_path / "node-7.bin", tmp_path / "node-7.key"
    assert printed(capsys, "provision", "--id", "7", "--address", "192.168.7.20/24", "--readonly", "--out", str(page))[0] == 0
    model = tmp_path / "thermal.ern"
    model.write_bytes(export(zoo_path("thermal"), version=2, key=key.read_bytes()).data)
    with Emulator(provision=page.read_bytes()) as node:
        code, _, err = printed(capsys, "push-model", str(model), "--uri", f"coap://127.0.0.1:{node.coap_port}")
        assert code == 1
        assert "use the UART" in err
        code, told, _ = printed(capsys, "push-model", str(model), "--port", node.serial_url)
        assert (code, told["phase"]) == (0, "confirmed")


def test_flashing_says_what_it_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    elf, page = tmp_path / "firmware.elf", tmp_path / "node-7.bin"
    elf.touch()
    assert main(["node", "flash", "--elf", str(elf), "--page", str(page), "--dry-run"]) == 2
    assert "node provision" in capsys.readouterr().err
    page.touch()
    assert main(["node", "flash", "--elf", str(elf), "--page", str(page), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"-f board/ek-lm3s6965.cfg -c 'program {{{elf}}} verify' -c 'program {{{page}}} 0x3fc00 verify'" in said


@pytest.mark.slow
def test_heat_goes_all_the_way_and_comes_back_as_a_moved_pin(board: object, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, told, _ = printed(capsys, "emulate", "--duration", "5", "--keep", str(tmp_path))
    assert (code, told["problem"]) == (0, "")
    assert told["rounds"] >= 1
    ways = {step["by"] for step in told["steps"] if step["seen"] == "82.5 degC"}
    assert ways == {"I2C and UART", "I2C and CoAP"}
    judges = {step["by"] for step in told["steps"] if step["seen"] == "rising or hot"}
    assert judges == {"the node's model", "the gateway's model"}
    pins = [(step["seen"], step["by"]) for step in told["steps"]]
    assert ("fan on, pin 0 is 1", "gateway's model, rule, UART") in pins
    assert ("lamp on, pin 1 is 1", "node's model, gateway's rule, CoAP") in pins
    assert pins[-2][1] == pins[-1][1] == "the node's own lease"
