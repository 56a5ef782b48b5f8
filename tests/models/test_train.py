"""Training end to end by the command: from a recording to a bundle that serves, and its score on recordings it has not seen."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import skab
from edge_runtime.bundle import read_bundle, verify
from edge_runtime.cli.main import main
from edge_runtime.types import Array
from models.onnx import OnnxBackend
from models.train.detector import Settings
from models.train.spectrum import Spectrum

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def table(path: Path, rows: int, fault_from: int | None = None, seed: int = 1) -> Path:
    """A pump's flow, current and pressure, bound to each other; from `fault_from` on the flow goes its own way."""
    rng = np.random.default_rng(seed)
    load = np.sin(np.arange(rows) / 15) + 0.1 * rng.standard_normal(rows)
    columns = {"flow": 30 + 2 * load, "current": 4 + 0.5 * load, "pressure": 2 - 0.2 * load}
    label = np.zeros(rows)
    if fault_from is not None:
        columns["flow"][fault_from:] = 24 - 2 * load[fault_from:]
        label[fault_from:] = 1
    columns = {name: values + 0.02 * rng.standard_normal(rows) for name, values in columns.items()}
    with path.open("w") as file:
        file.write("time," + ",".join(columns) + ",anomaly\n")
        for row in range(rows):
            file.write(f"{1_700_000_000 + row}," + ",".join(f"{values[row]:.5f}" for values in columns.values()) + f",{label[row]:g}\n")
    return path


def signals(path: Path, seed: int) -> Path:
    """Two machine states: noise with a tone at one of two frequencies."""
    rng = np.random.default_rng(seed)
    t = np.arange(8000) / 1000
    tones = {"slow": 60, "fast": 170}
    arrays = {f"{name}_{n}": np.sin(2 * np.pi * hz * t) + rng.standard_normal(8000) for name, hz in tones.items() for n in range(2)}
    np.savez(path, **arrays)
    return path


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["model", *map(str, arguments), "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_detector_from_normal_rows_finds_what_is_not_normal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normal, faulty = table(tmp_path / "normal.csv", 2000), table(tmp_path / "faulty.csv", 1500, fault_from=1000, seed=2)
    answer = command(capsys, "train", "anomaly", "--data", normal, "--out", tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    verify(bundle)
    assert answer["digest"] == bundle.digest
    assert bundle.manifest.inputs[0].channels == ("flow", "current", "pressure")
    assert "<svg" in (tmp_path / "bundle/report.html").read_text()
    asyncio.run(OnnxBackend().probe(bundle.model))
    score = command(capsys, "score", tmp_path / "bundle", "--data", faulty)
    assert score["rows"] == 1500
    assert score["f1"] > 0.95
    assert score["far"] < 2


def test_the_same_rows_give_the_same_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    normal = table(tmp_path / "normal.csv", 600)
    digests = {command(capsys, "train", "anomaly", "--data", normal, "--out", tmp_path / name, "--name", "same")["digest"] for name in "ab"}
    assert len(digests) == 1


def test_fit_rows_are_all_that_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = table(tmp_path / "data.csv", 500), tmp_path / "longer" / "data.csv"
    long.parent.mkdir()
    long.write_text(short.read_text() + "".join(f"{1_700_001_000 + n},999,999,999,1\n" for n in range(300)))
    digests = {
        command(capsys, "train", "anomaly", "--data", path, "--fit-rows", 500, "--out", tmp_path / path.parent.name / "b")["digest"]
        for path in (short, long)
    }
    assert len(digests) == 1


def test_a_classifier_from_named_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "train", "classify", "--data", signals(tmp_path / "a.npz", 1), "--window", 256, "--out", tmp_path / "bundle")
    score = command(capsys, "score", tmp_path / "bundle", "--data", signals(tmp_path / "b.npz", 2))
    assert score["labels"] == ["fast", "slow"]
    assert score["windows"] == 4 * (8000 // 256)
    assert score["accuracy"] > 97


@pytest.mark.parametrize(("channels", "size", "level"), [(1, 1024, False), (3, 100, True), (2, 16, False)])
def test_the_graphs_features_are_those_it_was_trained_on(channels: int, size: int, level: bool, tmp_path: Path) -> None:
    from models.qdq import Graph

    spectrum = Spectrum(channels, size, level)
    g = Graph("features", int8=False)
    g.output(spectrum.nodes(g, g.input("x", ["batch", channels, size])), "features", ["batch", spectrum.features])
    g.save(tmp_path / "features.onnx")
    windows = np.random.default_rng(0).standard_normal((5, channels, size)).astype(np.float32)
    (got,) = OnnxBackend().load(tmp_path / "features.onnx").run([windows])
    np.testing.assert_allclose(got, spectrum.of(windows), atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "anomaly", "--data", "few.csv"], "expected at least"),
        (["train", "anomaly", "--data", "absent.csv"], "cannot be read"),
        (["train", "anomaly", "--data", "few.csv", "--window", "0"], "--window: expected at least 1"),
        (["train", "classify", "--data", "one.npz"], "expected at least two classes"),
        (["train", "classify", "--data", "few.csv"], "expected an .npz"),
        (["train", "classify", "--data", "nan.npz"], "missing or infinite"),
    ],
)
def test_data_that_cannot_be_used_is_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "few.csv", 60)
    noise: Array = np.random.default_rng(0).standard_normal(4000)
    np.savez("one.npz", a_1=noise)
    np.savez("nan.npz", a_1=noise, b_1=np.where(noise > 3, np.nan, noise))
    assert main(["model", *arguments, "--out", "out"]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    assert main(["model", "train", "anomaly", "--data", str(table(tmp_path / "n.csv", 600)), "--out", str(precious.parent)]) == 2
    assert precious.read_text() == "years of work"


def test_skab_beats_the_published_autoencoder() -> None:
    files = sorted((DATA / "skab/valve1").glob("*.csv"))
    if not files:
        pytest.skip("needs the SKAB recordings beside the checkout")
    result = skab.run(files, Settings())
    assert result["int8"]["f1"] >= 0.78
    assert result["int8"]["far"] <= 13.55
    assert abs(result["int8"]["f1"] - result["float"]["f1"]) <= 0.01


@pytest.mark.parametrize(("trained", "tested"), [("0", "1"), ("1", "0")])
def test_cwru_across_loads(trained: str, tested: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = next((DATA / "cwru").glob("*.npz"), None)
    if source is None:
        pytest.skip("needs the CWRU recordings beside the checkout")
    with np.load(source) as archive:
        for load in "01":
            np.savez(tmp_path / f"{load}.npz", **{k: archive[k] for k in archive.files if k.endswith(f"_{load}") and k != "Normal_0"})
    answer = command(capsys, "train", "classify", "--data", tmp_path / f"{trained}.npz", "--out", tmp_path / "bundle")
    accuracy = answer["measured"]["accuracy"]
    assert accuracy["float"] - accuracy["int8"] <= 0.5
    assert command(capsys, "score", tmp_path / "bundle", "--data", tmp_path / f"{tested}.npz")["accuracy"] >= 97


def test_basic_motions_from_forty_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (DATA / "basic_motions").is_dir():
        pytest.skip("needs the BasicMotions recordings beside the checkout")
    for part in ("TRAIN", "TEST"):
        windows: dict[str, list[Array]] = {}
        for line in (DATA / f"basic_motions/BasicMotions_{part}.ts").read_text().splitlines():
            if line and line[0] not in "#@":
                *channels, label = line.split(":")
                windows.setdefault(label, []).append(np.array([channel.split(",") for channel in channels], float))
        np.savez(tmp_path / f"{part}.npz", **{f"{label}_all": np.stack(found) for label, found in windows.items()})
    command(capsys, "train", "classify", "--data", tmp_path / "TRAIN.npz", "--out", tmp_path / "bundle")
    assert command(capsys, "score", tmp_path / "bundle", "--data", tmp_path / "TEST.npz")["accuracy"] >= 97
