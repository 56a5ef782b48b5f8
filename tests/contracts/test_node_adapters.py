"""The adapter contract over nodes: emulated ones where QEMU and a compiler are installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from adapters import microcontroller
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
