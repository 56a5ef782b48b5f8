"""Processors without instructions for INT8 dot products: the sums must not saturate, or a model answers otherwise there."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.onnx import OnnxBackend

pytest.importorskip("onnxruntime")

DENSE = Path(__file__).parents[1] / "assets" / "models" / "dense.onnx"


def test_sessions_ask_for_exact_sums_where_the_processor_would_saturate_them() -> None:
    session = OnnxBackend().load(DENSE)._session  # type: ignore[attr-defined]  # only this host's processor can be asked otherwise
    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
