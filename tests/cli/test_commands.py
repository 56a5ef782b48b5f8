"""Every command has help with an example; errors become exit codes; the running gateway answers to status, ledger, why and why-not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_runtime.app import Gateway
from edge_runtime.cli.main import main
from edge_runtime.cli.run import read_deployment
from edge_runtime.config.load import load_gateway
from edge_runtime.demo.stage import Stage
from edge_runtime.registry import COMMANDS, names


@pytest.mark.parametrize("name", names(COMMANDS))
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "example:" in text
    assert f"edge-runtime {name}" in text


def test_usage_and_unknown_commands_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["lunch"])
    assert ended.value.code == 2
    assert "lunch" in capsys.readouterr().err


def test_commands_on_a_state_folder_without_a_gateway_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state", str(tmp_path)]) == 1
    assert "start one: edge-runtime run" in capsys.readouterr().err
    assert main(["ledger", "--state", str(tmp_path)]) == 1
    assert "no gateway has run with this --state yet" in capsys.readouterr().err


def test_doctor_finds_the_machine_and_its_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", "--state", str(tmp_path)])
    document = json.loads(capsys.readouterr().out)
    states = {finding["name"]: finding["state"] for finding in document["findings"]}
    assert code == (0 if document["ok"] else 1)
    assert states["state folder"] == "ok"
    assert states["package names"] == "ok"
    assert {"machine", "INT8", "memory", "clock", "adapters", "model backends", "mosquitto"} <= set(states)
    assert all(finding["remedy"] for finding in document["findings"] if finding["state"] == "fail")


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Path]:
    """A gateway on the demo's plant, offline, in this process."""
    stage = Stage(folder, 1)
    stage.prepare()
    path = folder / "gateway.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("broker:")))
    config = load_gateway(path)
    gateway = Gateway(config, folder, lambda: read_deployment(config, path), folder / "state")
    task = asyncio.create_task(gateway.run())
    try:
        async with asyncio.timeout(30):
            while not gateway.ready or gateway.loop.actuation.states().get("valve") != "open":
                assert not task.done() or task.exception() is None
                await asyncio.sleep(0.02)
        yield folder / "state"
    finally:
        gateway.stop()
        await task


async def test_the_running_gateway_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run(*arguments: str) -> str:
        assert await asyncio.to_thread(main, [*arguments, "--state", str(state)]) == 0
        return capsys.readouterr().out

    async with running(tmp_path) as state:
        status = json.loads(await run("status", "--json"))
        assert status["channels"]["vibration"]["unit"] == "m/s2"
        assert status["link"] == {"up": False, "detail": "no broker in the gateway file: running offline", "counters": {}}
        assert "actuator  valve: open  because of supply_water" in await run("status")
        assert json.loads(await run("ledger", "--json"))["balanced"] is True
        why = await run("why", "--actuator", "valve")
        assert "valve -> open: done  (supply_water)" in why
        assert 'bearing == "normal" for 1s' in why
        assert "model sha256:" in why
        why_not = await run("why-not", "bearing_fault")
        assert "rule bearing_fault is not active" in why_not
        assert await asyncio.to_thread(main, ["why-not", "nonsense", "--state", str(state)]) == 2
        assert "no rule `nonsense`" in capsys.readouterr().err
    after = json.loads(await run("why", "--json"))
    assert after["decision"]["rule"] == "supply_water"
