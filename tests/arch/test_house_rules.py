"""The laws of the house that a machine can check: imports point to the core, one client has one module, names say what things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_runtime", "adapters", "cloud_sync", "models")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CLIENTS = {
    "paho": {"cloud_sync/mqtt.py"},
    "amqtt": {"cloud_sync/controller/broker.py"},
    "asyncpg": {"cloud_sync/controller/postgres.py"},
    "cryptography": {"cloud_sync/controller/signing/keys.py", "cloud_sync/controller/authority.py", "cloud_sync/join.py"},
    "gpiozero": {"adapters/raspberry_pi/gpiozero_pins.py"},
    "onnxruntime": {"models/onnx.py", "models/quantize/ptq.py", "models/zoo/bearing/train.py"},
    "ai_edge_litert": {"models/litert.py"},
    "tflite_runtime": {"models/tflite.py"},
    "tuf": {
        "cloud_sync/trust/judge.py",
        "cloud_sync/trust/conformance.py",
        "cloud_sync/trust/updater.py",
        "cloud_sync/controller/signing/roles.py",
        "cloud_sync/controller/signing/repository.py",
    },
    "yaml": {"edge_runtime/config/positions.py"},
    "pymodbus": {"adapters/modbus/bus.py"},
    "serial": {"adapters/serial_port.py"},
    "rich": {"edge_runtime/demo/view.py", "models/progress.py"},
    "sklearn": {"models/zoo/digits/data.py"},
    "securesystemslib": {"cloud_sync/controller/signing/keys.py"},
    "torch": {
        "models/zoo/bearing/train.py",
        "models/quantize/qat/distillation.py",
        "models/quantize/qat/network.py",
        "models/quantize/qat/operators.py",
        "models/quantize/qat/training.py",
    },
    "zeroconf": {"cloud_sync/discovery.py"},
    "ifaddr": {"cloud_sync/discovery.py"},
    "cobs": {"adapters/microcontroller/frames.py"},
    "aiocoap": {"adapters/coap/client.py", "adapters/coap/server.py"},
    "uvicorn": {"cloud_sync/controller/serving.py"},
}


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.slow
def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_one_third_party_client_has_one_module(client: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if any(name.split(".")[0] == client for name in _imports(path))}
    assert users <= CLIENTS[client]


def test_names_say_what_modules_are() -> None:
    vague = {"utils", "util", "helper", "helpers", "manager", "common", "misc"}
    assert not [path for path in SOURCES if path.stem in vague or vague & set(path.parts)]


def test_every_module_says_what_it_is_for() -> None:
    assert not [str(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_nothing_unpickles_evaluates_or_swallows_everything() -> None:
    offences = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                offences.append(f"{path}:{node.lineno}: bare except")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                offences.append(f"{path}:{node.lineno}: {node.func.id}")
        if "pickle" in _imports(path):
            offences.append(f"{path}: imports pickle")
    assert not offences


def test_no_address_of_a_package_index_is_committed() -> None:
    texts = [*ROOT.glob("requirements/*"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    assert not [path for path in texts if "://" in path.read_text() or "index-url" in path.read_text()]
