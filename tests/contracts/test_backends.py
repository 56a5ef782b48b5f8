"""One contract for every model backend: the same refusals, the same rounding, results that nobody else writes into."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel, ModelBackend
from edge_runtime.types import FloatArray
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


CASES = [
    Case("onnx", "dense.onnx", 1e-6),
    Case("litert", "dense_int8.tflite", 0.0625),
    Case("litert", "dense_float.tflite", 1e-6),
    Case("tflite", "dense_int8.tflite", 0.0625),
    Case("tflite", "dense_float.tflite", 1e-6),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.backend}-{case.model}")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    backend(chosen.backend)
    return chosen


@pytest.fixture
def model(case: Case) -> LoadedModel:
    return backend(case.backend).load(ASSETS / case.model)


@cache
def loaded_once(name: str, model: str) -> LoadedModel:
    return backend(name).load(ASSETS / model)


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


@pytest.mark.parametrize("name", ["litert", "tflite"])
@given(real=arrays(np.float32, (1, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_what_goes_in_and_comes_out_is_the_nearest_stored_value(name: str, real: FloatArray) -> None:
    loaded = loaded_once(name, "per_axis_int8.tflite")
    scales = np.array(loaded.inputs[0].axis_scales, np.float32)
    stored = np.clip(np.rint(real / scales), -128, 127)
    (got,) = loaded.run([real])
    np.testing.assert_array_equal(got, stored * scales)
    np.testing.assert_array_equal(loaded.run([stored.astype(np.int8)])[0], got)


@pytest.mark.parametrize("name", ["litert", "tflite"])
def test_rounding_is_to_even_on_both_sides_of_zero_and_infinity_is_the_end(name: str) -> None:
    loaded = loaded_once(name, "per_axis_int8.tflite")
    scales = np.array(loaded.inputs[0].axis_scales, np.float32)
    for steps, stored in {
        (0.5, 1.5, 2.5): (0, 2, 2),
        (-0.5, -1.5, -2.5): (0, -2, -2),
        (126.5, 127.5, 1e9): (126, 127, 127),
        (-128.5, -129.5, -1e9): (-128, -128, -128),
        (np.inf, -np.inf, 0.0): (127, -128, 0),
    }.items():
        (got,) = loaded.run([np.array([steps], np.float32) * scales])
        np.testing.assert_array_equal(got, np.array([stored], np.float32) * scales)


@pytest.mark.parametrize("name", ["litert", "tflite"])
def test_stored_values_pass_as_they_are(name: str) -> None:
    loaded = loaded_once(name, "dense_int8.tflite")
    assert (loaded.inputs[0].dtype, loaded.inputs[0].scale, loaded.inputs[0].zero_point) == ("int8", 0.0625, 0)
    (y,) = loaded.run([np.array([[8, -16, 32, 24]], np.int8)])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [[0.5, -0.25, -0.25]], atol=0.0625)
    for other in (np.uint8, np.int16, np.int32):
        with pytest.raises(ModelRefused, match="takes int8, or float to be quantized, got") as refusal:
            loaded.run([np.array([[8, -16, 32, 24]]).astype(other)])
        assert refusal.value.reason is RefusalReason.WRONG_DTYPE


def test_a_float_model_lets_nan_through() -> None:
    backend("onnx")
    (y,) = loaded_once("onnx", "dense.onnx").run([np.array([[np.nan, 0, 0, 0]], np.float32)])
    assert np.isnan(y).any()


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_every_kind_of_real_number_is_taken(case: Case, model: LoadedModel, dtype: str) -> None:
    x = np.array([[0.5, -1.0, 2.0, 1.5]], np.float32)
    np.testing.assert_array_equal(model.run([x.astype(dtype)])[0], model.run([x])[0])


def test_it_does_not_matter_how_an_array_lies_in_memory(model: LoadedModel) -> None:
    x = np.array([[0.5, -1.0, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0]], np.float32)
    expected = model.run([x])[0].copy()
    read_only = x.copy()
    read_only.flags.writeable = False
    for same in (np.repeat(x, 2, axis=1)[:, ::2], np.asfortranarray(x), x[::-1][::-1], read_only):
        np.testing.assert_array_equal(model.run([same])[0], expected)


def test_an_empty_batch_is_no_end(model: LoadedModel) -> None:
    x = np.ones((1, 4), np.float32)
    before = model.run([x])[0].copy()
    assert model.run([np.zeros((0, 4), np.float32)])[0].shape == (0, 3)
    np.testing.assert_array_equal(model.run([x])[0], before)


def test_a_refused_input_leaves_the_model_as_it_was(model: LoadedModel) -> None:
    x = np.ones((2, 4), np.float32)
    before = model.run([x])[0].copy()
    for wrong in (np.zeros((2, 5), np.float32), np.zeros((2, 4), np.int64)):
        with pytest.raises(ModelRefused):
            model.run([wrong])
    np.testing.assert_array_equal(model.run([x])[0], before)


def test_what_the_caller_does_with_a_result_does_not_come_back(model: LoadedModel) -> None:
    x = np.ones((1, 4), np.float32)
    first = model.run([x])[0]
    expected = first.copy()
    first[:] = 99
    second = model.run([x])[0]
    np.testing.assert_array_equal(second, expected)
    assert not np.shares_memory(first, second)


def test_two_of_one_file_know_nothing_of_each_other(case: Case) -> None:
    one, other = (backend(case.backend).load(ASSETS / case.model) for _ in range(2))
    x = np.ones((3, 4), np.float32)
    kept = one.run([x])[0]
    expected = kept.copy()
    other.run([np.zeros((1, 4), np.float32)])
    other.close()
    np.testing.assert_array_equal(one.run([x])[0], expected)
    np.testing.assert_array_equal(kept, expected)


def test_a_closed_one_says_so_and_its_results_live_on(model: LoadedModel) -> None:
    x = np.ones((1, 4), np.float32)
    result = model.run([x])[0]
    expected = result.copy()
    model.close()
    model.close()
    gc.collect()
    np.testing.assert_array_equal(result, expected)
    assert model.inputs[0].name == "x"
    with pytest.raises(ModelRefused, match="it is closed; load it again") as refusal:
        model.run([x])
    assert refusal.value.reason is RefusalReason.RUN_FAILED


def test_the_number_of_threads_changes_no_bit(case: Case) -> None:
    x = np.linspace(-3, 3, 64, dtype=np.float32).reshape(16, 4)
    one, four = (backend(case.backend).load(ASSETS / case.model, threads).run([x])[0] for threads in (1, 4))
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3,)])
def test_a_fixed_batch_takes_no_other(shape: tuple[int, ...]) -> None:
    backend("litert")
    with pytest.raises(ModelRefused, match="input `x` takes shape 1x3, got") as refusal:
        loaded_once("litert", "per_axis_int8.tflite").run([np.zeros(shape, np.float32)])
    assert refusal.value.reason is RefusalReason.WRONG_SHAPE


@pytest.mark.parametrize("name", ["onnx", "litert", "tflite"])
def test_one_whose_library_is_absent_names_the_way_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = registered()[name].load()
    monkeypatch.setattr(factory, "module", "no_such_library_anywhere")
    with pytest.raises(MissingDependency, match=rf"pip install 'edge-runtime\[{name}\]'"):
        factory()


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
