"""Features against their textbook values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.pipeline.features import FEATURES, extract, feature_names
from edge_runtime.types import FloatArray


def features(samples: FloatArray) -> dict[str, float | None]:
    return dict(zip(FEATURES, extract(samples[np.newaxis].astype(np.float32)), strict=True))


def test_a_sine() -> None:
    sine = features(3 * np.sin(np.arange(1000) * 2 * np.pi / 100))
    for name, value in {"mean": 0, "rms": 3 / math.sqrt(2), "peak": 3, "crest": math.sqrt(2), "kurtosis": 1.5, "min": -3, "max": 3}.items():
        assert sine[name] == pytest.approx(value, abs=1e-4), name


def test_impulses_raise_kurtosis_and_crest_factor() -> None:
    noise = np.random.default_rng(0).standard_normal(4096)
    healthy = features(noise)
    noise[::512] += 12
    faulty = features(noise)
    assert healthy["kurtosis"] == pytest.approx(3, abs=0.3)
    assert faulty["kurtosis"] > 6 > 4 > healthy["crest"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(("level", "crest"), [(0.0, None), (5.3, 1.0), (-1e6, 1.0)])
def test_a_constant_has_no_kurtosis(level: float, crest: float | None) -> None:
    constant = features(np.full(333, level))
    assert constant["kurtosis"] is None
    assert constant["std"] == 0
    assert constant["crest"] == (crest if crest is None else pytest.approx(crest))
    assert constant["peak"] == pytest.approx(abs(level))


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_values_are_finite_and_ordered(samples: FloatArray) -> None:
    values = features(samples)
    assert all(value is None or math.isfinite(value) for value in values.values())
    low, high, mean, peak, rms = (values[name] for name in ("min", "max", "mean", "peak", "rms"))
    slack = 1e-9 * abs(peak)  # type: ignore[arg-type]
    assert low - slack <= mean <= high + slack  # type: ignore[operator]
    assert rms <= peak + slack  # type: ignore[operator]


def test_names_carry_the_channel_when_there_are_several() -> None:
    assert feature_names(["x"]) == FEATURES
    names = feature_names(["x", "y"])
    assert (names[0], names[-1], len(names)) == ("x.mean", "y.kurtosis", 2 * len(FEATURES))
    assert len(extract(np.zeros((2, 4), np.float32))) == len(names)
