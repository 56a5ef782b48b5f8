"""The digits model is what its manifest says: on all its held-out images, as pictures through `infer`, and made again bit for bit."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.errors import InputError, MissingDependency
from edge_runtime.types import Array
from models.golden import largest_difference
from models.onnx import OnnxBackend
from models.zoo import names, path
from models.zoo.digits import network
from models.zoo.digits.data import Part, load, png, split
from models.zoo.digits.train import HELD_OUT, LABELS, SAMPLES, SEEDS, measure, predict
from models.zoo.digits.train import main as recipe

BUNDLE = read_bundle(path("digits").parent)
MANIFEST = BUNDLE.manifest
PICTURES = sorted((BUNDLE.folder / SAMPLES).glob("*.png"))


def held_out() -> Part:
    with np.load(BUNDLE.folder / SAMPLES / HELD_OUT) as archive:
        return Part(archive["x"], archive["y"].astype(np.int64))


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """An npz of shapes that a network can tell apart: digit d is a bright bar at place d, with noise."""
    rng = np.random.default_rng(3)
    y = np.arange(200) % 10
    x = rng.uniform(0, 3, (200, 8, 8))
    for image, digit in zip(x, y, strict=True):
        image[digit % 5 + 1 if digit < 5 else slice(None), slice(None) if digit < 5 else digit % 5 + 1] = 16
    np.savez(tmp_path / "drawn.npz", x=np.rint(x), y=y)
    return tmp_path / "drawn.npz"


def test_the_bundle_is_whole_small_and_accurate_enough() -> None:
    assert "digits" in names()
    verify(BUNDLE)
    assert BUNDLE.model.stat().st_size < 100_000
    assert MANIFEST.labels == LABELS
    (image,) = MANIFEST.inputs
    assert (image.kind, image.mean, image.std) == ("image", (0.0,), (255.0,))
    accuracy = MANIFEST.measured["accuracy"]
    assert accuracy["int8"] >= 0.97
    assert abs(accuracy["float"] - accuracy["int8"]) <= 0.005


def test_its_golden_runs_come_out_here_too() -> None:
    assert BUNDLE.golden is not None
    assert MANIFEST.golden is not None
    assert largest_difference(OnnxBackend().load(BUNDLE.model), BUNDLE.golden) <= MANIFEST.golden.tolerance
    assert main(["model", "probe", "zoo:digits", "--golden", "--json"]) == 0


def test_it_reaches_its_stated_accuracy_on_every_held_out_image() -> None:
    part = held_out()
    assert len(part.y) == MANIFEST.measured["test_images"]
    guess = predict(BUNDLE.model, part.inputs())
    found = measure({"float": guess, "int8": guess}, part.y)
    assert found["accuracy"]["int8"] == pytest.approx(MANIFEST.measured["accuracy"]["int8"], abs=0.003)


def test_a_newcomer_runs_it_on_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    assert len(PICTURES) == 20
    assert main(["infer", "zoo:digits", "--input", *map(str, PICTURES), "--top", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    right = [result["top"][0]["label"] == result["input"][0] for result in results]
    assert len(right) == 20
    assert sum(right) >= 19


def test_the_samples_are_the_held_out_images() -> None:
    part = held_out()
    kept = {png(image) for image in part.x}
    assert all(picture.read_bytes() in kept for picture in PICTURES)


def test_where_scikit_learn_is_the_held_out_images_are_the_split_of_its_digits() -> None:
    pytest.importorskip("sklearn")
    test = split(load([]), SEEDS["split"])["test"]
    assert np.array_equal(test.x, held_out().x)


def test_the_parts_share_no_image() -> None:
    x = np.arange(100 * 64).reshape(100, 8, 8) % 251
    parts = split(Part(x.astype(np.int64), np.arange(100)), 1)
    assert sorted(np.concatenate([part.y for part in parts.values()]).tolist()) == list(range(100))


def test_the_recipe_learns_and_makes_the_same_bundle_again(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for name in "ab":
        assert recipe(["--data", str(drawn), "--epochs", "25", "--out", str(tmp_path / name)]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    verify(read_bundle(tmp_path / "a"))
    assert answers[0]["measured"]["accuracy"]["int8"] >= 0.9


def test_its_gradients_are_those_of_its_loss() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0, 1, (3, 1, 8, 8)), np.array([1, 5, 9])
    parameters = network._initial(rng, 10)
    gradients = network._gradients(parameters, x, y)

    def loss() -> float:
        shares = network._shares(network._forward(parameters, x)[-1])
        targets: Array = np.full((3, 10), network._SMOOTHING / 10)
        targets[np.arange(3), y] += 1 - network._SMOOTHING
        return float(-(targets * np.log(shares)).sum() / 3)

    for value, gradient in zip(parameters, gradients, strict=True):
        place = tuple(int(rng.integers(size)) for size in value.shape)
        kept = value[place]
        value[place] = kept + 1e-6
        above = loss()
        value[place] = kept - 1e-6
        below = loss()
        value[place] = kept
        assert gradient[place] == pytest.approx((above - below) / 2e-6, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("x", "y"),
    [(np.zeros((12, 7, 8)), np.zeros(12, int)), (np.full((12, 8, 8), 17.0), np.zeros(12, int)), (np.zeros((12, 8, 8)), np.full(12, 10))],
)
def test_data_that_are_no_digits_are_refused(tmp_path: Path, x: Array, y: Array) -> None:
    np.savez(tmp_path / "d.npz", x=x, y=y)
    with pytest.raises(InputError, match="expected"):
        load([tmp_path / "d.npz"])


@pytest.mark.skipif(find_spec("sklearn") is not None, reason="scikit-learn is installed")
def test_without_scikit_learn_the_missing_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingDependency, match=r"scikit-learn.*edge-runtime\[train\]"):
        load([])
    with pytest.raises(SystemExit):
        recipe(["--out", str(tmp_path / "d")])
    assert "edge-runtime[train]" in capsys.readouterr().err
