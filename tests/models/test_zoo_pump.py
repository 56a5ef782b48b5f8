"""The pump detector is what its manifest says, hears faults in a deployment as its page shows it, and is made again bit for bit."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.types import Array
from models.golden import largest_difference
from models.onnx import OnnxBackend
from models.zoo import names, path
from models.zoo.pump.data import CHANNELS, FAULTS, RATE_HZ, UNITS, faulty, normal, record
from models.zoo.pump.train import SETTINGS, Size, alarms, make
from models.zoo.pump.train import main as recipe

ROOT = Path(__file__).resolve().parents[2]
SKAB = ROOT / "../shared/data/skab/valve1"
EXAMPLE = ROOT / "docs/examples/pump-station"
BUNDLE = read_bundle(path("pump").parent)
MANIFEST = BUNDLE.manifest
TINY = Size(runs=3, seconds=300.0, normal_runs=1, fault_runs=1, fault_seconds=120.0)
SEEN_BY_IT = ("outer_race", "inner_race", "ball", "blocked_valve", "overheat")
ONSET_S = 150.0


def write_csv(target: Path, rows: Array) -> Path:
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", *CHANNELS])
        writer.writerows([f"{1_700_000_000 + index / RATE_HZ:.3f}", *row] for index, row in enumerate(rows))
    return target


def replay(capsys: pytest.CaptureFixture[str], recording: Path) -> list[dict[str, Any]]:
    assert main(["replay", str(EXAMPLE / "deployment.yaml"), "--data", str(recording), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def decisions(lines: list[dict[str, Any]], rule: str) -> list[float]:
    """Seconds into the recording at which a rule fired."""
    fired = [line for line in lines if line.get("event") == "decision" and line["rule"] == rule and line["kind"] == "fired"]
    return [line["at"]["wall_ns"] / 1e9 - 1_700_000_000 for line in fired]


def positions(lines: list[dict[str, Any]], since_s: float, until_s: float) -> list[str]:
    """What the valve was told between two times of the recording."""
    actions = [(line["at"]["wall_ns"] / 1e9 - 1_700_000_000, line["state"]) for line in lines if line.get("event") == "action"]
    return [state for at_s, state in actions if since_s <= at_s < until_s]


def test_the_bundle_is_whole_small_and_says_what_was_measured() -> None:
    assert "pump" in names()
    verify(BUNDLE)
    assert BUNDLE.model.stat().st_size < 10_000
    (port,) = MANIFEST.inputs
    assert (port.channels, port.units, port.rate_hz) == (CHANNELS, UNITS, RATE_HZ)
    measured = MANIFEST.measured
    assert set(measured["faults"]) == set(FAULTS)
    assert measured["agreement"] >= 0.999
    assert measured["normal"]["false_alarms"]["int8"] == 0
    for fault in SEEN_BY_IT:
        for cell in measured["faults"][fault].values():
            assert cell["int8"]["found"] == cell["float"]["found"] == cell["runs"]


def test_its_golden_runs_come_out_here_too() -> None:
    assert BUNDLE.golden is not None
    assert MANIFEST.golden is not None
    assert largest_difference(OnnxBackend().load(BUNDLE.model), BUNDLE.golden) <= MANIFEST.golden.tolerance
    assert main(["model", "probe", "zoo:pump", "--golden", "--json"]) == 0


def test_it_is_silent_on_days_it_has_never_seen() -> None:
    assert not any(alarms(BUNDLE.model, record(run)).any() for run in normal(20_261_123, 4, 900.0))


@pytest.mark.parametrize("fault", SEEN_BY_IT)
def test_it_hears_each_fault_that_moves_a_process_value(fault: str) -> None:
    for run in faulty(4_711, 2, 2 * ONSET_S, fault, 0.5):
        alarmed = alarms(BUNDLE.model, record(run))
        onset = round(ONSET_S * RATE_HZ)
        assert not alarmed[:onset].any()
        assert alarmed[onset : onset + round(20 * RATE_HZ)].any()


def test_what_it_cannot_hear_is_said_in_its_card() -> None:
    card = (BUNDLE.folder / "MODEL_CARD.md").read_text()
    for fault in ("unbalance", "sensor_stuck"):
        assert all(cell["int8"]["found"] == 0 for cell in MANIFEST.measured["faults"][fault].values())
        assert f"`{fault}`" in card


def test_the_page_shows_the_example_and_check_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/models/zoo.md").read_text(), re.DOTALL)
    for name in ("gateway.yaml", "deployment.yaml"):
        assert (EXAMPLE / name).read_text() in blocks
    assert main(["check", str(EXAMPLE / "deployment.yaml"), str(EXAMPLE / "gateway.yaml")]) == 0
    assert "warning" not in "".join(capsys.readouterr()).lower()


def test_the_deployment_closes_the_valve_on_a_fault_and_only_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = faulty(815, 1, 2 * ONSET_S, "blocked_valve", 0.5)
    lines = replay(capsys, write_csv(tmp_path / "blocked.csv", record(run)))
    (fired_s,) = decisions(lines, "odd_pump")
    assert ONSET_S < fired_s < ONSET_S + 15
    assert "open" in positions(lines, 0, fired_s)
    assert set(positions(lines, fired_s, 2 * ONSET_S)) == {"closed"}
    (quiet,) = normal(816, 1, 600.0)
    lines = replay(capsys, write_csv(tmp_path / "quiet.csv", record(quiet)))
    assert decisions(lines, "supply")
    assert not any(decisions(lines, rule) for rule in ("odd_pump", "hot_winding", "hot_bearing", "shaking"))


def test_the_recordings_are_the_same_again_and_differ_by_seed() -> None:
    first, again, other = (record(next(normal(seed, 1, 60.0))) for seed in (5, 5, 6))
    assert first.shape == (120, len(CHANNELS))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_recipe_makes_the_same_bundle_again(tmp_path: Path) -> None:
    first, again = make(tmp_path / "a", TINY), make(tmp_path / "b", TINY)
    verify(first)
    assert first.digest == again.digest
    assert first.manifest.window is not None
    assert first.manifest.window.size == SETTINGS.rows


@pytest.mark.slow
def test_the_command_judges_the_method_on_the_users_tables_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = sorted(SKAB.glob("*.csv"))
    if not tables:
        pytest.skip("the SKAB recordings are not at hand")
    picture = tmp_path / "trace.svg"
    assert recipe(["--quick", "--out", str(tmp_path / "pump"), "--data", *map(str, tables), "--picture", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)["measured"]["skab"]
    assert found["files"] == len(tables)
    few = found["few_rows_settings"]
    assert few["int8"]["f1"] >= 0.8
    assert few["int8"]["far"] <= 10
    assert few["int8"]["f1"] == pytest.approx(few["float"]["f1"], abs=0.01)
    assert picture.read_text().startswith("<svg")
