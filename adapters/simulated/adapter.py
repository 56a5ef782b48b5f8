"""The simulated adapter: pumps as hardware, paced by the injected clock. Everything it senses comes from `plant`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from adapters.simulated.panel import Panel
from adapters.simulated.plant import PLANT_FAULTS, PlantSettings, Pump
from edge_runtime.clock import Clock, SystemClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.ports import SampleSink
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

SENSOR_FAULTS = ("sensor_dropout", "sensor_stuck", "sensor_nan", "babble", "disconnect")
FAULTS = (*PLANT_FAULTS, *SENSOR_FAULTS)

_MAX_BEHIND_S = 2.0
_BABBLE_FACTOR = 40
_STATES = {"valve": ("open", "closed"), "motor": ("running", "stopped")}
_SAMPLED: dict[str, tuple[str, str, Callable[[Pump], float]]] = {
    "temperature": ("degC", "winding temperature of the motor", lambda pump: pump.winding_degc),
    "bearing_temperature": ("degC", "temperature of the bearing", lambda pump: pump.bearing_degc),
    "current": ("A", "motor current, one phase", lambda pump: pump.current_a),
    "power": ("kW", "electrical power", lambda pump: pump.power_kw),
    "flow": ("l/min", "delivered flow", lambda pump: pump.flow_lpm),
    "pressure": ("bar", "pressure at the outlet", lambda pump: pump.pressure_bar),
    "speed": ("rpm", "shaft speed", lambda pump: pump.speed_rpm),
}
_NOISE = {"degC": 0.05, "A": 0.02, "kW": 0.01, "l/min": 0.3, "bar": 0.01, "rpm": 0.8}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the gateway file. `block` is in samples; `panel` is the path of the plant's panel."""

    pumps: tuple[str, ...] = ("pump",)
    rate_hz: float = 1600.0
    line_hz: float = 50.0
    block: int = 128
    seed: int = 1
    noise: float = 0.35
    ambient_degc: float = 22.0
    panel: str | None = None
    faults: dict[str, float] = {}


class SimulatedAdapter:
    """Pumps that stream vibration and answer for the rest; `PlatformAdapter` with every capability but hot-plug."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        self._live = isinstance(clock, SystemClock)
        settings = PlantSettings(options.rate_hz, options.line_hz, options.ambient_degc, options.noise)
        self._pumps = {pump: Pump(settings, options.seed + 1000 * index) for index, pump in enumerate(options.pumps)}
        self._rng = np.random.default_rng([options.seed, 99])
        self._panel = Panel(Path(options.panel) if options.panel else None)
        self._sensor_faults = dict.fromkeys(SENSOR_FAULTS, 0.0)
        self._open = False
        self._streaming = False
        self._origin_ns = 0
        self._blocks = 0
        self._stuck: dict[str, Any] = {}
        self._counters = {"blocks": 0, "blocks_skipped": 0, "commands": 0}
        for fault, severity in options.faults.items():
            self.inject(fault, severity)

    async def open(self) -> None:
        self._open = True
        self._origin_ns, self._blocks = self._clock.monotonic_ns(), 0
        self._read_panel(settle=True)
        self._check_link()

    async def close(self) -> None:
        self._open = False

    def channels(self) -> Sequence[ChannelInfo]:
        infos = []
        for pump in self._pumps:
            rate_hz = self._options.rate_hz
            infos.append(ChannelInfo(f"{pump}/vibration", ChannelKind.STREAMING, "m/s2", rate_hz, description="bearing housing, radial"))
            for channel, (unit, description, _) in _SAMPLED.items():
                infos.append(ChannelInfo(f"{pump}/{channel}", ChannelKind.SAMPLED, unit, description=description))
            for channel, states in _STATES.items():
                infos.append(ChannelInfo(f"{pump}/{channel}", ChannelKind.ACTUATOR, states=states))
        return infos

    def health(self) -> Health:
        faults = [fault for fault, severity in self._sensor_faults.items() if severity]
        return Health(self._open and not faults, ", ".join(faults) or "simulated plant", dict(self._counters))

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        self._check_link()
        self._catch_up()
        return [self._sample(channel) for channel in channels]

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        wanted = [self._split(channel, {"vibration"}) for channel in channels]
        names = {pump for pump, _ in wanted}
        self._check_link()
        self._streaming = True
        try:
            while True:
                await self._pace()
                self._check_link()
                self._read_panel()
                self._skip_if_behind()
                self._step(names, sink)
        finally:
            self._streaming = False

    async def actuate(self, channel: str, state: str) -> None:
        pump, actuator = self._split(channel, _STATES)
        if state not in _STATES[actuator]:
            raise AdapterError(f"{self.name}: {channel} has the states {', '.join(_STATES[actuator])}; got `{state}`")
        self._check_link()
        self._catch_up()
        self._pumps[pump].command(actuator, state)
        self._counters["commands"] += 1
        self._panel.write_actuators({f"{p}/{a}": s for p, model in self._pumps.items() for a, s in model.commands.items()})

    async def actuator_state(self, channel: str) -> str | None:
        pump, actuator = self._split(channel, _STATES)
        return self._pumps[pump].commands[actuator]

    def inject(self, fault: str, severity: float) -> None:
        """Starts or ends a fault: `outer_race` for every pump, `pump2.outer_race` for one; severity 0 ends it."""
        pump, _, kind = fault.rpartition(".")
        if kind not in FAULTS or (pump and pump not in self._pumps):
            near = get_close_matches(kind, FAULTS, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: unknown fault `{fault}`{hint} (known: {', '.join(FAULTS)})")
        if not 0 <= severity <= 1:
            raise InputError(f"{self.name}: severity of `{fault}`: expected a number in 0..1, got {severity!r}")
        if kind in self._sensor_faults:
            self._sensor_faults[kind] = severity
            return
        for model in [self._pumps[pump]] if pump else self._pumps.values():
            model.faults[kind] = severity

    # -- time -------------------------------------------------------------------------------------------------------------

    def _block_ns(self) -> int:
        return round(self._options.block / self._options.rate_hz * 1e9)

    def _due_ns(self) -> int:
        """When the block under way is complete."""
        return self._origin_ns + (self._blocks + 1) * self._block_ns()

    async def _pace(self) -> None:
        """Waits for the block to be complete; a virtual clock is only looked at, once a turn of the loop."""
        while (wait_ns := self._due_ns() - self._clock.monotonic_ns()) > 0:  # noqa: ASYNC110 - pacing, not polling
            await asyncio.sleep(wait_ns * 1e-9 if self._live else 0)
        if not self._live:
            await asyncio.sleep(0)

    def _skip_if_behind(self) -> None:
        """After a stall of the process the plant has gone on: blocks nobody took are lost and counted, never sent as a burst."""
        behind = (self._clock.monotonic_ns() - self._due_ns()) // self._block_ns()
        if self._live and behind * self._block_ns() > _MAX_BEHIND_S * 1e9:
            self._counters["blocks_skipped"] += behind
            for model in self._pumps.values():
                model.advance(self._options.block * behind, vibration=False)
            self._blocks += behind

    def _catch_up(self) -> None:
        """Moves the plant on for sampled channels when nobody streams."""
        while not self._streaming and self._due_ns() <= self._clock.monotonic_ns():
            behind = (self._clock.monotonic_ns() - self._due_ns()) // self._block_ns() + 1
            steps = max(1, min(behind, round(self._options.rate_hz / self._options.block)))
            for model in self._pumps.values():
                model.advance(self._options.block * steps, vibration=False)
            self._blocks += steps
            self._read_panel()

    # -- samples ----------------------------------------------------------------------------------------------------------

    def _step(self, wanted: set[str], sink: SampleSink) -> None:
        self._blocks += 1
        for pump, model in self._pumps.items():
            block = model.advance(self._options.block, vibration=pump in wanted)
            if pump not in wanted or self._sensor_faults["sensor_dropout"]:
                continue
            channel = f"{pump}/vibration"
            if self._sensor_faults["sensor_stuck"]:
                block = np.full_like(block, self._stuck.setdefault(channel, block[0]))
            else:
                self._stuck.pop(channel, None)
            if self._sensor_faults["sensor_nan"]:
                block[0] = np.nan
            for _ in range(_BABBLE_FACTOR if self._sensor_faults["babble"] else 1):
                self._counters["blocks"] += 1
                sink(Sample(channel, block=block, rate_hz=self._options.rate_hz))

    def _sample(self, channel: str) -> Sample:
        pump, quantity = self._split(channel, _SAMPLED)
        unit, _, measure = _SAMPLED[quantity]
        if self._sensor_faults["sensor_dropout"]:
            return Sample(channel, quality=Quality.BAD)
        if self._sensor_faults["sensor_nan"]:
            return Sample(channel, math.nan)
        value = measure(self._pumps[pump]) + _NOISE[unit] * float(self._rng.standard_normal())
        if self._sensor_faults["sensor_stuck"]:
            value = self._stuck.setdefault(channel, value)
        else:
            self._stuck.pop(channel, None)
        return Sample(channel, value)

    # -- links ------------------------------------------------------------------------------------------------------------

    def _check_link(self) -> None:
        if not self._open:
            raise AdapterDisconnected(f"{self.name}: not open")
        if self._sensor_faults["disconnect"]:
            self._read_panel()
            if self._sensor_faults["disconnect"]:
                raise AdapterDisconnected(f"{self.name}: the simulated cable is out")

    def _read_panel(self, *, settle: bool = False) -> None:
        panel = self._panel.changed()
        if panel is None:
            return
        for fault in FAULTS:
            self.inject(fault, 0.0)
        for fault, severity in _entries(panel, "faults"):
            self._counters["panel_errors"] = self._counters.get("panel_errors", 0) + self._refused(fault, severity)
        for channel, state in _entries(panel, "actuators"):
            pump, _, actuator = channel.partition("/")
            if pump in self._pumps and state in _STATES.get(actuator, ()):
                self._pumps[pump].command(actuator, state)
                if settle:
                    self._pumps[pump].settle()

    def _refused(self, fault: str, severity: Any) -> bool:
        try:
            self.inject(fault, float(severity))
        except (InputError, TypeError, ValueError):
            return True
        return False

    def _split(self, channel: str, known: Mapping[str, Any] | set[str]) -> tuple[str, str]:
        pump, _, quantity = channel.partition("/")
        if pump in self._pumps and quantity in known:
            return pump, quantity
        choices = [info.channel for info in self.channels()]
        near = get_close_matches(channel, choices, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise InputError(f"{self.name}: no such channel `{channel}` here{hint} (known: {', '.join(choices)})")


def _entries(panel: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    entries = panel.get(section)
    return list(entries.items()) if isinstance(entries, dict) else []


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> SimulatedAdapter:
    """The factory behind the driver `simulated`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if not decoded.pumps or any("/" in pump or "." in pump or not pump for pump in decoded.pumps):
        raise InputError(f"{name}.options.pumps: expected one or more names without `/` and `.`, got {list(decoded.pumps)}")
    if len(set(decoded.pumps)) < len(decoded.pumps):
        raise InputError(f"{name}.options.pumps: expected every name once, got {list(decoded.pumps)}")
    if not 100 <= decoded.rate_hz <= 100_000 or not 1 <= decoded.block <= 65_536:
        raise InputError(
            f"{name}.options: expected rate_hz in 100..100000 and block in 1..65536, got {decoded.rate_hz:g} and {decoded.block}"
        )
    for option, low, high in (("seed", 0, math.inf), ("line_hz", 1, 1000), ("noise", 0, 1000), ("ambient_degc", -100, 200)):
        if not low <= (value := getattr(decoded, option)) <= high:
            raise InputError(f"{name}.options.{option}: expected a number in {low}..{high}, got {value:g}")
    return SimulatedAdapter(name, decoded, clock)
