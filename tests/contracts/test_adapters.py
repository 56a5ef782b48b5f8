"""The adapter contract over every adapter that ships, and over one that breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from adapters import linux, replay, simulated
from edge_runtime.clock import SystemClock
from edge_runtime.registry import ADAPTERS, load, names
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.testing.machine_tree import MachineTree


def from_registry(driver: str, own: Mapping[str, Any]) -> MakeAdapter:
    factory = load(ADAPTERS, driver)
    return lambda options, clock: factory("unit", {**own, **options}, clock)


class TestSimulated(AdapterContract):
    option = "seed"
    absent: ClassVar[Mapping[str, Any]] = {"faults": {"disconnect": 1.0}}
    faults = simulated.FAULTS

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        return from_registry("simulated", {"pumps": ["pump", "pump2"]})


class TestSimulatedWithPanel(TestSimulated):
    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        return from_registry("simulated", {"panel": str(tmp_path / "panel.json")})


class TestSimulatedInRealTime(TestSimulated):
    """Paced by the machine's clock, as a gateway has it."""

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        factory = load(ADAPTERS, "simulated")
        return lambda options, clock: factory("unit", {"block": 8, **options}, SystemClock())


class TestReplayOfRows(AdapterContract):
    option = "speed"
    absent: ClassVar[Mapping[str, Any]] = {"file": "absent.csv"}
    faults = replay.FAULTS

    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        path = tmp_path / "rows.csv"
        path.write_text("time,temp,flow\n100,1,10\n101,2,\n102,3,30\n101,4,40\n")
        return from_registry("replay", {"file": str(path), "loop": True})


class TestReplayOfSegments(TestReplayOfRows):
    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        path = tmp_path / "segments.npz"
        np.savez(path, normal_0=np.arange(64, dtype=np.float32), ball_0=np.arange(96, dtype=np.float32))
        return from_registry("replay", {"file": str(path), "rate_hz": 100, "block": 16, "loop": True, "speed": "max"})


class TestLinuxOfFiles(AdapterContract):
    option = "rescan_s"
    absent: ClassVar[Mapping[str, Any]] = {"root": "/nowhere/at/all"}

    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        return from_registry("linux", {"root": str(MachineTree(tmp_path / "machine").root)})


class TestLinuxHere(AdapterContract):
    """The machine that runs the tests; its LEDs, if any, are left alone."""

    option = "include"
    absent: ClassVar[Mapping[str, Any]] = {"include": ["no/such/*"]}

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        return from_registry("linux", {"exclude": ["led/*"]})


def test_every_adapter_that_ships_is_under_contract() -> None:
    assert names(ADAPTERS) == ["linux", "replay", "simulated"]
    assert {load(ADAPTERS, name) for name in names(ADAPTERS)} == {linux.open_adapter, replay.open_adapter, simulated.open_adapter}
