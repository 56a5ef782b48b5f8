"""The adapter contract over nodes: emulated ones where QEMU and a compiler are installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from adapters import coap, microcontroller
from adapters.firmware.emulator import Emulator
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter


@pytest.mark.slow
class TestSerialNode(AdapterContract):
    option = "baud"
    absent: ClassVar[Mapping[str, Any]] = {"port": "socket://127.0.0.1:1"}
    deadline_s = 10.0

    @pytest.fixture
    def make_adapter(self, board: Emulator) -> MakeAdapter:
        own = {"port": board.serial_url, "period_ms": 5, "node_inference": True}
        return lambda options, clock: microcontroller.open_adapter("node", {**own, **options}, clock)


@pytest.mark.slow
class TestSerialNodeWhenAsked(TestSerialNode):
    @pytest.fixture
    def make_adapter(self, board: Emulator) -> MakeAdapter:
        own = {"port": board.serial_url, "period_ms": 0, "lines": {"valve": {"line": 0, "states": ["closed", "open"]}}}
        return lambda options, clock: microcontroller.open_adapter("node", {**own, **options}, clock)


@pytest.mark.slow
class TestCoapNode(AdapterContract):
    option = "period_ms"
    absent: ClassVar[Mapping[str, Any]] = {"uri": "coap://127.0.0.1:1", "timeout_s": 0.5}
    deadline_s = 10.0

    @pytest.fixture
    def make_adapter(self, board: Emulator) -> MakeAdapter:
        own = {"uri": f"coap://127.0.0.1:{board.coap_port}", "period_ms": 20, "node_inference": True}
        return lambda options, clock: coap.open_adapter("node", {**own, **options}, clock)


@pytest.mark.slow
class TestCoapDevice(AdapterContract):
    """The node as any CoAP device: only its resources are known."""

    option = "resources"
    absent: ClassVar[Mapping[str, Any]] = {"uri": "coap://127.0.0.1:1", "timeout_s": 0.5}
    deadline_s = 10.0

    @pytest.fixture
    def make_adapter(self, board: Emulator) -> MakeAdapter:
        resources = {
            "temperature": {"path": "/temp", "unit": "degC"},
            "samples": {"path": "/stats", "unit": "count", "field": "samples"},
            "led": {"path": "/gpio/0", "states": {"off": "0 0", "on": "1 60000"}},
        }
        own = {"uri": f"coap://127.0.0.1:{board.coap_port}", "resources": resources}
        return lambda options, clock: coap.open_adapter("device", {**own, **options}, clock)
