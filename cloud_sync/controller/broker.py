"""Starts a broker on this machine: mosquitto when it is installed, else the embedded amqtt. For demonstrations and tests.

Loopback only, anonymous. Neither is trusted with data: amqtt speaks MQTT 3.1.1 only and keeps nothing for clients that are away,
and a killed mosquitto forgets what it had acknowledged since its last save; the outbox and the controller's acknowledgement make up for
both. The only module that imports amqtt: `python -m cloud_sync.controller.broker PORT` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_runtime.errors import DeadlineExceeded, InputError, MissingDependency, TransportError

if TYPE_CHECKING:
    from cloud_sync.controller.settings import Settings

_HOST = "127.0.0.1"
_START_S = 15.0
_STOP_S = 5.0
_OPEN_FILES = 65_536
_SERVER_PORTS = (15_000, 32_000)
_given: set[int] = set()


def find_mosquitto() -> str | None:
    """Path of the mosquitto program, which Debian puts where an ordinary PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def mosquitto_config(port: int, directory: Path, extra: Mapping[str, str] | None = None) -> str:
    """Settings with the limits that a store-and-forward fleet needs. `extra` overrides or adds lines."""
    lines = {
        "listener": f"{port} {_HOST}",
        "allow_anonymous": "true",
        "persistence": "true",
        "persistence_location": f"{directory}/",
        "autosave_on_changes": "false",
        "autosave_interval": "5",
        "max_queued_messages": "0",
        "set_tcp_nodelay": "true",
        "log_dest": "stderr",
        "log_type": "warning",
    }
    if os.geteuid() == 0:
        lines["user"] = "root"
    return "".join(f"{key} {value}\n" for key, value in (lines | dict(extra or {})).items())


class BrokerProcess:
    """One broker process. Its methods block for as long as a process takes to start or end (about 0.1 s; amqtt 1 s)."""

    def __init__(self, kind: str, port: int, command: list[str], log: Path) -> None:
        self.kind = kind
        self.host = _HOST
        self.port = port
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process; 0 when it is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Returns when it accepts connections. Raises TransportError with the end of its log."""
        with self.log.open("ab") as log:
            _raise_open_files()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not _accepts(self.port):
            if self._process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-500:]
                raise TransportError(f"{self.kind} ended with code {self._process.returncode} at start on port {self.port}: {tail}")
            if time.monotonic() > deadline:
                self.kill()
                raise DeadlineExceeded(f"{self.kind} does not accept connections on port {self.port} after {_START_S:g} s")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing is saved."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not heard. Safe to call twice."""
        self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Returns when it has ended: 0 after `stop`, 1 when it ended by itself."""
        process = self._process
        if process is None:
            return 0
        process.wait()
        return 0 if self._process is None else 1

    def restart(self) -> None:
        """Ends it if it runs, and starts it on the same port and directory."""
        self.stop()
        self.start()

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None


def start_broker(
    port: int, directory: Path, prefer: Literal["mosquitto", "amqtt"] = "mosquitto", extra: Mapping[str, str] | None = None
) -> BrokerProcess:
    """A running broker on the loopback. `port` 0 picks a free one. `extra` are mosquitto settings; amqtt has none."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    program = find_mosquitto() if prefer == "mosquitto" else None
    if program is not None:
        config = directory / "mosquitto.conf"
        config.write_text(mosquitto_config(port, directory, extra))
        broker = BrokerProcess("mosquitto", port, [program, "-c", str(config)], directory / "broker.log")
    else:
        broker = BrokerProcess("amqtt", port, [sys.executable, "-m", "cloud_sync.controller.broker", str(port)], directory / "broker.log")
    broker.start()
    return broker


def controllers_broker(settings: Settings) -> BrokerProcess | None:
    """The running broker of a controller's folder: mosquitto as `init` configured it, the embedded one, or None for somebody else's.

    Raises InputError when mosquitto is not installed, TransportError when it does not start.
    """
    folder = settings.folder / "mosquitto"
    if settings.broker.run == "none":
        return None
    if settings.broker.run == "embedded":
        return start_broker(settings.broker.port, folder, prefer="amqtt")
    program = find_mosquitto()
    if program is None:
        raise InputError("mosquitto is not installed: apt install mosquitto, or set broker.run in controller.yaml to `none` or `embedded`")
    broker = BrokerProcess("mosquitto", settings.broker.port, [program, "-c", str(settings.mosquitto_conf)], folder / "broker.log")
    broker.start()
    return broker


def free_port() -> int:
    """A port of the loopback that nobody listens on now, never the same twice.

    From below the range that the kernel draws from for outgoing connections, so that none of these takes it before its server starts.
    """
    while True:
        port = random.randrange(*_SERVER_PORTS)
        if port in _given:
            continue
        try:
            socket.create_server((_HOST, port)).close()
        except OSError:
            continue
        _given.add(port)
        return port


def _raise_open_files() -> None:
    """As many as this user may have: every connection of a broker is one, and it inherits the limit. It never goes down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=0.5).close()
    except OSError:
        return False
    return True


async def serve_amqtt(port: int) -> None:
    """Runs the embedded broker until SIGTERM or SIGINT. Raises MissingDependency."""
    try:
        from amqtt.broker import Broker
    except ImportError as err:
        raise MissingDependency("amqtt", "broker") from err
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{port}"}}, "plugins": plugins})
    await broker.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await broker.shutdown()


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].isdigit():
        raise InputError("expected one argument, the port: python -m cloud_sync.controller.broker PORT")
    asyncio.run(serve_amqtt(int(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
