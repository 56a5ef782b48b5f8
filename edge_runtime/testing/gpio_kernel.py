"""GPIO chips as the kernel would show them, for machines without one: answers the ioctls of the character device, version 2.

Give `GpioKernel(...).ioctl` to whoever would call `fcntl.ioctl`, and an empty file as the device. It refuses what the kernel refuses:
a line that is held, a flag that contradicts another, a value set on an input. Edges come when a test moves a level; a line that bounces
moves by itself as soon as its edges are watched. It holds no file open: what a reader closes is gone.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ACTIVE_LOW, _INPUT, _OUTPUT, _RISING, _FALLING = 2, 4, 8, 16, 32
_BIASES = (1 << 8, 1 << 9, 1 << 10)


@dataclass
class ChipModel:
    """One chip: its label and the names of its lines. `held` maps offsets to consumers other than us, `bounces` to a number of changes."""

    label: str
    names: dict[int, str]
    count: int
    held: dict[int, str] = field(default_factory=dict)
    bounces: dict[int, int] = field(default_factory=dict)


@dataclass
class _Pin:
    queue: Path
    level: bool = False
    flags: int = _INPUT
    debounce_us: int = 0
    consumer: str = ""
    fd: int = -1
    seqno: int = 0

    @property
    def taken(self) -> bool:
        """Whether its descriptor is still open."""
        return self.fd >= 0 and _target(self.fd) == str(self.queue)


class GpioKernel:
    """The chips of one machine, by the path of their device files, which are made."""

    def __init__(self, chips: dict[Path, ChipModel]) -> None:
        self._chips = {str(path): model for path, model in chips.items()}
        self._pins: dict[tuple[str, int], _Pin] = {}
        for path in chips:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def level(self, path: Path, offset: int) -> bool:
        """The physical level of a line."""
        return self._pin(str(path), offset).level

    def flags(self, path: Path, offset: int) -> int:
        """The flags by which the line was last configured."""
        return self._pin(str(path), offset).flags

    def debounce_us(self, path: Path, offset: int) -> int:
        """The debounce period that was asked for."""
        return self._pin(str(path), offset).debounce_us

    def drive(self, path: Path, offset: int, level: bool) -> None:
        """Moves an input from outside; whoever asked for that edge has an event."""
        self._edge(self._pin(str(path), offset), level)

    def unplug(self, path: Path) -> None:
        """Takes a chip away: readers wake and find no event, every call fails."""
        for (chip, _), pin in self._pins.items():
            if chip == str(path) and pin.taken:
                _put(pin.queue, b"\0")
        del self._chips[str(path)]
        path.unlink()

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """As ioctl(2); `argument` is a ctypes structure. Raises OSError as the kernel would."""
        data, number = memoryview(argument).cast("B"), request & 0xFF
        if number in (0x01, 0x05, 0x07):
            path = _target(fd)
            if path not in self._chips:
                raise _error(errno.ENODEV)
            {0x01: self._chip_info, 0x05: self._line_info, 0x07: self._line}[number](path, data)
            return 0
        held = [(chip, offset, pin) for (chip, offset), pin in self._pins.items() if pin.fd == fd and pin.taken]
        if not held or held[0][0] not in self._chips:
            raise _error(errno.ENODEV)
        ((chip, offset, pin),) = held
        {0x0D: self._configure, 0x0E: self._get, 0x0F: self._set}[number](pin, data)
        if number == 0x0D and pin.flags & (_RISING | _FALLING):
            for _ in range(self._chips[chip].bounces.get(offset, 0)):
                self._edge(pin, not pin.level)
        return 0

    # -- chip ---------------------------------------------------------------------------------------------------------------

    def _chip_info(self, path: str, data: memoryview) -> None:
        model = self._chips[path]
        data[:] = struct.pack("32s32sI", Path(path).name.encode(), model.label.encode(), model.count)

    def _line_info(self, path: str, data: memoryview) -> None:
        (offset,) = struct.unpack_from("I", data, 64)
        model, pin = self._chips[path], self._checked(path, offset)
        held = model.held.get(offset) or (pin.consumer if pin.taken else "")
        flags = pin.flags | 1 if held else pin.flags & (_INPUT | _OUTPUT)
        struct.pack_into("32s32sIIQ", data, 0, model.names.get(offset, "").encode(), held.encode(), offset, 0, flags)

    def _line(self, path: str, data: memoryview) -> None:
        (offset,), (lines,) = struct.unpack_from("I", data, 0), struct.unpack_from("I", data, 560)
        pin = self._checked(path, offset)
        if lines != 1:
            raise _error(errno.EINVAL)
        if offset in self._chips[path].held or pin.taken:
            raise _error(errno.EBUSY)
        pin.consumer = bytes(data[256:288]).split(b"\0")[0].decode()
        (flags,) = struct.unpack_from("Q", data, 288)
        pin.queue.unlink(missing_ok=True)
        os.mkfifo(pin.queue)
        pin.fd, pin.seqno = os.open(pin.queue, os.O_RDWR | os.O_CLOEXEC), 0
        if flags:
            self._configure(pin, data[288:560])
        else:
            pin.flags &= _INPUT | _OUTPUT
        struct.pack_into("i", data, 588, pin.fd)

    # -- line ---------------------------------------------------------------------------------------------------------------

    def _configure(self, pin: _Pin, data: memoryview) -> None:
        flags, count = struct.unpack_from("QI", data)
        both = bool(flags & _INPUT) and bool(flags & _OUTPUT)
        edges_need_input = bool(flags & (_RISING | _FALLING)) and not flags & _INPUT
        biases = sum(bool(flags & bias) for bias in _BIASES)
        if both or edges_need_input or biases > 1 or (biases and not flags & (_INPUT | _OUTPUT)):
            raise _error(errno.EINVAL)
        pin.flags, pin.debounce_us = flags, 0
        for index in range(count):
            kind, _, value, mask = struct.unpack_from("IIQQ", data, 32 + 24 * index)
            if kind == 2 and mask & 1:
                pin.level = bool(value & 1) ^ bool(flags & _ACTIVE_LOW)
            elif kind == 3 and flags & _INPUT:
                pin.debounce_us = value & 0xFFFFFFFF
            else:
                raise _error(errno.EINVAL)

    def _get(self, pin: _Pin, data: memoryview) -> None:
        struct.pack_into("Q", data, 0, pin.level ^ bool(pin.flags & _ACTIVE_LOW))

    def _set(self, pin: _Pin, data: memoryview) -> None:
        if not pin.flags & _OUTPUT:
            raise _error(errno.EPERM)
        (bits,) = struct.unpack_from("Q", data)
        pin.level = bool(bits & 1) ^ bool(pin.flags & _ACTIVE_LOW)

    def _edge(self, pin: _Pin, level: bool) -> None:
        if level == pin.level:
            return
        pin.level = level
        active = level ^ bool(pin.flags & _ACTIVE_LOW)
        if pin.taken and pin.flags & (_RISING if active else _FALLING):
            pin.seqno += 1
            _put(pin.queue, struct.pack("QIIII24x", time.monotonic_ns(), 1 if active else 2, 0, pin.seqno, pin.seqno))

    # -- steps --------------------------------------------------------------------------------------------------------------

    def _pin(self, path: str, offset: int) -> _Pin:
        return self._pins.setdefault((path, offset), _Pin(Path(f"{path}.line{offset}")))

    def _checked(self, path: str, offset: int) -> _Pin:
        if not 0 <= offset < self._chips[path].count:
            raise _error(errno.EINVAL)
        return self._pin(path, offset)


def _put(queue: Path, record: bytes) -> None:
    descriptor = os.open(queue, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, record)
    finally:
        os.close(descriptor)


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as text, to be compared
    except OSError:
        return ""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
