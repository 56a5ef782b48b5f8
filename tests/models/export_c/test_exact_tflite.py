"""The node's interpreter against the reference kernels of LiteRT and of TensorFlow Lite 2.14, and against LiteRT as it runs by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adapters.firmware.native import Interpreter
from edge_runtime.types import Array
from models.export_c.export import export
from models.export_c.network import Operator, Rounding

pytest.importorskip("flatbuffers")
litert = pytest.importorskip("ai_edge_litert.interpreter")

from tests.models.export_c.tflite_networks import RandomNetwork  # noqa: E402

DATA = Path(__file__).resolve().parents[3] / "../shared/data"
ROWS = 256
LEAST_OUTPUTS = 100_000


def reference(library: ModuleType, path: Path, rows: Array, *, plain: bool = True) -> Array:
    """What an interpreter's reference kernels make of each row; `plain` False: the kernels that it takes by itself."""
    options: dict[str, Any] = {"experimental_op_resolver_type": library.OpResolverType.BUILTIN_REF} if plain else {}
    model = library.Interpreter(str(path), num_threads=1, **options)
    model.allocate_tensors()
    given, made = model.get_input_details()[0]["index"], model.get_output_details()[0]["index"]
    found = []
    for row in rows:
        model.set_tensor(given, row[None])
        model.invoke()
        found.append(model.get_tensor(made).reshape(-1))
    return np.array(found)


def compare_many(
    interpreter: Interpreter, library: ModuleType, folder: Path, rounding: Rounding, seeds: range
) -> tuple[list[str], int, Counter[Operator]]:
    wrong, outputs, operators = [], 0, Counter[Operator]()
    for seed in seeds:
        network = RandomNetwork(seed, unsigned=seed % 4 == 3)
        path = network.save(folder / "random.tflite")
        exported, rows = export(path, rounding=rounding), network.inputs(ROWS)
        assert all(layer.exact for layer in exported.network.layers)
        expected, got = reference(library, path, rows), interpreter.run(exported.data, rows)
        outputs += got.size
        operators += Counter(layer.operator for layer in exported.network.layers)
        if np.any(got != expected):
            wrong.append(f"seed {seed}: {np.sum(got != expected)} of {got.size}")
    return wrong, outputs, operators


def test_random_networks_give_the_bits_of_the_reference_kernels_of_litert(interpreter: Interpreter, tmp_path: Path) -> None:
    wrong, outputs, operators = compare_many(interpreter, litert, tmp_path, Rounding.LITERT, range(110))
    assert not wrong
    assert outputs >= LEAST_OUTPUTS
    assert set(operators) == set(Operator) - {Operator.SOFTMAX}


def test_random_networks_give_the_bits_of_the_reference_kernels_of_tensorflow_lite(interpreter: Interpreter, tmp_path: Path) -> None:
    older = pytest.importorskip("tflite_runtime.interpreter", exc_type=ImportError)
    wrong, outputs, _ = compare_many(interpreter, older, tmp_path, Rounding.DOUBLE, range(110))
    assert not wrong
    assert outputs >= LEAST_OUTPUTS


def test_a_softmax_is_within_one_step_of_the_reference_kernels(interpreter: Interpreter, tmp_path: Path) -> None:
    for seed in range(20):
        network = RandomNetwork(seed, softmax=True)
        path = network.save(tmp_path / "random.tflite")
        exported, rows = export(path, rounding=Rounding.LITERT), network.inputs(ROWS)
        difference = reference(litert, path, rows).astype(int) - interpreter.run(exported.data, rows)
        assert np.max(np.abs(difference)) <= 1
        assert np.mean(difference != 0) < 0.01


@pytest.mark.parametrize("rounding", [Rounding.HALF_EVEN, Rounding.LITERT, Rounding.DOUBLE])
@pytest.mark.parametrize("name", ["hello_world/hello_world_int8.tflite", "toyadmos/ad01_int8.tflite"])
def test_models_of_others_give_the_bits_of_their_runtime(interpreter: Interpreter, name: str, rounding: Rounding) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    library = litert
    if rounding is Rounding.DOUBLE:
        library = pytest.importorskip("tflite_runtime.interpreter", exc_type=ImportError)
    exported = export(path, rounding=rounding)
    given = exported.network.input.shape.count
    rows = np.random.default_rng(0).integers(-128, 128, (ROWS, given)).astype(np.int8)
    expected = reference(library, path, rows, plain=rounding is not Rounding.HALF_EVEN)
    assert np.array_equal(interpreter.run(exported.data, rows), expected)
