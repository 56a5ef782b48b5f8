"""A pipeline held against the model that it feeds: shapes, and what the manifest says the model was made for. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.bundle import Manifest, Port
from edge_runtime.config.deployment import PipelineSpec, SensorSpec
from edge_runtime.errors import InputError, ModelRefused
from edge_runtime.fitting import fit_input
from edge_runtime.pipeline.rows import pipeline_input
from edge_runtime.recordings import canonical
from edge_runtime.steps import output_shape, parse_steps
from edge_runtime.types import ProbeReport
from edge_runtime.units import parse_unit

_RATE_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Mismatch:
    """`key` is relative to the pipeline. Not fatal: the model runs, and may tell wrong things."""

    key: str
    message: str
    fatal: bool = True


def mismatches(spec: PipelineSpec, sensors: Mapping[str, SensorSpec], manifest: Manifest | None, probed: ProbeReport) -> Iterator[Mismatch]:
    """All that stands between a pipeline and its model."""
    declared = manifest.preprocess if manifest is not None else ()
    if spec.preprocess and manifest is not None and spec.preprocess != declared:
        steps = f"[{', '.join(declared)}]"
        yield Mismatch(
            "preprocess",
            f"the model was trained with {steps}; expected the same here (or none: then the manifest's are taken)",
            fatal=False,
        )
    try:
        shape = output_shape(parse_steps(spec.preprocess or declared), (len(spec.input), spec.window.size))
        fit_input(shape, pipeline_input(probed.inputs, probed.outputs, manifest))
    except ModelRefused as err:
        yield Mismatch("window.size", str(err))
    except InputError:
        pass  # the preprocessing itself is wrong: reported there
    if manifest is not None:
        yield from _signals(spec, sensors, _ports(manifest))


def _signals(spec: PipelineSpec, sensors: Mapping[str, SensorSpec], ports: Sequence[Port]) -> Iterator[Mismatch]:
    """Order, units and rates of the sensors against the channels that the model was made for."""
    channels = [channel for port in ports for channel in port.channels]
    units = [unit for port in ports for unit in (port.units or (port.unit,) * max(1, len(port.channels)))]
    given = [canonical(name) for name in spec.input]
    if channels and given != [canonical(name) for name in channels] and sorted(given) == sorted(map(canonical, channels)):
        yield Mismatch("input", f"the model was made for these channels in the order [{', '.join(channels)}]")
        return
    rates = {port.rate_hz for port in ports if port.rate_hz}
    units = units * len(spec.input) if len(units) == 1 else units
    for index, name in enumerate(spec.input):
        sensor = sensors.get(name)
        if sensor is None:
            continue  # reported there
        if len(units) == len(spec.input) and not _same_unit(sensor.unit, units[index]):
            yield Mismatch(
                f"input[{index}]",
                f"the model was made for {units[index]}, `{name}` comes in {sensor.unit}; set sensors.{name}.unit: {units[index]}",
                fatal=False,
            )
        if len(rates) == 1 and abs(sensor.rate_hz / next(iter(rates)) - 1) > _RATE_TOLERANCE:
            made_hz = next(iter(rates))
            yield Mismatch("input", f"the model was made for {made_hz:g} Hz, `{name}` comes at {sensor.rate_hz:g} Hz", fatal=False)


def _ports(manifest: Manifest) -> list[Port]:
    """Those that a window feeds."""
    return [port for port in manifest.inputs if port.name not in set(manifest.state.values())]


def _same_unit(given: str, wanted: str) -> bool:
    """Also when one of them says nothing, or is misspelt, which is reported there."""
    try:
        return not given or not wanted or given == wanted or (parse_unit(given).factor, parse_unit(given).offset) == (
            parse_unit(wanted).factor, parse_unit(wanted).offset
        )  # fmt: skip
    except InputError:
        return True
