"""A pipeline against what its model's manifest says: order, units and rates of the sensors, shapes after the manifest's own steps."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.bundle import Manifest, Port
from edge_runtime.config.deployment import PipelineSpec, SensorSpec, WindowSpec
from edge_runtime.config.trained import Mismatch, mismatches
from edge_runtime.types import ProbeReport, TensorInfo

SENSORS = {"temp": SensorSpec(unit="degC", rate_hz=10), "flow": SensorSpec(unit="l/min", rate_hz=10), "speed": SensorSpec(rate_hz=10)}


def found(
    shape: tuple[int, ...] = (1, 2, 8), inputs: tuple[str, ...] = ("temp", "flow"), steps: tuple[str, ...] = (), **port: Any
) -> list[Mismatch]:
    declared = port.pop("preprocess", ())
    manifest = Manifest(
        schema=1,
        name="m",
        version=1,
        model="m.onnx",
        files={},
        inputs=(Port(name="x", shape=shape, dtype="float32", **port),),
        outputs=(),
        preprocess=declared,
        license="none",
    )
    tensor = TensorInfo("x", shape, "float32")
    probed = ProbeReport(backend="onnx", load_ms=1, run_ms=1, runs=1, rss_mb=1, inputs=(tensor,), outputs=())
    spec = PipelineSpec(input=inputs, window=WindowSpec(size=8), model="m", output="m", preprocess=steps)
    return list(mismatches(spec, SENSORS, manifest, probed))


def test_a_pipeline_that_gives_what_was_declared_has_no_mismatch() -> None:
    assert found(channels=("Temp", "Flow"), units=("degC", "l/min"), rate_hz=10.0) == []
    assert found(channels=("Temp", "Flow"), units=("°C", "L/min")) == []
    assert found(inputs=("speed", "flow"), channels=("a", "b"), unit="l/min") == []


@pytest.mark.parametrize(
    ("port", "key", "message", "fatal"),
    [
        ({"channels": ("flow", "temp")}, "input", "in the order [flow, temp]", True),
        (
            {"channels": ("a", "b"), "units": ("degF", "l/min")},
            "input[0]",
            "made for degF, `temp` comes in degC; set sensors.temp.unit: degF",
            False,
        ),
        ({"unit": "degC"}, "input[1]", "made for degC, `flow` comes in l/min", False),
        ({"rate_hz": 100.0}, "input", "made for 100 Hz, `temp` comes at 10 Hz", False),
    ],
)
def test_sensors_of_another_order_unit_or_rate_are_named(port: dict[str, Any], key: str, message: str, fatal: bool) -> None:
    first = found(**port)[0]
    assert (first.key, first.fatal) == (key, fatal)
    assert message in first.message


def test_the_manifests_steps_count_where_the_pipeline_names_none() -> None:
    assert found(shape=(1, 2, 5), preprocess=("rfft_magnitude",)) == []
    assert [each.key for each in found(shape=(1, 2, 8), preprocess=("rfft_magnitude",))] == ["window.size"]
    other = found(shape=(1, 2, 8), steps=("demean",), preprocess=("standardize",))
    assert [(each.key, each.fatal) for each in other] == [("preprocess", False)]
    assert "trained with [standardize]" in other[0].message
