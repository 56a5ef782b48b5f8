"""The adapter `modbus`: declared registers of the devices on one line as sensors and actuators.

A device that does not answer is left alone for a while, longer each time, so that the others on its line are read on time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from adapters.modbus.bus import Bus, NoAnswer, Refused, check_port
from adapters.modbus.registers import Block, RegisterSpec, decode, decode_text, encode, plan
from adapters.serial_port import Line
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

READ_BUDGET_S = 4.0
"""What one `read` may take, whatever the devices do."""

MAX_DEVICES = 247
MAX_CHANNELS = 2_000
_LOST_AFTER = 3
"""How often in a row every device must have failed before the line is opened again."""


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One device on the line. `id` is its number (unit, slave); `gap` is how many unwanted registers a request may read along."""

    id: int
    registers: dict[str, RegisterSpec]
    timeout_s: float = 1.0
    gap: int = 8
    back_off_s: float = 60.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`port` is a device such as /dev/ttyUSB0 (RTU), `socket://host:port` (RTU over TCP) or `tcp://host:502` (Modbus TCP)."""

    port: str
    devices: dict[str, DeviceSpec]
    baud: int = 9_600
    frame: str = "8N1"
    connect_s: float = 5.0


class Device:
    """What is known of one device: how it is asked, and whether it answers."""

    def __init__(self, name: str, spec: DeviceSpec) -> None:
        self.name = name
        self.spec = spec
        self.failures = 0
        self.rest_until_ns = 0
        self.alone: set[str] = set()
        self.complaints: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def failed(self, why: str, now_ns: int) -> None:
        """Rests for twice as long as before, up to `back_off_s`."""
        self.failures += 1
        rest_s = min(self.spec.back_off_s, self.spec.timeout_s * 2 ** min(self.failures, 20))
        self.rest_until_ns = now_ns + int(rest_s * 1e9)
        self.complaints[""] = why

    def answered(self) -> None:
        self.failures, self.rest_until_ns = 0, 0
        self.complaints.pop("", None)

    def rests(self, now_ns: int) -> bool:
        return now_ns < self.rest_until_ns


class ModbusAdapter:
    """One line, several devices, one request at a time."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        self._bus = Bus(name, Line(port=options.port, baud=options.baud, frame=options.frame))
        self._devices = {device: Device(device, spec) for device, spec in options.devices.items()}
        self._channels = {
            f"{device}/{register}": (self._devices[device], register)
            for device, spec in options.devices.items()
            for register, about in spec.registers.items()
            if about.type != "string"
        }
        self._infos = [_info(channel, device.spec.registers[register]) for channel, (device, register) in self._channels.items()]
        self._skipped = 0

    async def open(self) -> None:
        """Connects and asks every device for something; one that answers is enough."""
        await self._bus.open(self._options.connect_s)
        try:
            for device in self._devices.values():
                device.answered()
            await self._greet()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._bus.close()

    def channels(self) -> Sequence[ChannelInfo]:
        return list(self._infos)

    def health(self) -> Health:
        counters = self._bus.counters | {"skipped": self._skipped}
        if not self._bus.is_open:
            return Health(False, f"{self.name}: not open", counters)
        complaints = [f"{device.name}: {text}" for device in self._devices.values() for text in device.complaints.values()]
        who = [f"{device.name}: {' '.join(device.texts.values())}" for device in self._devices.values() if device.texts]
        detail = "; ".join([f"{len(self._infos)} channels of {len(self._devices)} devices", *complaints[:8], *who[:8]])
        return Health(any(not device.failures for device in self._devices.values()), detail, counters)

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        asked: dict[Device, list[str]] = {}
        for channel in dict.fromkeys(channels):
            device, register = self._require(channel, ChannelKind.SAMPLED)
            asked.setdefault(device, []).append(register)
        values: dict[str, float | None] = {}
        loop = asyncio.get_running_loop()
        end_s = loop.time() + READ_BUDGET_S
        for device in sorted(asked, key=lambda device: device.failures):
            if device.rests(self._clock.monotonic_ns()) or loop.time() + device.spec.timeout_s > end_s:
                self._skipped += 1
                continue
            found = await self._read_device(device, asked[device], end_s)
            values |= {f"{device.name}/{register}": value for register, value in found.items()}
        self._check_line()
        return [_sample(channel, values.get(channel), self._spec(channel)) for channel in channels]

    async def actuate(self, channel: str, state: str) -> None:
        device, register = self._require(channel, ChannelKind.ACTUATOR)
        spec = device.spec.registers[register]
        words = _words(channel, spec, state)
        timeout_s = device.spec.timeout_s
        try:
            await self._bus.write(device.spec.id, spec.table, spec.address, words, timeout_s, multiple=spec.write_multiple)
            back = await self._bus.read(device.spec.id, _block(register, spec), timeout_s) if spec.read_back else words
        except (NoAnswer, Refused) as err:
            raise AdapterError(f"{self.name}: {channel} is not brought to `{state}`: {err}") from err
        if back != words:
            raise AdapterError(f"{self.name}: {channel} took `{state}` ({words}), but reads back {back}; set read_back: false if it may")

    async def actuator_state(self, channel: str) -> str | None:
        device, register = self._require(channel, ChannelKind.ACTUATOR)
        spec = device.spec.registers[register]
        if device.rests(self._clock.monotonic_ns()):
            return None
        try:
            words = await self._bus.read(device.spec.id, _block(register, spec), device.spec.timeout_s)
        except (NoAnswer, Refused):
            return None
        for state, value in spec.all_states.items():
            if encode(spec, value) == words:
                return state
        known = decode(spec, words)
        return None if known is None else f"{known:g}"

    # -- one device ------------------------------------------------------------------------------------------------------------

    async def _greet(self) -> None:
        """Each device is asked once for its texts, or for its first register."""
        for device in self._devices.values():
            registers = device.spec.registers
            texts = [name for name, spec in registers.items() if spec.type == "string"]
            try:
                for name in texts or list(registers)[:1]:
                    words = await self._bus.read(device.spec.id, _block(name, registers[name]), device.spec.timeout_s)
                    if name in texts:
                        device.texts[name] = decode_text(registers[name], words)
            except Refused:
                continue
            except NoAnswer as err:
                device.failed(str(err), self._clock.monotonic_ns())
        if all(device.failures for device in self._devices.values()):
            raise AdapterDisconnected(f"{self.name}: no device answers on {self._options.port}; {self._complaint()}")

    async def _read_device(self, device: Device, registers: Iterable[str], end_s: float) -> dict[str, float | None]:
        """Values by register; those that could not be read are missing."""
        values: dict[str, float | None] = {}
        try:
            for block in plan(device.spec.registers, list(registers), device.spec.gap, device.alone):
                if asyncio.get_running_loop().time() + device.spec.timeout_s > end_s:
                    self._skipped += 1
                    break
                values |= await self._read_block(device, block)
            device.answered()
        except NoAnswer as err:
            device.failed(str(err), self._clock.monotonic_ns())
        return values

    async def _read_block(self, device: Device, block: Block) -> dict[str, float | None]:
        """A block that is refused is read piece by piece from now on: one register that is not there harms only itself."""
        registers = device.spec.registers
        try:
            words = await self._bus.read(device.spec.id, block, device.spec.timeout_s)
        except Refused as err:
            if len(block.names) == 1:
                device.complaints[block.names[0]] = f"{block.names[0]}: {err}"
                return {}
            device.alone.update(block.names)
            values: dict[str, float | None] = {}
            for name in block.names:
                values |= await self._read_block(device, _block(name, registers[name]))
            return values
        for name in block.names:
            device.complaints.pop(name, None)
        return {name: _value(registers[name], block, words) for name in block.names}

    def _spec(self, channel: str) -> RegisterSpec:
        device, register = self._channels[channel]
        return device.spec.registers[register]

    def _check_line(self) -> None:
        if not self._bus.is_open:
            raise AdapterDisconnected(f"{self.name}: not open")
        if all(device.failures >= _LOST_AFTER for device in self._devices.values()):
            raise AdapterDisconnected(f"{self.name}: no device answers on {self._options.port} any more; {self._complaint()}")

    def _complaint(self) -> str:
        return next((device.complaints[""] for device in self._devices.values() if "" in device.complaints), "")

    def _require(self, channel: str, kind: ChannelKind) -> tuple[Device, str]:
        if not self._bus.is_open:
            raise AdapterDisconnected(f"{self.name}: not open")
        known = [info.channel for info in self._infos if info.kind is kind]
        if channel not in known:
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}`{hint} (known: {', '.join(known) or 'none'})")
        return self._channels[channel]


def _info(channel: str, spec: RegisterSpec) -> ChannelInfo:
    kind = ChannelKind.ACTUATOR if spec.access == "write" else ChannelKind.SAMPLED
    states = tuple(spec.all_states) if spec.access == "write" else ()
    where = f"{spec.table} {spec.address}"
    return ChannelInfo(channel, kind, spec.unit, minimum=spec.minimum, maximum=spec.maximum, states=states, description=where)


def _block(name: str, spec: RegisterSpec) -> Block:
    return Block(spec.table, spec.address, spec.size, (name,))


def _value(spec: RegisterSpec, block: Block, words: Sequence[int]) -> float | None:
    at = spec.address - block.address
    value = decode(spec, words[at : at + spec.size])
    return value if value is not None and math.isfinite(value) else None


def _sample(channel: str, value: float | None, spec: RegisterSpec) -> Sample:
    if value is None:
        return Sample(channel, None, quality=Quality.BAD)
    outside = (spec.minimum is not None and value < spec.minimum) or (spec.maximum is not None and value > spec.maximum)
    return Sample(channel, value, quality=Quality.UNCERTAIN if outside else Quality.GOOD)


def _words(channel: str, spec: RegisterSpec, state: str) -> list[int]:
    try:
        return encode(spec, spec.all_states[state] if state in spec.all_states else _number(spec, state))
    except InputError as err:
        raise InputError(f"{channel}: {err}") from err


def _number(spec: RegisterSpec, state: str) -> float:
    """A set point, for a register without states."""
    try:
        if not spec.all_states:
            return float(state)
    except ValueError:
        pass
    raise InputError(f"no such state `{state}` (known: {', '.join(spec.all_states) or 'any number'})")


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> ModbusAdapter:
    """The factory behind the driver `modbus`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    check_port(Line(port=decoded.port, baud=decoded.baud, frame=decoded.frame), name)
    if not decoded.devices or len(decoded.devices) > MAX_DEVICES:
        raise InputError(f"{name}.options.devices: expected 1..{MAX_DEVICES} devices, got {len(decoded.devices)}")
    for device, spec in decoded.devices.items():
        _check_device(f"{name}.options.devices.{device}", spec)
    if sum(len(spec.registers) for spec in decoded.devices.values()) > MAX_CHANNELS:
        raise InputError(f"{name}.options.devices: expected at most {MAX_CHANNELS} registers in all")
    return ModbusAdapter(name, decoded, clock)


def _check_device(where: str, spec: DeviceSpec) -> None:
    if not 0 <= spec.id <= 255:
        raise InputError(f"{where}.id: expected a number in 0..255 (1..247 on a serial line), got {spec.id}")
    if not 0 < spec.timeout_s <= READ_BUDGET_S / 2:
        raise InputError(f"{where}.timeout_s: expected a number above 0 and up to {READ_BUDGET_S / 2:g}, got {spec.timeout_s:g}")
    if not 0 <= spec.gap <= 100 or not spec.back_off_s > 0:
        raise InputError(f"{where}: expected gap in 0..100 and back_off_s above 0, got {spec.gap} and {spec.back_off_s:g}")
    if not spec.registers:
        raise InputError(f"{where}.registers: expected at least one register")
    for name, register in spec.registers.items():
        register.check(f"{where}.registers.{name}")
