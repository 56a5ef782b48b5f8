"""Nothing phones home: ONNX Runtime's own telemetry is off, whoever loads it through this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from models.zoo import path

LOAD = "import sys; from pathlib import Path; from models.onnx import OnnxBackend; OnnxBackend().load(Path(sys.argv[1])).close()"
BARE = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
SILENCED = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "ORT_RUNNING_UNIT_TESTS")


def left_behind(code: str, home: Path) -> list[str]:
    """The files that a process leaves in its home and temporary folder."""
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in SILENCED and not key.startswith("GITHUB")}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    subprocess.run([sys.executable, "-c", code, str(path("thermal"))], env=environment, check=True, timeout=50)
    return [str(found.relative_to(home)) for found in home.rglob("*") if found.is_file()]


def test_no_identity_no_cache_and_no_uploader(tmp_path: Path) -> None:
    if not left_behind(BARE, tmp_path / "bare"):
        pytest.skip("this build of onnxruntime has no telemetry, so there is nothing to keep silent")
    assert left_behind(LOAD, tmp_path / "ours") == []
