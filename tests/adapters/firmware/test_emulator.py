"""The emulator itself: its power, its pins, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters.firmware import emulator as emulator_module
from adapters.firmware.emulator import Emulator, MissingEmulator
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from tests.adapters.firmware.uart import Uart

pytestmark = pytest.mark.system


def test_a_power_cycle_keeps_ports_and_temperature_and_loses_ram(node: Emulator, uart: Uart) -> None:
    node.set_temperature(42)
    ports = node.serial_url, node.coap_port
    assert uart.restart(0x0A, b"\0")[1] == 2
    node.power_cycle()
    assert (node.serial_url, node.coap_port) == ports
    uart.connect()
    assert uart.ok(0x02)[24] == 1
    assert int.from_bytes(uart.ok(0x04)[8:12], "little") == 42000


def test_a_paused_node_answers_when_it_goes_on(node: Emulator, uart: Uart) -> None:
    node.pause()
    uart.send(b"\0")
    assert uart.receive(0.1) is None
    node.resume()
    uart.ok(0x01)


def test_values_out_of_range_are_refused(node: Emulator) -> None:
    for celsius in (-129.0, 128.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            node.set_temperature(celsius)
    for line in (-1, 4):
        with pytest.raises(InputError, match="line"):
            node.line(line)
    with pytest.raises(InputError, match="64 bytes"):
        Emulator(provision=b"short")


def test_a_closed_node_says_so(firmware: Path) -> None:
    node = Emulator(firmware)
    assert node.running
    node.close()
    node.close()
    assert not node.running
    with pytest.raises(AdapterDisconnected, match="closed"):
        node.line(0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", node.serial_port))


def test_a_file_that_is_no_firmware_is_named(firmware: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"missing\.elf"):
        Emulator(tmp_path / "missing.elf")


def test_without_qemu_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator_module.shutil, "which", lambda _: None)
    with pytest.raises(MissingEmulator, match="apt install qemu-system-arm"):
        Emulator(Path("any.elf"))


def test_nothing_is_left_when_the_process_is_killed(firmware: Path) -> None:
    script = "import sys; from pathlib import Path; from adapters.firmware.emulator import Emulator\n"
    script += "node = Emulator(Path(sys.argv[1])); print(node.serial_port, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, str(firmware)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
    pytest.fail("QEMU outlived its process")
