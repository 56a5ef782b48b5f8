"""`doctor`: what this machine can do, what is missing, and how to mend it. Looks only; changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import msgspec

from edge_runtime.cli.machine import look_at
from edge_runtime.clock import SystemClock
from edge_runtime.paths import add_state_option
from edge_runtime.registry import ADAPTERS, EXAMINATIONS, MODEL_BACKENDS, load, names
from edge_runtime.types import Finding

_PACKAGES = ("edge_runtime", "adapters", "cloud_sync", "models")
_OPTIONAL = {
    "onnxruntime": ("onnx", "runs .onnx models"),
    "ai_edge_litert": ("litert", "runs .tflite models"),
    "tflite_runtime": ("tflite", "runs .tflite models on 32-bit Arm and Python up to 3.11"),
    "PIL": ("image", "infer on pictures"),
    "rich": ("console", "the demo's live view"),
    "amqtt": ("broker", "the demo's broker where mosquitto is missing"),
    "uvloop": ("uvloop", "a faster event loop"),
    "serial": ("serial", "meters, Modbus RTU and the sensor node on a serial port"),
    "cobs": ("serial", "the sensor node's frames"),
    "pymodbus": ("modbus", "Modbus devices"),
    "aiocoap": ("coap", "CoAP devices, and CoAP clients of this gateway"),
}
_NODE_TOOLS = {"qemu-system-arm": "qemu-system-arm", "arm-none-eabi-gcc": "gcc-arm-none-eabi"}
_ASK_PROVIDERS = """\
from edge_runtime.registry import MODEL_BACKENDS, load
def providers(backend):
    return backend().execution_providers() if hasattr(backend, "execution_providers") else ()
"""
_LOW_DISK_BYTES = 512 * 1024 * 1024
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


class Command:
    """Exit code 1 when something is a failure; warnings are things that a gateway can do without."""

    summary = "say what this machine can do, what is missing, and how to mend it"
    example = "edge-runtime doctor --json"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        parser.add_argument(
            "--root", type=Path, metavar="DIR", help="look at a recorded machine: /proc, /sys and /dev below DIR (hardware only)"
        )

    def run(self, args: argparse.Namespace) -> int:
        root = str(args.root).rstrip("/") if args.root is not None else ""
        findings = list(_hardware(root))
        if not root:
            findings += [finding for look in _LOOKS for finding in look(args.state)]
        ok = all(finding.state != "fail" for finding in findings)
        if args.json:
            print(json.dumps({"ok": ok, "findings": [msgspec.structs.asdict(finding) for finding in findings]}, indent=2))
            return 0 if ok else 1
        for finding in findings:
            print(f"{_MARKS[finding.state]}  {finding.name:22s} {finding.detail}")
            if finding.remedy:
                print(f"{'':28s} -> {finding.remedy}")
        return 0 if ok else 1


def _hardware(root: str) -> Iterator[Finding]:
    """The machine, then what each adapter knows to look for; one that fails takes nothing else with it."""
    if root and not Path(root).is_dir():
        yield Finding("machine", "fail", f"{root} is no folder", "name a folder that holds proc, sys and dev of a machine")
        return
    yield from look_at(root)
    for name in names(EXAMINATIONS):
        try:
            yield from load(EXAMINATIONS, name)(root)
        except Exception as err:  # noqa: BLE001 - one adapter's mistake is a finding of its own
            yield Finding(name, "warn", f"could not be looked at: {type(err).__name__}: {err}", "report it with this line")


def _python(state: Path) -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())


def _state_folder(state: Path) -> Iterator[Finding]:
    folder = next(path for path in (state, *state.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        yield Finding("state folder", "fail", f"{state} cannot be written", f"give this user {folder}, or name another folder with --state")
        return
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK_BYTES
    remedy = "free space, or lower store.max_bytes" if low else ""
    yield Finding("state folder", "warn" if low else "ok", f"{state}, {free // 1024**2} MiB free", remedy)


def _clock(state: Path) -> Iterator[Finding]:
    error_ns = SystemClock().now().wall_err_ns
    if error_ns < 0:
        yield Finding("clock", "warn", "not synchronised: wall times carry no error bound", "set up NTP (systemd-timesyncd or chrony)")
    else:
        yield Finding("clock", "ok", f"synchronised within {error_ns / 1e6:.1f} ms")


def _libraries(state: Path) -> Iterator[Finding]:
    for module, (extra, purpose) in _OPTIONAL.items():
        error = _import_error(module)
        if error is None:
            yield Finding(module, "ok", purpose)
        else:
            yield Finding(module, "warn", f"{purpose}: {error}", f"pip install 'edge-runtime[{extra}]'")


def _import_error(module: str) -> str | None:
    """Imported in a child: a binary wheel that does not fit this machine may take its process down."""
    try:
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "importing it takes longer than 60 s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    if "ModuleNotFoundError" in (lines[-1] if lines else ""):
        return "not installed"
    return lines[-1] if lines else f"importing it ends the process with code {done.returncode}"


def _plugins(state: Path) -> Iterator[Finding]:
    yield Finding("adapters", "ok", ", ".join(names(ADAPTERS)))
    yield Finding("model backends", "ok", ", ".join(names(MODEL_BACKENDS)))
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    yield Finding("mosquitto", "ok" if mosquitto else "warn", mosquitto or "not found", "" if mosquitto else "apt install mosquitto")
    missing = [package for tool, package in _NODE_TOOLS.items() if shutil.which(tool) is None]
    text = f"`node emulate` lacks {' and '.join(missing)}" if missing else "`edge-runtime node emulate` starts one"
    yield Finding("emulated node", "warn" if missing else "ok", text, f"apt install {' '.join(missing)}" if missing else "")
    systemd = Path("/run/systemd/system").exists()
    yield Finding("systemd", "ok" if systemd else "warn", "running" if systemd else "not running here: start the gateway by other means")


def _execution_providers(state: Path) -> Iterator[Finding]:
    """What `providers` of a deployment's model can name here; asked in a child, for it imports the native library."""
    for name in names(MODEL_BACKENDS):
        code = f"{_ASK_PROVIDERS}backend = load(MODEL_BACKENDS, {name!r})\nprint(', '.join(providers(backend)))"
        try:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0 and done.stdout.strip():  # an absent library is told above
            yield Finding(f"{name} runs on", "ok", done.stdout.strip())


def _collisions(state: Path) -> Iterator[Finding]:
    """Another distribution with a top-level package of one of our names would be imported instead of ours, or ours instead of its."""
    for distribution in distributions():
        owner = distribution.metadata["Name"] or "?"
        tops = {str(file).partition("/")[0] for file in distribution.files or ()}
        taken = sorted(tops & set(_PACKAGES))
        if taken and owner.replace("_", "-").lower() != "edge-runtime":
            yield Finding(
                "package names", "fail", f"{owner} also installs {', '.join(taken)}", f"pip uninstall {owner}, or use a virtual environment"
            )
            return
    yield Finding("package names", "ok", "no other distribution uses them")


_LOOKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _python,
    _state_folder,
    _clock,
    _libraries,
    _plugins,
    _execution_providers,
    _collisions,
)
