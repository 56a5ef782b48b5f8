"""Units convert within a quantity and refuse across."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.units import UNITS, convert, parse_unit


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (100, "degC", "degF", 212),
        (0, "K", "degC", -273.15),
        (1, "g", "m/s2", 9.80665),
        (1500, "rpm", "Hz", None),
        (1, "bar", "kPa", 100),
        (60, "l/min", "m3/h", 3.6),
        (1, "kWh", "J", 3.6e6),
        (60, "rpm", "rad/s", 6.283185307179586),
    ],
)
def test_known_conversions(value: float, source: str, target: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(InputError, match="angular_velocity, expected frequency"):
            convert(value, source, target)
    else:
        assert convert(value, source, target) == pytest.approx(expected)


def test_an_unknown_unit_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean `degC`"):
        parse_unit("degc")


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.floats(-1e6, 1e6))
def test_there_and_back_is_the_same_value(a: str, b: str, value: float) -> None:
    if UNITS[a].quantity == UNITS[b].quantity:
        assert convert(convert(value, a, b), b, a) == pytest.approx(value, rel=1e-9, abs=1e-6)
