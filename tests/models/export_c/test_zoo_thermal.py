"""The zoo's thermal model is the node's factory model: the same answers, bit for bit, and a recipe that makes the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from adapters.firmware.native import Interpreter
from edge_runtime.bundle import read_bundle, verify
from models.export_c.export import export
from models.export_c.factory import HOT_CELSIUS, WINDOW, exported
from models.onnx import OnnxBackend
from models.zoo import path
from models.zoo.thermal.make import make

BUNDLE = read_bundle(path("thermal").parent)
WINDOWS = 2000


def windows() -> np.ndarray:
    """Half of them anywhere, half about the temperature at which the answer changes."""
    random = np.random.default_rng(20261124)
    anywhere = random.integers(-128, 128, (WINDOWS // 2, WINDOW))
    near = HOT_CELSIUS + random.integers(-8, 9, (WINDOWS // 2, WINDOW))
    return np.concatenate([anywhere, near]).astype(np.int8)


def test_the_recipe_makes_the_same_bytes(tmp_path: Path) -> None:
    verify(BUNDLE)
    assert make(tmp_path).digest == BUNDLE.digest


def test_gateway_and_node_give_the_same_bits(interpreter: Interpreter) -> None:
    given = windows()
    model = OnnxBackend().load(BUNDLE.model)
    try:
        shares = np.concatenate([model.run([row[None].astype(np.float32)])[0].copy() for row in given])
    finally:
        model.close()
    stored = np.rint(shares * 256) - 128
    assert np.array_equal(stored, interpreter.run(exported().data, given))
    assert np.array_equal(stored, interpreter.run(export(BUNDLE.model).data, given))
    assert set(shares.argmax(axis=1)) == {0, 1, 2}
