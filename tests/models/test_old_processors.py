"""Processors without instructions for INT8 dot products: the sums must not saturate, or a model answers otherwise there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import optimised
from models.onnx import OnnxBackend

pytest.importorskip("onnxruntime")

DENSE = Path(__file__).parents[1] / "assets" / "models" / "dense.onnx"
OLD, NEW = "flags\t\t: fpu sse4_1 avx2 avx512f", "flags\t\t: fpu sse4_1 avx2 avx512f avx512_vnni"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In the place of what the kernel says of the processor."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(optimised, "_CPUINFO", file)
    caches = (optimised.instruction_sets, optimised.cpu_flags)
    for cache in caches:
        cache.cache_clear()
    yield file
    for cache in caches:
        cache.cache_clear()


def exact_sums() -> bool:
    session = OnnxBackend().load(DENSE)._session  # type: ignore[attr-defined]  # only this host's processor can be asked otherwise
    try:
        return bool(session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1")
    except RuntimeError:  # not set
        return False


@pytest.mark.parametrize(("told", "exact"), [(OLD, True), (NEW, False), ("processor : 0", True)])
def test_exact_sums_are_asked_for_where_they_would_saturate_and_nowhere_else(cpuinfo: Path, told: str, exact: bool) -> None:
    cpuinfo.write_text(told + "\n")
    assert exact_sums() is exact
