"""One model on windows: fitting the input, classes, the guard against NaN, and the thread of a slow model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.pipeline.preprocess import NotFinite, parse_steps
from edge_runtime.pipeline.runner import Binding, ModelHandle, Runner, Worker, fit_input, softmax
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.types import Array, Inference, Quality, TensorInfo, Timestamp


class Computed:
    """A loaded model that computes a function of its tensor."""

    def __init__(
        self, function: Callable[[Array], list[float]], shape: tuple[int, ...] = (1, 4), scale: float = 0.0, dtype: str = "float32"
    ) -> None:
        self._function = function
        self.inputs = (TensorInfo("x", shape, dtype),)
        self.outputs = (TensorInfo("y", (1, -1), "float32", scale),)
        self.seen: list[Array] = []
        self.closed = False

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        self.seen.append(inputs[0].copy())
        return [np.array([self._function(inputs[0])], np.float32)]

    def close(self) -> None:
        self.closed = True


def snapshot(*values: float, seq: int = 1) -> Snapshot:
    return Snapshot(np.array([values], np.float32), seq, seq, 0, Timestamp(seq, seq, 0), Quality.GOOD)


def bind(model: Computed, labels: tuple[str, ...] = (), steps: Sequence[str] = (), size: int = 4) -> Binding:
    runner = Runner(model)
    binding = Binding("p", ModelHandle("m", "sha256:0", labels, model), parse_steps(steps), (1, size), runner)
    runner.warm_up(binding.fit.tensor)
    binding.check_labels()
    model.seen.clear()
    return binding


def zero() -> int:
    return 0


@pytest.mark.parametrize(
    ("shape", "tensor", "expected"),
    [
        ((3, 5), (1, 3, 5), (1, 3, 5)),
        ((3, 5), (-1, 3, 5), (1, 3, 5)),
        ((3, 5), (1, 3, 1, 5), (1, 3, 1, 5)),
        ((3, 5), (1, 3, 5, 1), (1, 3, 5, 1)),
        ((3, 5), (-1, -1, -1), (1, 3, 5)),
        ((1, 8), (8,), (8,)),
        ((1, 8), (1, 8), (1, 8)),
        ((1, 8), (-1, 8), (1, 8)),
        ((1, 8), (-1, -1), (1, 8)),
        ((1, 8), (1, 8, 1), (1, 8, 1)),
        ((1, 8), (1, 1, 8, 1), (1, 1, 8, 1)),
        ((8,), (1, 8), (1, 8)),
        ((1, 1), (1, 1), (1, 1)),
        ((4, 4), (1, 4, 4), (1, 4, 4)),
    ],
)
def test_a_window_fits_as_it_is(shape: tuple[int, ...], tensor: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    fitted = fit_input(shape, TensorInfo("x", tensor, "float32"))(data)
    assert fitted.shape == expected
    assert fitted.flags.c_contiguous
    np.testing.assert_array_equal(fitted.reshape(shape), data)


@pytest.mark.parametrize("tensor", [(1, 5, 3), (-1, 5, 3), (5, 3), (1, 5, 1, 3), (-1, -1, 3)])
def test_channels_last_is_transposed(tensor: tuple[int, ...]) -> None:
    data = np.arange(15, dtype=np.float32).reshape(3, 5)
    fitted = fit_input((3, 5), TensorInfo("x", tensor, "float32"))(data)
    np.testing.assert_array_equal(fitted.reshape(5, 3), data.T)


@pytest.mark.parametrize("tensor", [(1, 15), (15,), (-1, 15), (1, 15, 1)])
def test_a_flat_input_takes_channel_after_channel(tensor: tuple[int, ...]) -> None:
    data = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(fit_input((3, 5), TensorInfo("x", tensor, "float32"))(data).reshape(-1), np.arange(15))


@pytest.mark.parametrize("tensor", [(1, 3, 6), (2, 3, 5), (1, 14), (), (1, 3)])
def test_a_window_that_does_not_fit_is_refused_with_both_shapes(tensor: tuple[int, ...]) -> None:
    with pytest.raises(ModelRefused) as caught:
        fit_input((3, 5), TensorInfo("x", tensor, "float32"))
    assert caught.value.reason is RefusalReason.WRONG_SHAPE
    assert "[3, 5]" in str(caught.value)
    assert str(list(tensor)) in str(caught.value)


def test_an_integer_input_needs_a_scale() -> None:
    with pytest.raises(ModelRefused) as caught:
        fit_input((1, 4), TensorInfo("x", (1, 4), "int8"))
    assert caught.value.reason is RefusalReason.WRONG_DTYPE
    assert fit_input((1, 4), TensorInfo("x", (1, 4), "int8", 0.1)).tensor.dtype == np.float32
    assert fit_input((1, 4), TensorInfo("x", (1, 4), "float64")).tensor.dtype == np.float64


def test_probabilities_are_left_as_they_are() -> None:
    binding = bind(Computed(lambda x: [0.25, 0.125, 0.625]), ("a", "b", "c"))
    result = binding.infer(snapshot(1, 2, 3, 4), zero)
    assert (result.values, result.label, result.score) == ((0.25, 0.125, 0.625), "c", 0.625)


def test_logits_get_a_softmax_even_where_they_happen_to_sum_to_one() -> None:
    binding = bind(Computed(lambda x: [float(x.sum()), 1.0]), ("a", "b"))
    result = binding.infer(snapshot(0, 0, 0, 0), zero)
    assert result.label == "b"
    assert result.values == pytest.approx((1 / (1 + math.e), math.e / (1 + math.e)), rel=1e-6)
    assert result.score == max(result.values)


def test_a_quantized_softmax_may_miss_one_by_its_rounding() -> None:
    binding = bind(Computed(lambda x: [0.0] * 19 + [252 / 256], scale=1 / 256), tuple(f"c{n}" for n in range(20)))
    assert binding.infer(snapshot(1, 2, 3, 4), zero).score == 252 / 256


def test_without_labels_the_values_are_the_outputs() -> None:
    result = bind(Computed(lambda x: x[0].tolist())).infer(snapshot(1, -2, 3, 4), zero)
    assert (result.values, result.label, result.score) == ((1, -2, 3, 4), None, None)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_softmax_is_a_distribution(values: list[float]) -> None:
    result = softmax(values)
    assert math.fsum(result) == pytest.approx(1)
    assert result[values.index(max(values))] == max(result)


def test_labels_must_match_the_output() -> None:
    with pytest.raises(ModelRefused, match="2 labels for a model whose first output has 3 values"):
        bind(Computed(lambda x: [0.2, 0.3, 0.5]), ("a", "b"))


def test_preprocessing_ends_in_the_tensor() -> None:
    model = Computed(lambda x: [0.0])
    bind(model, steps=["scale(2)", "offset(1)"]).infer(snapshot(0, 1, 2, 3), zero)
    assert model.seen[0].tolist() == [[1, 3, 5, 7]]


@pytest.mark.parametrize("steps", [(), ("scale(1e38)",), ("log1p",)])
def test_the_model_never_sees_nan_or_infinity(steps: tuple[str, ...]) -> None:
    model = Computed(lambda x: [0.0])
    binding = bind(model, steps=steps)
    with pytest.raises(NotFinite):
        binding.infer(snapshot(1, 2, -1e3, 4 if steps else math.nan), zero)
    assert model.seen == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_no_result(bad: float) -> None:
    model = Computed(lambda x: [0.5, 0.5])
    binding = bind(model, ("a", "b"))
    model._function = lambda x: [bad, 0.5]
    with pytest.raises(NotFinite):
        binding.infer(snapshot(1, 2, 3, 4), zero)


def test_a_model_of_two_inputs_is_refused() -> None:
    model = Computed(lambda x: [0.0])
    model.inputs = (*model.inputs, TensorInfo("z", (1,), "float32"))
    with pytest.raises(ModelRefused, match="feeds one input, the model has 2: x, z"):
        Runner(model)


def test_a_model_that_fails_its_warm_up_is_refused() -> None:
    def broken(x: Array) -> list[float]:
        raise RuntimeError("no kernel")

    with pytest.raises(ModelRefused, match="no kernel") as caught:
        bind(Computed(broken))
    assert caught.value.reason is RefusalReason.RUN_FAILED


class Gate:
    """A model that runs only when it is let."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, x: Array) -> list[float]:
        self.entered.release()
        assert self.let.acquire(timeout=20)
        return [float(x[0, 0])]


def test_a_thread_takes_the_latest_window_of_each_pipeline_and_keeps_their_turn() -> None:
    gate = Gate()
    gate.let.release(7)
    model = Computed(gate)
    first = bind(model)
    gate.let.release(7)
    second = bind(model)
    while gate.entered.acquire(blocking=False):
        pass
    results: list[Inference | Exception] = []
    done = threading.Event()
    worker = Worker("m", zero, lambda action: action())

    def settle(result: Inference | Exception) -> None:
        results.append(result)

    assert not worker.submit(first, snapshot(1, 0, 0, 0), settle)
    assert gate.entered.acquire(timeout=20)
    assert not worker.submit(first, snapshot(2, 0, 0, 0), settle)
    assert not worker.submit(second, snapshot(3, 0, 0, 0), settle)
    assert worker.submit(first, snapshot(4, 0, 0, 0), settle)
    worker.retire(done.set)
    assert not worker.join(0)
    gate.let.release(3)
    assert done.wait(20)
    assert worker.join(20)
    assert [result.values for result in results if isinstance(result, Inference)] == [(1,), (4,), (3,)]


def test_what_a_model_raises_in_its_thread_is_handed_over() -> None:
    model = Computed(lambda x: [0.0])
    binding = bind(model)

    def broken(x: Array) -> list[float]:
        raise RuntimeError("bus error")

    model._function = broken
    results: list[Inference | Exception] = []
    worker = Worker("m", zero, lambda action: action())
    worker.submit(binding, snapshot(1, 2, 3, 4), results.append)
    worker.retire(lambda: None)
    assert worker.join(20)
    assert [str(result) for result in results] == ["bus error"]
