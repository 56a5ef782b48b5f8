"""The example network in its three forms, with its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.cli.main import main

Quantize = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `even.onnx`, `skewed.onnx`, `clipped.onnx`, `calibration.npz` and `eval.npz`."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from models.quantize.example import write

    folder = tmp_path_factory.mktemp("example")
    write(folder)
    return folder


@pytest.fixture
def quantize(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Quantize:
    """`model quantize NAME.onnx ... --json` into `tmp_path / "out"`: the exit code and the document."""

    def run(name: str, *more: str) -> tuple[int, dict[str, Any]]:
        data = ["--calibration", str(example / "calibration.npz"), "--eval", str(example / "eval.npz")]
        code = main(["model", "quantize", str(example / f"{name}.onnx"), *data, "--out", str(tmp_path / "out"), "--json", *more])
        return code, json.loads(capsys.readouterr().out)

    return run
