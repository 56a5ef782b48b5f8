"""A replay is the gateway's own loop on recorded data: every row accounted for, every bit the same again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.cli.main import main

DATA = Path(__file__).resolve().parents[2] / "shared/data"
DEPLOYMENT = """\
schema: 1
sensors: {temp: {unit: degC, rate_hz: 1}}
rules: [{rule: hot, when: "temp > 80 degC for 3s", then: {close: valve}, until: "temp < 70 degC", priority: 90}]
actuators: {valve: {safe_state: open, lease_s: 30, states: [open, closed]}}
"""
SKAB = """\
schema: 1
sensors:
  accelerometer1_rms: {rate_hz: 1}
  volume_flow_rate_rms: {unit: l/min, rate_hz: 1}
models: {bearing: {path: "zoo:bearing"}}
pipelines:
  shaking: {input: [accelerometer1_rms], window: {size: 16, hop: 4}, output: shaking}
  bearing: {input: [accelerometer1_rms], window: {size: 1024, hop: 64}, preprocess: [standardize], model: bearing, output: bearing}
rules:
  - rule: low_flow
    when: "volume_flow_rate_rms < 31 l/min for 5s"
    then: {close: valve}
    until: "volume_flow_rate_rms > 31.5 l/min for 3s"
  - {rule: shaking, when: "shaking.mean > 0.2", then: {close: valve}, priority: 60}
  - {rule: bearing_fault, when: 'bearing != "normal" and bearing.score > 0.5', then: {close: valve}, priority: 70}
actuators: {valve: {safe_state: open, lease_s: 30, states: [open, closed]}}
"""
CWRU = """\
schema: 1
sensors: {vibration: {unit: g, rate_hz: 12000}}
models: {bearing: {path: "zoo:bearing"}}
pipelines:
  bearing: {input: [vibration], window: {size: 1024, hop: 512}, preprocess: [standardize], model: bearing, output: bearing}
  shaking: {input: [vibration], window: {size: 1024, hop: 512}, output: shaking}
rules:
  - {rule: fault, when: '(bearing != "normal" and bearing.score > 0.8) for 200ms', then: {stop: motor}}
  - {rule: shaking, when: "shaking.rms > 0.2 g", then: {stop: motor}, until: "shaking.rms < 0.1 g"}
actuators: {motor: {safe_state: running, lease_s: 30, states: [running, stopped]}}
"""


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    assert main(["replay", *arguments, "--json"]) == 0
    *lines, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    return lines, last["summary"]


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT)
    return path


def _csv(path: Path, rows: list[str]) -> Path:
    path.write_text("time,Temp,anomaly\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_a_rule_fires_after_its_time_and_the_valve_follows(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    temperatures = [20] * 5 + [90] * 10 + [60] * 5
    data = _csv(tmp_path / "d.csv", [f"{1_700_000_000 + t},{value},{int(value > 80)}" for t, value in enumerate(temperatures)])
    lines, summary = _run(capsys, str(deployment), "--data", str(data), "--label", "anomaly")
    fired = [line for line in lines if line["event"] == "decision"]
    assert [(line["kind"], line["rule"], line["at"]["wall_ns"] // 10**9 - 1_700_000_000) for line in fired] == [
        ("fired", "hot", 8),
        ("released", "hot", 15),
    ]
    states = [(line["state"], line["outcome"]) for line in lines if line["event"] == "action"]
    assert states[:3] == [("open", "done"), ("closed", "done"), ("open", "done")]
    assert summary["score"]["tp"] == 7
    assert summary["score"]["fn"] == 3
    assert summary["score"]["fp"] == 0


def test_duplicates_disorder_and_missing_cells_are_kept_and_counted(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["1700000000,20,0", "1700000000,21,0", "1700000003,,0", "1700000001,22,0", "1700000004,x,0", "1700000005,23,0"]
    _, summary = _run(capsys, str(deployment), "--data", str(_csv(tmp_path / "d.csv", rows)))
    counts = {key: summary[key] for key in ("rows", "duplicates", "out_of_order", "malformed", "cells", "cells_missing", "readings")}
    assert counts == {
        "rows": 5,
        "duplicates": 1,
        "out_of_order": 1,
        "malformed": 1,
        "cells": 5,
        "cells_missing": 1,
        "readings": 5,
    }
    assert summary["accounted"] is True
    assert main(["replay", str(deployment), "--data", str(tmp_path / "d.csv"), "--strict"]) == 2
    assert "d.csv:6:Temp: expected a number, got `x`" in capsys.readouterr().err


def test_against_shows_the_actuations_that_would_change(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(DEPLOYMENT.replace("for 3s", "for 20s"))
    data = _csv(tmp_path / "d.csv", [f"{1_700_000_000 + t},{90 if 5 <= t < 15 else 20},0" for t in range(20)])
    _, summary = _run(capsys, str(deployment), "--data", str(data), "--against", str(other))
    assert [line.split(" ", 2)[2] for line in summary["against"]["only_before"]] == ["valve -> closed", "valve -> open"]
    assert summary["against"]["only_after"] == []


def test_columns_that_fit_no_sensor_are_named(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.csv"
    data.write_text("time;Druck\n2024-01-01T00:00:00Z;1,5\n")
    assert main(["replay", str(deployment), "--data", str(data)]) == 2
    assert "columns: Druck; name them with --map sensor=column" in capsys.readouterr().err
    _, summary = _run(capsys, str(deployment), "--data", str(data), "--map", "temp=Druck")
    assert summary["readings"] == 1


@pytest.mark.parametrize(("folder", "pattern", "text"), [("skab/valve1", "*.csv", SKAB), ("cwru", "*.npz", CWRU)])
def test_real_recordings_give_the_same_bits_twice_and_every_row_is_accounted_for(
    folder: str, pattern: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(path) for path in (DATA / folder).glob(pattern))[:6]
    if not files:
        pytest.skip(f"no recordings in {DATA / folder}")
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(text)
    runs = []
    for name in ("a.jsonl", "b.jsonl"):
        _, summary = _run(capsys, str(deployment), "--data", *files, "--out", str(tmp_path / name))
        runs.append((summary["digest"], (tmp_path / name).read_bytes()))
        assert summary["accounted"] is True
        assert summary["malformed"] == 0
        assert summary["inferences"] > 0
        assert summary["decisions"] > 0
    assert runs[0] == runs[1]


def test_a_segment_without_times_is_one_recording_of_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(CWRU)
    np.savez(tmp_path / "d.npz", normal_0=np.random.default_rng(1).standard_normal(5000))
    _, summary = _run(capsys, str(deployment), "--data", str(tmp_path / "d.npz"))
    assert (summary["rows"], summary["readings"], summary["inferences"]) == (5000, 5, 8)
