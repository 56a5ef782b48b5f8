"""The comparison of two models' answers: what counts as a loss and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.errors import InputError
from edge_runtime.types import TensorInfo
from models.quantize.judge import choose_metric, classes, compare


def scores(guesses: np.ndarray) -> list[np.ndarray]:
    return [np.eye(4)[guesses]]


def test_accuracy_falls_by_the_share_of_answers_that_turned_wrong() -> None:
    truth = np.arange(1000) % 4
    worse = truth.copy()
    worse[:20] = (worse[:20] + 1) % 4
    found = compare("accuracy", scores(truth), scores(worse), truth)
    assert (found.float_value, found.int8_value, found.drop) == (100.0, 98.0, 2.0)
    assert found.error == pytest.approx(100 * np.sqrt(0.02 * 0.98 / 1000), rel=1e-3)


def test_a_lucky_recipe_is_not_taken_for_a_good_one() -> None:
    """Twenty answers lost and twenty-one won are a small drop with a large error: another sample may turn it."""
    truth = np.zeros(300, int)
    before, after = truth.copy(), truth.copy()
    before[:21], after[21:41] = 1, 1
    found = compare("accuracy", scores(before), scores(after), truth)
    assert found.drop < 0
    assert found.likely_drop > 1.5


def test_answers_that_do_not_change_have_no_error() -> None:
    truth = np.arange(40) % 4
    found = compare("agreement", scores(truth), scores(truth), None)
    assert (found.drop, found.error, found.sqnr_db) == (0.0, 0.0, 200.0)


def test_noise_is_measured_against_what_varies() -> None:
    expected = np.random.default_rng(0).normal(50, 2, (4000, 3))
    got = expected + np.random.default_rng(1).normal(0, 0.2, expected.shape)
    found = compare("sqnr", [expected], [got], None)
    assert found.drop == pytest.approx(1.0, rel=0.05)
    assert found.sqnr_db == pytest.approx(20, abs=0.3)
    assert 0 < found.error < 0.1


def test_an_answer_that_is_not_a_number_is_the_worst_there_is() -> None:
    expected = np.ones((10, 2))
    assert compare("sqnr", [expected], [expected * np.nan], None).drop > 1e6


def test_labels_beyond_the_models_classes_are_refused() -> None:
    with pytest.raises(InputError, match="the model tells 4 classes apart"):
        compare("accuracy", scores(np.zeros(5, int)), scores(np.zeros(5, int)), np.full(5, 9))


def test_one_score_is_a_probability_or_a_logit() -> None:
    assert classes(np.array([[0.2], [0.7]])).tolist() == [0, 1]
    assert classes(np.array([[-2.0], [0.3]])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("inputs", "outputs", "task", "metric"),
    [
        ([(-1, 16)], [(-1, 4)], "", "agreement"),
        ([(-1, 16)], [(-1, 16)], "", "sqnr"),
        ([(-1, 16)], [(-1, 1)], "", "sqnr"),
        ([(-1, 16)], [(-1, 4)], "detector", "sqnr"),
        ([(-1, 3, 8, 8)], [(-1, 4, 8, 8)], "", "sqnr"),
    ],
)
def test_the_metric_follows_what_the_model_gives(
    inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], task: str, metric: str
) -> None:
    tensors = [[TensorInfo(f"t{i}", shape, "float32") for i, shape in enumerate(shapes)] for shapes in (inputs, outputs)]
    assert choose_metric(tensors[0], tensors[1], False, task) == metric
