"""Capture from an IIO device's buffer: several channels at the device's own rate, as blocks (Documentation/iio/iio_devbuf.rst).

The kernel fills records when a trigger fires: the sensor's own interrupt, a timer (`hrtimer:NAME`, made where configfs allows it) or any
other trigger by name. This module sets the buffer up and cuts what it gives into blocks; what a record holds is read by `records`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from adapters.linux.iio import Device, attribute_paths, devices, kind_of, shared_number
from adapters.linux.probe import folders, read_attribute, read_number
from adapters.linux.records import Element, Records, parse_element
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.types import ChannelInfo, ChannelKind, Sample

MOST_CHANNELS = 64
MOST_BLOCK = 65_536
READ_BYTES = 65_536
LONGEST_GAP = 1.5
"""Periods between two records above which something was lost in between."""
RATE_TOLERANCE = 0.05

_TRIGGERS = "sys/bus/iio/devices"
_HRTIMERS = "sys/kernel/config/iio/triggers/hrtimer"
_TIME = "timestamp"


class BufferSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device's buffer. Without `channels` all that can be captured; without `trigger` the one that is set, if any."""

    device: str
    rate_hz: float
    channels: tuple[str, ...] = ()
    block: int = 256
    trigger: str | None = None


def check_buffers(buffers: Mapping[str, BufferSpec], name: str) -> None:
    """Raises InputError for what cannot be, before any hardware is touched."""
    for key, spec in buffers.items():
        where = f"{name}.options.buffers.{key}"
        if not 0 < spec.rate_hz <= 10e6:
            raise InputError(f"{where}.rate_hz: expected a number above 0 and up to 10 MHz, got {spec.rate_hz:g}")
        if not 1 <= spec.block <= MOST_BLOCK:
            raise InputError(f"{where}.block: expected 1 to {MOST_BLOCK} samples, got {spec.block}")
        if len(spec.channels) > MOST_CHANNELS:
            raise InputError(f"{where}.channels: expected at most {MOST_CHANNELS}, got {len(spec.channels)}")
        if spec.trigger is not None and not re.fullmatch(r"(hrtimer:)?[\w.-]{1,64}", spec.trigger):
            raise InputError(f"{where}.trigger: expected a trigger's name or `hrtimer:NAME`, got `{spec.trigger}`")


def check_rate(name: str, asked_hz: float, real_hz: float, choices: str) -> None:
    """Raises AdapterError when the device's rate is not what was asked for, with what it can have."""
    if abs(real_hz - asked_hz) > RATE_TOLERANCE * asked_hz:
        remedy = f" (the device has: {choices[:400]})" if choices else "; name a rate that the device has"
        raise AdapterError(f"{name}: asked for {asked_hz:g} Hz, got {real_hz:g} Hz{remedy}")


class Capture:
    """The feed of one buffer: found and set up when made, running between `start` and `stop`, for one stream at a time."""

    def __init__(self, root: str, name: str, spec: BufferSpec, counters: dict[str, int]) -> None:
        """Blocks. Raises AdapterDisconnected when the device is not here, AdapterError for what cannot be set up."""
        self._root, self._name, self._spec, self._counters = root, f"buffer {name}", spec, counters
        self._fd = -1
        self._device = self._find()
        self._elements = self._choose()
        self._rate_hz = self._set_up()
        self._scales = {stem: self._scale(stem) for stem in self._elements}
        self._wanted: dict[str, str] = {}
        self._records = Records(list(self._elements.values()))
        self._waiting = b""
        self._last_ns: int | None = None

    def channels(self) -> list[ChannelInfo]:
        """`iio/<device>/<channel>`, streaming."""
        return [
            ChannelInfo(
                self._channel(stem),
                ChannelKind.STREAMING,
                kind_of(stem).unit,
                rate_hz=self._rate_hz,
                description=f"{kind_of(stem).words}, {self._device.name} {stem}, captured",
            )
            for stem in self._elements
            if stem != _TIME
        ]

    def start(self, channels: Collection[str]) -> tuple[int, list[Sample]]:
        """Raises AdapterError when the kernel refuses, AdapterDisconnected when the device went."""
        self.stop()
        self._wanted = {self._channel(stem): stem for stem in self._elements if self._channel(stem) in channels}
        enabled = {*self._wanted.values(), _TIME} & set(self._elements)
        for stem in _scanned(self._device.path):
            self._write(f"{self._device.path}/scan_elements/in_{stem}_en", str(int(stem in enabled)))
        self._records = Records([self._elements[stem] for stem in enabled])
        self._waiting, self._last_ns = b"", None
        self._write(f"{self._device.path}/buffer/length", str(max(2, 4 * self._spec.block)))
        with suppress(AdapterError):  # not every buffer can be told when to wake its reader
            self._write(f"{self._device.path}/buffer/watermark", str(self._spec.block))
        self._fd = self._open_node()
        self._write(f"{self._device.path}/buffer/enable", "1")
        return self._fd, []

    def take(self) -> list[Sample]:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as err:
            raise AdapterDisconnected(f"{self._name}: {self._device.name} is gone: {err.strerror}") from err
        if not data:
            raise AdapterDisconnected(f"{self._name}: {self._device.name} is gone")
        self._waiting += data
        samples: list[Sample] = []
        while len(self._waiting) >= self._spec.block * self._records.size_bytes:
            samples += self._block()
        return samples

    def stop(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            with suppress(AdapterError):
                self._write(f"{self._device.path}/buffer/enable", "0")
            os.close(descriptor)

    # -- blocks -------------------------------------------------------------------------------------------------------------

    def _block(self) -> list[Sample]:
        """The next block, or the part of it before a gap, so that a block is always evenly spaced."""
        size = self._records.size_bytes
        columns = self._records.columns(self._waiting[: self._spec.block * size])
        times = columns.get(_TIME)
        count = self._spec.block if times is None else self._until_gap(times)
        self._waiting = self._waiting[count * size :]
        wall_ns = None if times is None else max(0, int(times[0]))
        return [
            Sample(channel, block=self._scaled(stem, columns[stem][:count]), rate_hz=self._rate_hz, wall_ns=wall_ns)
            for channel, stem in self._wanted.items()
        ]

    def _until_gap(self, times: npt.NDArray[np.int64]) -> int:
        period_ns = 1e9 / self._rate_hz
        steps = np.diff(times.astype(np.float64))
        gaps = np.flatnonzero((steps > LONGEST_GAP * period_ns) | (steps <= 0))
        count = int(gaps[0]) + 1 if len(gaps) else len(times)
        between = 0.0 if self._last_ns is None else int(times[0]) - self._last_ns
        if len(gaps) or between > LONGEST_GAP * period_ns:
            self._counters["captures_interrupted"] = self._counters.get("captures_interrupted", 0) + 1
        self._last_ns = None if len(gaps) else int(times[-1])
        return count

    def _scaled(self, stem: str, column: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        offset, scale = self._scales[stem]
        with np.errstate(over="ignore"):
            return ((column + offset) * scale).astype(np.float32)

    # -- setting up ---------------------------------------------------------------------------------------------------------

    def _channel(self, stem: str) -> str:
        return f"iio/{self._device.name}/{stem}"

    def _scale(self, stem: str) -> tuple[float, float]:
        scale = shared_number(self._device.path, stem, "scale", 1.0) * kind_of(stem).factor
        return shared_number(self._device.path, stem, "offset", 0.0), scale

    def _find(self) -> Device:
        found = devices(self._root)
        for device in found:
            if self._spec.device in (device.name, device.node):
                return device
        raise AdapterDisconnected(
            f"{self._name}: no IIO device `{self._spec.device}` here (found: {', '.join(device.name for device in found) or 'none'})"
        )

    def _choose(self) -> dict[str, Element]:
        folder = f"{self._device.path}/scan_elements"
        possible = _scanned(self._device.path)
        wanted = self._spec.channels or tuple(stem for stem in possible if stem != _TIME)
        missing = [stem for stem in wanted if stem not in possible]
        if missing or not wanted:
            asked, known = ", ".join(missing) or "anything", ", ".join(possible) or "nothing"
            raise AdapterError(f"{self._name}: {self._device.name} cannot capture {asked} (it can: {known})")
        elements = {}
        for stem in [*wanted, *([_TIME] if _TIME in possible else [])]:
            try:
                index, kind = read_attribute(f"{folder}/in_{stem}_index"), read_attribute(f"{folder}/in_{stem}_type")
            except OSError as err:
                raise AdapterError(f"{self._name}: {stem} of {self._device.name} cannot be captured: {err.strerror}") from err
            elements[stem] = parse_element(stem, index, kind)
        return elements

    def _set_up(self) -> float:
        """Trigger and rate; gives the rate that the device really has."""
        trigger = self._trigger()
        if trigger is not None:
            self._write(f"{self._device.path}/trigger/current_trigger", trigger[1])
        with suppress(OSError, AdapterError):  # the clock can be chosen since Linux 4.8
            if read_attribute(f"{self._device.path}/current_timestamp_clock") != "realtime":
                self._write(f"{self._device.path}/current_timestamp_clock", "realtime")
        places = [path for stem in self._elements for path in attribute_paths(self._device.path, stem, "sampling_frequency")]
        places += [f"{trigger[0]}/sampling_frequency"] if trigger is not None else []
        path = next((path for path in places if read_number(path) is not None), None)
        if path is None:
            return self._spec.rate_hz
        self._write(path, f"{self._spec.rate_hz:g}")
        real = read_number(path) or 0.0
        choices = ""
        with suppress(OSError):
            choices = read_attribute(f"{path}_available")
        check_rate(self._name, self._spec.rate_hz, real, choices)
        return real

    def _trigger(self) -> tuple[str, str] | None:
        """Path and name of the trigger asked for; a timer is made when it is not there."""
        if self._spec.trigger is None:
            return None
        kind, _, name = self._spec.trigger.rpartition(":")
        found = self._triggers()
        if kind and name not in found:
            with suppress(OSError):
                Path(f"{self._root}/{_HRTIMERS}/{name}").mkdir()
            found = self._triggers()
        if name not in found:
            remedy = "; load iio-trig-hrtimer and let this user make folders in configfs, or make it beforehand" if kind else ""
            raise AdapterError(f"{self._name}: no trigger `{name}` here (found: {', '.join(found) or 'none'}){remedy}")
        return found[name], name

    def _triggers(self) -> dict[str, str]:
        found = {}
        for node, path in folders(f"{self._root}/{_TRIGGERS}"):
            if re.fullmatch(r"trigger\d+", node):
                with suppress(OSError):
                    found[read_attribute(f"{path}/name")] = path
        return found

    def _open_node(self) -> int:
        node = f"{self._root}/dev/{self._device.node}"
        try:
            return os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as err:
            raise AdapterDisconnected(f"{self._name}: {node} is gone") from err
        except OSError as err:
            raise AdapterError(f"{self._name}: {node} cannot be opened: {err.strerror}; one program at a time, with read access") from err

    def _write(self, path: str, text: str) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as err:
            remedy = "; give this user write access by a udev rule" if isinstance(err, PermissionError) else ""
            raise AdapterError(f"{self._name}: {path} does not take `{text}`: {err.strerror}{remedy}") from err


def _scanned(device: str) -> list[str]:
    return [match[1] for name, _ in folders(f"{device}/scan_elements") if (match := re.fullmatch(r"in_([A-Za-z0-9_-]+)_en", name))]
