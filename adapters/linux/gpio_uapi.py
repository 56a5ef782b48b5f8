"""Lines of a GPIO character device through the kernel's own interface, version 2 (include/uapi/linux/gpio.h, Linux 5.10).

No library is needed. Layouts and numbers are the kernel's; what a line is for is the business of `lines`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from enum import IntFlag
from typing import Any, NamedTuple

from edge_runtime.errors import AdapterDisconnected, AdapterError

NAME_BYTES = 32
EVENT_BUFFER = 256

Ioctl = Callable[[int, int, Any], int]
"""`fcntl.ioctl`, or a stand-in for the kernel behind it."""


class Flag(IntFlag):
    """What a line is and how it is asked for (enum gpio_v2_line_flag)."""

    USED = 1 << 0
    ACTIVE_LOW = 1 << 1
    INPUT = 1 << 2
    OUTPUT = 1 << 3
    EDGE_RISING = 1 << 4
    EDGE_FALLING = 1 << 5
    OPEN_DRAIN = 1 << 6
    OPEN_SOURCE = 1 << 7
    BIAS_PULL_UP = 1 << 8
    BIAS_PULL_DOWN = 1 << 9
    BIAS_DISABLED = 1 << 10


ATTRIBUTE_OUTPUT_VALUES, ATTRIBUTE_DEBOUNCE = 2, 3
EVENT_RISING = 1


class ChipInfo(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * NAME_BYTES), ("label", ctypes.c_char * NAME_BYTES), ("lines", ctypes.c_uint32)]


class LineValues(ctypes.Structure):
    _fields_ = [("bits", ctypes.c_uint64), ("mask", ctypes.c_uint64)]


class LineAttribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("padding", ctypes.c_uint32), ("value", ctypes.c_uint64)]


class ConfigAttribute(ctypes.Structure):
    _fields_ = [("attribute", LineAttribute), ("mask", ctypes.c_uint64)]


class LineConfig(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("padding", ctypes.c_uint32 * 5),
        ("attributes", ConfigAttribute * 10),
    ]


class LineRequest(ctypes.Structure):
    _fields_ = [
        ("offsets", ctypes.c_uint32 * 64),
        ("consumer", ctypes.c_char * NAME_BYTES),
        ("config", LineConfig),
        ("lines", ctypes.c_uint32),
        ("event_buffer_size", ctypes.c_uint32),
        ("padding", ctypes.c_uint32 * 5),
        ("fd", ctypes.c_int32),
    ]


class LineInfo(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * NAME_BYTES),
        ("consumer", ctypes.c_char * NAME_BYTES),
        ("offset", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("attributes", LineAttribute * 10),
        ("padding", ctypes.c_uint32 * 4),
    ]


class LineEvent(ctypes.Structure):
    _fields_ = [
        ("timestamp_ns", ctypes.c_uint64),
        ("id", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("seqno", ctypes.c_uint32),
        ("line_seqno", ctypes.c_uint32),
        ("padding", ctypes.c_uint32 * 6),
    ]


_READ, _BOTH = 2, 3


def _number(direction: int, number: int, kind: type[ctypes.Structure]) -> int:
    return direction << 30 | ctypes.sizeof(kind) << 16 | 0xB4 << 8 | number


GET_CHIPINFO = _number(_READ, 0x01, ChipInfo)
GET_LINEINFO = _number(_BOTH, 0x05, LineInfo)
GET_LINE = _number(_BOTH, 0x07, LineRequest)
SET_CONFIG = _number(_BOTH, 0x0D, LineConfig)
GET_VALUES = _number(_BOTH, 0x0E, LineValues)
SET_VALUES = _number(_BOTH, 0x0F, LineValues)


class Chip(NamedTuple):
    """What a chip says of itself."""

    path: str
    name: str
    label: str
    lines: int


class LineState(NamedTuple):
    """What the kernel says of one line; `consumer` is who holds it."""

    name: str
    consumer: str
    flags: Flag


class Edge(NamedTuple):
    """A change of level. `at_ns` is the kernel's CLOCK_MONOTONIC; `number` rises by one per change, so that a gap tells of lost ones."""

    rising: bool
    at_ns: int
    number: int


def chip_info(path: str, ioctl: Ioctl = fcntl.ioctl) -> Chip:
    """Raises OSError where there is no such chip or it may not be opened."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = ChipInfo()
        ioctl(descriptor, GET_CHIPINFO, info)
        return Chip(path, _text(info.name), _text(info.label), info.lines)
    finally:
        os.close(descriptor)


def line_state(path: str, offset: int, ioctl: Ioctl = fcntl.ioctl) -> LineState:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = LineInfo(offset=offset)
        ioctl(descriptor, GET_LINEINFO, info)
        return LineState(_text(info.name), _text(info.consumer), Flag(info.flags & 0x7FF))
    finally:
        os.close(descriptor)


class Line:
    """One line, held until `close`. It is taken as it is: nothing moves before `configure`."""

    def __init__(self, path: str, offset: int, consumer: str, ioctl: Ioctl = fcntl.ioctl) -> None:
        """Raises OSError: EBUSY when another holds it, EINVAL when the chip has no such line."""
        self._ioctl = ioctl
        self._consumer = consumer
        request = LineRequest(consumer=consumer.encode()[: NAME_BYTES - 1], lines=1, event_buffer_size=EVENT_BUFFER)
        request.offsets[0] = offset
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(descriptor, GET_LINE, request)
        finally:
            os.close(descriptor)
        self.fd = int(request.fd)
        os.set_blocking(self.fd, False)

    def configure(self, flags: Flag, *, level: bool = False, debounce_us: int = 0) -> None:
        """Gives the line its direction, bias and edges; an output goes to `level` in the same step. Raises OSError."""
        config = LineConfig(flags=flags)
        if flags & Flag.OUTPUT:
            _add(config, ATTRIBUTE_OUTPUT_VALUES, int(level))
        if debounce_us:
            _add(config, ATTRIBUTE_DEBOUNCE, debounce_us)
        self._ioctl(self.fd, SET_CONFIG, config)

    def get(self) -> bool:
        """Raises AdapterDisconnected when the chip is gone."""
        values = LineValues(mask=1)
        self._call(GET_VALUES, values)
        return bool(values.bits & 1)

    def set(self, level: bool) -> None:
        """Raises AdapterDisconnected when the chip is gone, AdapterError when the line refuses."""
        self._call(SET_VALUES, LineValues(bits=int(level), mask=1))

    def edges(self) -> list[Edge]:
        """The changes that wait, oldest first; none is fine. Raises AdapterDisconnected when the chip is gone."""
        size = ctypes.sizeof(LineEvent)
        try:
            data = os.read(self.fd, 16 * size)
        except BlockingIOError:
            return []
        except OSError as err:
            raise AdapterDisconnected(f"{self._consumer}: the GPIO chip is gone: {err.strerror}") from err
        if len(data) < size:
            raise AdapterDisconnected(f"{self._consumer}: the GPIO chip is gone")
        events = [LineEvent.from_buffer_copy(data, at) for at in range(0, len(data) - size + 1, size)]
        return [Edge(event.id == EVENT_RISING, event.timestamp_ns, event.line_seqno) for event in events]

    def close(self) -> None:
        """Gives the line back; twice is fine. What an output does then is the chip's business."""
        descriptor, self.fd = self.fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _call(self, number: int, values: LineValues) -> None:
        try:
            self._ioctl(self.fd, number, values)
        except OSError as err:
            kind = AdapterDisconnected if err.errno in (errno.ENODEV, errno.EBADF) else AdapterError
            raise kind(f"{self._consumer}: the line does not answer: {err.strerror}") from err


def _add(config: LineConfig, attribute: int, value: int) -> None:
    config.attributes[config.count] = ConfigAttribute(LineAttribute(attribute, 0, value), 1)
    config.count += 1


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
