"""One contract for every model backend: the same refusals, the same rounding, results that nobody else writes into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel, ModelBackend
from models.backends import choose, registered

ASSETS = Path(__file__).parents[1] / "assets" / "models"
WEIGHTS = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, -0.5], [0.25, 0.25, 0.25, 0.25]], np.float32)
BIAS = np.array([0.0, 1.0, -1.0], np.float32)


@dataclass(frozen=True)
class Case:
    """A backend with a model that computes x W^T + b, exactly or within half a step of its output."""

    backend: str
    model: str
    tolerance: float


CASES = [Case("onnx", "dense.onnx", 1e-6), Case("litert", "dense_int8.tflite", 0.0625), Case("tflite", "dense_int8.tflite", 0.0625)]


@pytest.fixture(params=CASES, ids=lambda case: case.backend)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    backend(chosen.backend)
    return chosen


@pytest.fixture
def model(case: Case) -> LoadedModel:
    return backend(case.backend).load(ASSETS / case.model)


def backend(name: str) -> ModelBackend:
    try:
        made: ModelBackend = registered()[name].load()()
    except MissingDependency as err:
        pytest.skip(str(err))
    return made


def test_every_registered_backend_is_held_to_the_contract() -> None:
    assert {case.backend for case in CASES} == set(registered())


def test_it_computes_and_gives_real_numbers(case: Case, model: LoadedModel) -> None:
    x = np.array([[0.5, -1.0, 2.0, 1.5]], np.float32)
    (y,) = model.run([x])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x @ WEIGHTS.T + BIAS, atol=case.tolerance)


def test_it_names_its_tensors(model: LoadedModel) -> None:
    assert [tensor.name for tensor in model.inputs] == ["x"]
    assert model.inputs[0].shape == (-1, 4)
    assert [tensor.shape for tensor in model.outputs] == [(-1, 3)]


@pytest.mark.parametrize("batch", [1, 7, 2])
def test_a_free_batch_takes_any_number(model: LoadedModel, batch: int) -> None:
    x = np.linspace(-2, 2, batch * 4, dtype=np.float32).reshape(batch, 4)
    (many,) = model.run([x])
    singly = np.concatenate([np.array(model.run([row[None]])[0]) for row in x])
    np.testing.assert_array_equal(many, singly)


@pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 4, 1), ()])
def test_a_wrong_shape_is_refused_by_name(model: LoadedModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelRefused, match="input `x` takes shape") as refusal:
        model.run([np.zeros(shape, np.float32)])
    assert refusal.value.reason is RefusalReason.WRONG_SHAPE


def test_a_wrong_number_of_inputs_is_refused(model: LoadedModel) -> None:
    for inputs in ([], [np.zeros((1, 4), np.float32)] * 2):
        with pytest.raises(ModelRefused, match="takes 1 inputs") as refusal:
            model.run(inputs)
        assert refusal.value.reason is RefusalReason.WRONG_SHAPE


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_a_wrong_dtype_is_refused_by_name(model: LoadedModel, dtype: str) -> None:
    with pytest.raises(ModelRefused, match="input `x` takes") as refusal:
        model.run([np.zeros((1, 4), dtype)])
    assert refusal.value.reason is RefusalReason.WRONG_DTYPE


def test_results_are_the_callers_own(model: LoadedModel) -> None:
    first = model.run([np.ones((1, 4), np.float32)])[0]
    kept = first.copy()
    model.run([np.full((1, 4), 3, np.float32)])
    np.testing.assert_array_equal(first, kept)


def test_the_input_is_left_as_it_was(model: LoadedModel) -> None:
    x = np.array([[0.3, 100.0, -100.0, 0.03]], np.float32)
    kept = x.copy()
    model.run([x])
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("name", ["litert", "tflite"])
def test_floats_are_quantized_half_to_even_and_saturated(name: str) -> None:
    loaded = backend(name).load(ASSETS / "dense_int8.tflite")
    scale = loaded.inputs[0].scale
    real = np.array([[0.5, 1.5, 2.5, 1e9]], np.float32) * scale
    stored = np.array([[0, 2, 2, 127]], np.int8)
    np.testing.assert_array_equal(loaded.run([real])[0], loaded.run([stored])[0])


@pytest.mark.parametrize("name", ["litert", "tflite"])
def test_a_value_that_no_integer_stands_for_is_refused(name: str) -> None:
    loaded = backend(name).load(ASSETS / "dense_int8.tflite")
    with pytest.raises(ModelRefused, match="holds NaN"):
        loaded.run([np.array([[0, np.nan, 0, 0]], np.float32)])


@pytest.mark.parametrize("name", ["litert", "tflite"])
def test_each_column_has_a_scale_of_its_own(name: str) -> None:
    loaded = backend(name).load(ASSETS / "per_axis_int8.tflite")
    x = np.array([[1.0, 1.25, 4.0]], np.float32)
    np.testing.assert_allclose(loaded.run([x])[0], x)


def test_a_missing_file_and_an_unknown_backend_are_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused) as refusal:
        backend(case.backend).load(tmp_path / f"absent{Path(case.model).suffix}")
    assert refusal.value.reason is RefusalReason.MISSING
    with pytest.raises(InputError, match="`onxx` is no model backend"):
        choose(ASSETS / case.model, "onxx")


async def test_the_probe_tells_what_the_model_is(case: Case) -> None:
    report = await backend(case.backend).probe(ASSETS / case.model)
    assert [tensor.name for tensor in report.inputs] == ["x"]
    assert report.runs > 0
    assert report.load_ms > 0
