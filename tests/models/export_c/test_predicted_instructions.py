"""The instructions that the report predicts beside those that the emulated node counts, and its outputs beside the native interpreter's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters.firmware.build import MissingCompiler
from adapters.firmware.emulator import Emulator, MissingEmulator, cached_firmware, find_emulator
from adapters.firmware.native import Interpreter
from models.export_c.export import export
from tests.adapters.firmware.test_node_instructions import counts

pytest.importorskip("onnx")
from tests.models.export_c.onnx_networks import RandomNetwork

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def firmware() -> Path:
    try:
        find_emulator()
        return cached_firmware()
    except (MissingEmulator, MissingCompiler) as err:
        pytest.skip(str(err))


@pytest.mark.parametrize("model", ["bearing", 1, 5])
def test_counted_as_predicted_and_computed_alike(firmware: Path, interpreter: Interpreter, tmp_path: Path, model: str | int) -> None:
    path = Path(__file__).resolve().parents[3] / f"models/zoo/{model}"
    if isinstance(model, int):
        path = RandomNetwork(model).save(tmp_path / "random.onnx")
    exported = export(path, version=2)
    rows = np.random.default_rng(0).integers(-128, 128, (3, exported.network.input.shape.count), dtype=np.int8)
    with Emulator(firmware, icount=True) as node:
        found = counts(node, exported.data, [row.tobytes() for row in rows])
    assert [output for _, output in found] == [row.tobytes() for row in interpreter.run(exported.data, rows)]
    assert exported.report.instructions == pytest.approx(found[0][0], rel=0.15)
