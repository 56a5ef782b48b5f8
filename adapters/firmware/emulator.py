"""One sensor node under QEMU: the firmware as it is, with its UART, its network, its sensor and its pins within reach of the host.

It moves no bytes itself: a client opens `serial_url` or `coap_port` as it would a board's. Needs `qemu-system-arm`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adapters.firmware.build import BOARDS, FOLDER, PROVISION_ADDRESS, Compiler, build, find_compiler
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError, MissingDependency
from edge_runtime.paths import socket_address

INSTRUCTIONS_PER_TICK = 20
"""With `icount`, one instruction takes 1 ns of the node's time, and a tick of its clock is 20 ns."""

_COAP = 5683
_PIN_ADDRESSES = (0x40025004, 0x40007004, 0x40007008, 0x40007010)
_START_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
_MOST_REPLY_BYTES = 1 << 20
_TRIES = 8
_RETRY_S = 0.5
_PORT_RANGE = (15000, 32000)
_COLDEST, _WARMEST = -128.0, 127.9375

# QEMU ends with the pipe on which this shell waits: when it is closed, or when the process that holds it dies in whatever way.
_LIFELINE = 'exec 3<&0; "$@" </dev/null 3<&- & node=$!; { cat <&3 >/dev/null; kill -9 $node; } & exec 3<&-; wait $node'


class MissingEmulator(MissingDependency):
    """No emulator for Arm boards; the message says how to get one."""

    def __init__(self) -> None:
        super().__init__("qemu-system-arm", "")
        self.msg = "an emulated node needs qemu-system-arm, which was not found. Install it: apt install qemu-system-arm (Debian, Ubuntu)"


def find_emulator() -> str:
    """Raises MissingEmulator."""
    found = shutil.which("qemu-system-arm")
    if found is None:
        raise MissingEmulator
    return found


def cached_firmware(board: str = BOARDS[0]) -> Path:
    """The firmware of this source tree, built once into the user's cache folder. Raises what `build` raises."""
    compiler = find_compiler()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-runtime" / "firmware"
    folder = root / _digest(board, compiler)
    elf = folder / "firmware.elf"
    if elf.is_file():
        return elf
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        build(Path(scratch) / "out", board=board, compiler=compiler)
        try:
            (Path(scratch) / "out").rename(folder)
        except OSError:  # another process was faster
            if not elf.is_file():
                raise
    return elf


def _digest(board: str, compiler: Compiler) -> str:
    """Of every source, the build's own, and the compiler's path."""
    digest = hashlib.sha256(" ".join(compiler.command).encode())
    sources = [FOLDER / "build.py", *sorted((FOLDER / "src").iterdir()), *sorted((FOLDER / "boards" / board).iterdir())]
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:20]


class Emulator:
    """An emulated lm3s6965evb, started when it is made and ended by `close` or with this process. Methods may be called from any thread.

    `elf` is the firmware (None: this source tree's own). `provision` is what `build.provision_page` gives (None: not provisioned).
    With `icount` the node's time is its count of instructions, 1 ns each, and passes at once while it sleeps: counts then repeat
    exactly, and periods and timeouts mean nothing in seconds of the host.

    Raises MissingEmulator, MissingCompiler, AdapterError when QEMU does not start, InputError for a page of the wrong size.
    """

    def __init__(self, elf: Path | None = None, *, provision: bytes | None = None, icount: bool = False) -> None:
        if provision is not None and len(provision) != 64:
            raise InputError(f"expected a provision page of 64 bytes, got {len(provision)}")
        self._program = find_emulator()
        self._elf = (elf or cached_firmware()).resolve()
        self._icount = icount
        self._folder = tempfile.TemporaryDirectory(prefix="node-")
        self._provision = self._file("provision.bin", provision) if provision is not None else None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: _Control | None = None
        self._celsius: float | None = None
        try:
            self._start_patiently(on_free_ports=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def serial_url(self) -> str:
        """The node's UART as pyserial names it; one client at a time."""
        return f"socket://127.0.0.1:{self.serial_port}"

    @property
    def running(self) -> bool:
        """Whether QEMU lives."""
        return self._process is not None and self._process.poll() is None

    def set_temperature(self, celsius: float) -> None:
        """What the node's sensor measures from now on; it survives `reset` and `power_cycle`. The sensor rounds to 1/16 degree."""
        if not _COLDEST <= celsius <= _WARMEST:
            raise InputError(f"expected a temperature of {_COLDEST} to {_WARMEST} degrees, got {celsius}")
        self._qmp("qom-set", path="/machine/peripheral/sensor", property="temperature", value=round(celsius * 1000))
        self._celsius = celsius

    def line(self, number: int) -> int:
        """Level of an output line (0 or 1), read from the pins' register and not from what the node says."""
        if not 0 <= number < len(_PIN_ADDRESSES):
            raise InputError(f"expected a line of 0 to {len(_PIN_ADDRESSES) - 1}, got {number}")
        text = str(self._qmp("human-monitor-command", **{"command-line": f"xp /1bx {_PIN_ADDRESSES[number]:#x}"}))
        found = re.search(r":\s*0x([0-9a-f]{2})", text)
        if found is None:
            raise AdapterError(f"expected a byte of the node's memory, got {text.strip()!r}")
        return int(int(found[1], 16) != 0)

    def reset(self) -> None:
        """Pulls the reset pin: the processor starts anew, RAM stays."""
        self._qmp("system_reset")

    def power_cycle(self) -> None:
        """Takes the power away and gives it back: RAM is lost, the ports and the temperature outside stay."""
        celsius = self._celsius
        self._stop()
        self._start_patiently(on_free_ports=False)
        if celsius is not None:
            self.set_temperature(celsius)

    def pause(self) -> None:
        """Stops the processor and its clock; what is sent meanwhile waits or is lost as on a board that is held."""
        self._qmp("stop")

    def resume(self) -> None:
        """Goes on after `pause`."""
        self._qmp("cont")

    def close(self) -> None:
        """Ends QEMU. May be called again."""
        self._stop()
        self._folder.cleanup()

    def _file(self, name: str, content: bytes) -> Path:
        path = Path(self._folder.name) / name
        path.write_bytes(content)
        return path

    def _qmp(self, command: str, **arguments: object) -> object:
        if self._control is None:
            raise AdapterDisconnected("the emulated node is closed")
        return self._control.ask(command, **arguments)

    def _start_patiently(self, *, on_free_ports: bool) -> None:
        """A port may be taken just before QEMU asks for it. CoAP's is the kernel's choice; the serial one is ours, see `_free_port`."""
        for tries_left in reversed(range(_TRIES)):
            if on_free_ports:
                self.serial_port, self.coap_port = _free_port(), 0
            try:
                self._start()
            except AdapterError:
                if not tries_left:
                    raise
                time.sleep(_RETRY_S)
            else:
                self.coap_port = self.coap_port or self._forwarded_port()
                return

    def _forwarded_port(self) -> int:
        text = str(self._qmp("human-monitor-command", **{"command-line": "info usernet"}))
        found = re.search(r"UDP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if found is None:
            raise AdapterError(f"expected the forwarded port of the node's network, got {text.strip()!r}")
        return int(found[1])

    def _command(self, control: Path) -> list[str]:
        command = [self._program, "-M", "lm3s6965evb", "-kernel", str(self._elf), "-nodefaults", "-display", "none", "-monitor", "none"]
        command += ["-serial", f"tcp:127.0.0.1:{self.serial_port},server=on,wait=off,nodelay=on"]
        command += ["-qmp", f"unix:{control.name},server=on,wait=off"]
        command += ["-device", "tmp105,id=sensor,address=0x48"]
        command += ["-nic", f"user,model=stellaris,hostfwd=udp:127.0.0.1:{self.coap_port}-{self._address()}:{_COAP}{self._network()}"]
        if self._provision is not None:
            command += ["-device", f"loader,file={self._provision},addr={PROVISION_ADDRESS:#x},force-raw=on"]
        if self._icount:
            command += ["-icount", "shift=0,align=off,sleep=off"]
        return command

    def _page_address(self, at: int) -> str:
        return socket.inet_ntoa(self._provision.read_bytes()[at : at + 4]) if self._provision else ""

    def _address(self) -> str:
        return self._page_address(14) or "10.0.2.15"

    def _network(self) -> str:
        """QEMU's user network is the one that the node is provisioned for."""
        if self._provision is None:
            return ""
        return f",net={self._address()}/{self._page_address(20)}"

    def _start(self) -> None:
        control = Path(self._folder.name) / "qmp"
        control.unlink(missing_ok=True)
        with (Path(self._folder.name) / "qemu.log").open("w+b") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LIFELINE, "sh", *self._command(control)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=control.parent,
                start_new_session=True,
            )
            try:
                self._control = _Control(control, self._process)
            except BaseException as err:
                self._stop()
                log.seek(0)
                said = log.read(4000).decode("utf-8", "replace").strip()
                if isinstance(err, AdapterError):
                    raise AdapterError(f"{self._program} did not start: {said or err}") from err
                raise

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


class _Control:
    """QEMU's machine protocol: a question, its answer, one at a time; events are passed over."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._lock = threading.Lock()
        self._socket = _connect(path, process)
        self._lines = self._socket.makefile("rb")
        try:
            self._read()
            self.ask("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, **arguments: object) -> object:
        """What QEMU returns. Raises AdapterDisconnected when it is gone, AdapterError when it refuses."""
        with self._lock:
            try:
                self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                answer = self._read()
                while "event" in answer:
                    answer = self._read()
            except (OSError, ValueError) as err:
                raise AdapterDisconnected(f"QEMU did not answer `{command}`: {err}") from err
        if "error" in answer:
            raise AdapterError(f"QEMU refused `{command}`: {answer['error'].get('desc', answer['error'])}")
        return answer.get("return")

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline(_MOST_REPLY_BYTES)
        except ConnectionError:
            line = b""
        if not line:
            raise AdapterDisconnected("QEMU ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """The control socket of a QEMU that is starting."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(_ANSWER_TIMEOUT_S)
        try:
            with socket_address(path) as address:
                link.connect(address)
        except OSError as err:
            link.close()
            if process.poll() is not None:
                raise AdapterError(f"it ended with status {process.returncode}") from err
            if time.monotonic() > deadline:
                raise AdapterError(f"its control socket did not open within {_START_TIMEOUT_S:.0f} s") from err
            time.sleep(0.01)
        else:
            return link


def _free_port() -> int:
    """From below the range of outgoing connections: a client that knocks while QEMU is away would else connect to itself."""
    choice = random.SystemRandom()
    while True:
        port = choice.randint(*_PORT_RANGE)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
