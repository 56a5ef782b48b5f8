"""The node's interpreter against onnxruntime, bit for bit: random networks over all operators, and the models of our own zoo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.firmware.native import Interpreter
from models.export_c.export import export
from models.export_c.network import Operator

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.models.export_c.onnx_networks import RandomNetwork  # noqa: E402

ROWS = 256
LEAST_OUTPUTS = 100_000


def session(path: Path) -> Any:
    """As onnxruntime runs INT8 on Arm: its int8 kernels, which it leaves to uint8 or float32 on other processors unless told so."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(interpreter: Interpreter, network: RandomNetwork, path: Path, rows: int) -> tuple[int, int, Counter[Operator]]:
    """(mismatches, outputs, operators) of one network."""
    exported = export(network.save(path))
    assert all(layer.exact for layer in exported.network.layers)
    inputs = network.inputs(rows)
    expected = session(path).run(None, {"x": inputs})[0].reshape(rows, -1)
    got = interpreter.run(exported.data, inputs)
    return int(np.sum(got != expected)), got.size, Counter(layer.operator for layer in exported.network.layers)


def compare_many(interpreter: Interpreter, folder: Path, seeds: range, rows: int) -> tuple[list[str], int, Counter[Operator]]:
    wrong, outputs, operators = [], 0, Counter[Operator]()
    for seed in seeds:
        network = RandomNetwork(seed, unsigned=bool(seed % 2))
        bad, count, found = compare(interpreter, network, folder / "random.onnx", rows)
        outputs += count
        operators += found
        if bad:
            wrong.append(f"seed {seed}: {bad} of {count}, {network}")
    return wrong, outputs, operators


def test_random_networks_give_the_bits_of_onnxruntime(interpreter: Interpreter, tmp_path: Path) -> None:
    wrong, outputs, operators = compare_many(interpreter, tmp_path, range(100), ROWS)
    assert not wrong
    assert outputs >= LEAST_OUTPUTS
    assert set(operators) == set(Operator)


@pytest.mark.slow
def test_many_more_random_networks_give_the_bits_of_onnxruntime(interpreter: Interpreter, tmp_path: Path) -> None:
    wrong, _, _ = compare_many(interpreter, tmp_path, range(1_000, 1_300), ROWS)
    assert not wrong
