"""The probe holds a bundle against its golden runs, and `model probe` says what it found."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import Golden, read_bundle, write_manifest
from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from models.commands.probe import ProbeCommand
from models.probe import GoldenRuns, probe
from models.zoo import path as zoo_path

pytest.importorskip("onnxruntime")

from models.onnx import OnnxBackend

DENSE = Path(__file__).parents[1] / "assets" / "models" / "dense.onnx"


def command(*words: str) -> int:
    parser = ArgumentParser()
    ProbeCommand().configure(parser)
    return ProbeCommand().run(parser.parse_args(words))


def bundle_with(folder: Path, inputs: Sequence[float], outputs: Sequence[float], tolerance: float) -> Path:
    """The zoo's bearing model with golden runs that a test has made."""
    import msgspec

    source = read_bundle(zoo_path("bearing").parent)
    shutil.copy(source.model, folder / "model.onnx")
    np.savez(folder / "golden.npz", in0=np.asarray(inputs, np.float32), out0=np.asarray(outputs, np.float32))
    manifest = msgspec.structs.replace(source.manifest, model="model.onnx", golden=Golden(file="golden.npz", tolerance=tolerance))
    write_manifest(folder, manifest, ["model.onnx", "golden.npz"])
    return folder


def golden_runs() -> tuple[np.ndarray, np.ndarray]:
    model = OnnxBackend().load(zoo_path("bearing"))
    inputs = np.random.default_rng(0).normal(size=(3, 1, 1, 1, 1024)).astype(np.float32)
    return inputs, np.stack([np.array(model.run([window])[0]) for window in inputs])


def test_golden_runs_that_agree_are_counted(tmp_path: Path) -> None:
    bundle = read_bundle(bundle_with(tmp_path, *golden_runs(), tolerance=1e-6))
    report = probe(bundle.model, "onnx", golden=GoldenRuns.of(bundle))
    assert (report.golden_runs, report.golden_difference) == (3, 0.0)


async def test_the_backend_finds_the_golden_runs_of_a_bundle_by_itself(tmp_path: Path) -> None:
    inputs, outputs = golden_runs()
    bundle = read_bundle(bundle_with(tmp_path, inputs, outputs + 0.125, tolerance=0.1))
    with pytest.raises(ModelRefused, match=r"golden_mismatch: an output differs by 0\.125 .* allows 0\.1") as refusal:
        await OnnxBackend().probe(bundle.model)
    assert refusal.value.reason is RefusalReason.GOLDEN_MISMATCH


async def test_without_a_bundle_nothing_is_compared() -> None:
    report = await OnnxBackend().probe(DENSE)
    assert (report.golden_runs, report.golden_difference) == (0, None)


def test_a_nan_is_no_agreement(tmp_path: Path) -> None:
    inputs, outputs = golden_runs()
    outputs[1, 0, 2] = np.nan
    bundle = read_bundle(bundle_with(tmp_path, inputs, outputs, tolerance=1e30))
    with pytest.raises(ModelRefused) as refusal:
        probe(bundle.model, "onnx", golden=GoldenRuns.of(bundle))
    assert refusal.value.reason is RefusalReason.GOLDEN_MISMATCH


@pytest.mark.parametrize("damage", ["none", "fewer outputs", "other shape", "zip cut", "text", "input of another shape"])
def test_golden_runs_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    inputs, outputs = golden_runs()
    if damage == "none":
        inputs, outputs = inputs[:0], outputs[:0]
    elif damage == "fewer outputs":
        outputs = outputs[:2]
    elif damage == "other shape":
        outputs = outputs[..., :1]
    elif damage == "input of another shape":
        inputs = inputs[..., :512]
    bundle = read_bundle(bundle_with(tmp_path, inputs, outputs, tolerance=1.0))
    golden = tmp_path / "golden.npz"
    if damage == "zip cut":
        golden.write_bytes(golden.read_bytes()[:-40])
    elif damage == "text":
        golden.write_text("golden")
    with pytest.raises(ModelRefused) as refusal:
        probe(bundle.model, "onnx", golden=GoldenRuns.of(bundle))
    expected = RefusalReason.WRONG_SHAPE if damage == "input of another shape" else RefusalReason.UNREADABLE
    assert refusal.value.reason is expected


def test_the_command_tells_cost_and_golden_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("zoo:bearing", "--golden") == 0
    told = capsys.readouterr().out
    assert "may serve here (backend onnx)" in told
    assert "8 of 8 runs agree" in told
    assert "vibration  1x1x1x1024 float32" in told


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(DENSE), "--json") == 0
    report = json.loads(capsys.readouterr().out)["probe"]
    assert report["backend"] == "onnx"
    assert report["golden_difference"] is None


def test_the_command_refuses_a_mismatch_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, outputs = golden_runs()
    assert command(str(bundle_with(tmp_path, inputs, outputs + 1, tolerance=0.5)), "--json") == 1
    assert json.loads(capsys.readouterr().out)["refused"]["reason"] == "golden_mismatch"


def test_the_command_refuses_a_bundle_that_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle_with(tmp_path, *golden_runs(), tolerance=1.0)
    (folder / "golden.npz").write_bytes(b"other")
    assert command(str(folder)) == 1
    assert "unreadable" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--golden",), ("--deadline", "0"), ("--memory", "-1")])
def test_what_cannot_be_meant_is_said(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="--"):
        command(str(DENSE), *words)
