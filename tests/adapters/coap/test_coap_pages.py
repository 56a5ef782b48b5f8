"""The page of CoAP keeps its word: its documents are taken, and every option and resource is told there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from adapters import coap
from adapters.coap.adapter import Options
from adapters.coap.device import ResourceSpec
from adapters.coap.node import CoapNode
from edge_runtime.app import server_settings
from edge_runtime.clock import VirtualClock
from edge_runtime.config.check import check_files
from edge_runtime.config.gateway import CoapSpec, IngestSpec
from edge_runtime.config.load import parse_gateway
from tests.adapters.coap.board import Board

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "adapters" / "coap.md").read_text()
DOCUMENTS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_every_adapter_of_the_page_is_built() -> None:
    built = {}
    for text in DOCUMENTS:
        for name, spec in yaml.safe_load(text).get("adapters", {}).items():
            assert spec["driver"] == "coap"
            built[name] = coap.open_adapter(name, spec["options"], VirtualClock())
    assert {info.channel for info in built["weather"].channels()} == {"outside", "wind", "humidity", "pressure", "heater"}
    assert built.keys() == {"node", "weather"}


def test_the_gateway_file_and_its_deployment_pass_the_check(tmp_path: Path) -> None:
    gateway, deployment = DOCUMENTS[:2]
    (tmp_path / "gateway.yaml").write_text(gateway)
    (tmp_path / "deployment.yaml").write_text(deployment)
    assert check_files([tmp_path / "gateway.yaml"]) == []
    spec = parse_gateway(gateway.encode(), "gateway.yaml").coap
    assert spec is not None
    assert server_settings(spec).pushed[0].maximum == 400


def test_every_option_and_resource_is_told() -> None:
    kinds = (Options, ResourceSpec, CoapSpec, IngestSpec)
    names = [field.name for kind in kinds for field in msgspec.structs.fields(kind)]
    assert not [name for name in names if not re.search(rf"`([^`]*\.)?{name}\b", PAGE)]
    assert not [path for path in Board().documents() if f"`{path}" not in PAGE]


def test_the_node_is_the_driver_of_the_page() -> None:
    assert isinstance(coap.open_node("coap://192.0.2.15"), CoapNode)
