"""The bearing model is what its manifest says, and hears what the simulated pump does, on recordings it was never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from models.golden import largest_difference
from models.onnx import OnnxBackend
from models.zoo import names, path
from models.zoo.bearing.data import LABELS, WINDOW, dataset
from models.zoo.bearing.train import predict

BUNDLE = read_bundle(path("bearing").parent)
MODEL = BUNDLE.model
MANIFEST = BUNDLE.manifest


def test_the_artefact_is_the_one_that_was_measured() -> None:
    assert "bearing" in names()
    verify(BUNDLE)
    assert MODEL.stat().st_size < 100_000
    assert MANIFEST.labels == LABELS
    accuracy = MANIFEST.measured["accuracy"]
    assert accuracy["int8"] >= 0.97
    assert abs(accuracy["float"] - accuracy["int8"]) <= 0.005


def test_its_golden_runs_come_out_here_too() -> None:
    pytest.importorskip("onnxruntime")
    assert BUNDLE.golden is not None
    assert MANIFEST.golden is not None
    assert largest_difference(OnnxBackend().load(MODEL), BUNDLE.golden) <= MANIFEST.golden.tolerance


def test_the_recipe_makes_the_same_data_again() -> None:
    first, second = dataset(5, 4), dataset(5, 4)
    assert np.array_equal(first[0], second[0])
    assert first[0].shape[1:] == (1, 1, WINDOW)
    assert sorted(set(first[1].tolist())) == [0, 1, 2, 3]


def test_it_is_right_on_runs_it_has_never_seen() -> None:
    pytest.importorskip("onnxruntime")
    x, y = dataset(20_261_123, 48)
    guess = predict(MODEL, x)
    assert (guess == y).mean() >= 0.95
    assert (guess[y == 0] != 0).mean() <= 0.01
