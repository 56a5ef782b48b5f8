"""The activity recipe reads the archive's files, is right on the official test part, and makes the same bundle again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.errors import InputError
from models.golden import largest_difference
from models.onnx import OnnxBackend
from models.zoo import names
from models.zoo.activity.data import CHANNELS, read
from models.zoo.activity.train import main as recipe
from models.zoo.activity.train import make

DATA = Path(__file__).resolve().parents[2] / "../shared/data/basic_motions"
PARTS = DATA / "BasicMotions_TRAIN.ts", DATA / "BasicMotions_TEST.ts"


def write_ts(target: Path, windows: int, seed: int) -> Path:
    """Two classes that move at different rates."""
    rng, lines = np.random.default_rng(seed), ["# made by a test", "@problemName Made", "@data"]
    t = np.arange(64) / 10
    for number in range(windows):
        name, rate_hz = (("Slow", 0.5), ("Fast", 3.0))[number % 2]
        channels = np.sin(2 * np.pi * (rate_hz * t + rng.uniform(0, 1, (6, 1)))) + 0.2 * rng.standard_normal((6, 64))
        lines.append(":".join([*(",".join(f"{value:.4f}" for value in channel) for channel in channels), name]))
    target.write_text("\n".join(lines) + "\n")
    return target


def test_the_recipe_makes_the_same_bundle_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [str(write_ts(tmp_path / f"{seed}.ts", 16, seed)) for seed in (1, 2)]
    answers = []
    for name in "ab":
        assert recipe(["--data", *parts, "--epochs", "30", "--out", str(tmp_path / name)]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["measured"]["accuracy"] == {"float": 1.0, "int8": 1.0}
    bundle = read_bundle(tmp_path / "a")
    verify(bundle)
    assert bundle.golden is not None
    assert largest_difference(OnnxBackend().load(bundle.model), bundle.golden) <= 0.05
    assert bundle.manifest.inputs[0].channels == CHANNELS


def test_it_is_right_on_the_official_test_part(tmp_path: Path) -> None:
    if not PARTS[0].is_file():
        pytest.skip("the BasicMotions recordings are not at hand")
    made = make(tmp_path / "activity", read(PARTS[0]), read(PARTS[1]))
    assert made.manifest.labels == ("Badminton", "Running", "Standing", "Walking")
    accuracy = made.manifest.measured["accuracy"]
    assert accuracy["int8"] >= 0.975
    assert abs(accuracy["float"] - accuracy["int8"]) <= 0.005
    assert made.model.stat().st_size < 100_000
    assert main(["model", "probe", str(made.folder), "--golden", "--json"]) == 0


def test_no_bundle_of_data_without_a_licence_is_kept() -> None:
    assert "activity" not in names()


@pytest.mark.parametrize(
    "line",
    ["1,2:1,2:Walking", "1,x:1,2:1,2:1,2:1,2:1,2:Walking", "1,2:1,2:1,2:1,2:1,2:1:Walking", "1,nan:1,2:1,2:1,2:1,2:1,2:W", "a", ":::::::"],
)
def test_a_line_that_is_no_window_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.ts").write_text(f"@data\n{line}\n")
    with pytest.raises(InputError, match=r"bad\.ts:2: expected"):
        read(tmp_path / "bad.ts")


def test_files_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.ts").write_text("@data\n")
    with pytest.raises(InputError, match="got 0 windows"):
        read(tmp_path / "empty.ts")
    with pytest.raises(SystemExit):
        recipe(["--out", str(tmp_path / "o")])
    assert "expected the files TRAIN and TEST, got 0" in capsys.readouterr().err
