"""I2C and SPI from user space through the kernel's device files (Documentation/i2c/dev-interface.rst, Documentation/spi/spidev.rst)."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.linux.gpio_uapi import Ioctl

SPI_SPEED_HZ = 1_000_000

_I2C_RDWR = 0x0707
_I2C_READ = 1
_SPI_TRANSFER = 0x40206B00


class _I2cMessage(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint16), ("flags", ctypes.c_uint16), ("length", ctypes.c_uint16), ("data", ctypes.c_void_p)]


class _I2cMessages(ctypes.Structure):
    _fields_ = [("messages", ctypes.c_void_p), ("count", ctypes.c_uint32)]


class _SpiTransfer(ctypes.Structure):
    _fields_ = [
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("speed_hz", ctypes.c_uint32),
        ("delay_us", ctypes.c_uint16),
        ("bits_per_word", ctypes.c_uint8),
        ("select_change", ctypes.c_uint8),
        ("reserved", ctypes.c_uint32),
    ]


class I2cDevice:
    """One chip on a bus that is open."""

    def __init__(self, descriptor: int, address: int, ioctl: Ioctl) -> None:
        self._descriptor, self._address, self._ioctl = descriptor, address, ioctl

    def write(self, data: bytes) -> None:
        """Raises OSError when the chip does not answer."""
        self._transfer([(0, ctypes.create_string_buffer(data, len(data)))])

    def read(self, count: int) -> bytes:
        """What the chip says without being asked for a register. Raises OSError when it does not answer."""
        answer = ctypes.create_string_buffer(count)
        self._transfer([(_I2C_READ, answer)])
        return answer.raw

    def register(self, register: int, count: int) -> bytes:
        """`count` bytes from a register on, in one transfer with a repeated start. Raises OSError when the chip does not answer."""
        answer = ctypes.create_string_buffer(count)
        self._transfer([(0, ctypes.create_string_buffer(bytes([register]), 1)), (_I2C_READ, answer)])
        return answer.raw

    def _transfer(self, parts: list[tuple[int, ctypes.Array[ctypes.c_char]]]) -> None:
        messages = (_I2cMessage * len(parts))(
            *(_I2cMessage(self._address, flags, ctypes.sizeof(buffer), ctypes.addressof(buffer)) for flags, buffer in parts)
        )
        self._ioctl(self._descriptor, _I2C_RDWR, _I2cMessages(ctypes.addressof(messages), len(parts)))


class SpiDevice:
    """One chip behind one select line, mode 0."""

    def __init__(self, descriptor: int, ioctl: Ioctl) -> None:
        self._descriptor, self._ioctl = descriptor, ioctl

    def exchange(self, data: bytes) -> bytes:
        """What comes in while `data` goes out. Raises OSError."""
        sent, received = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(len(data))
        transfer = _SpiTransfer(ctypes.addressof(sent), ctypes.addressof(received), len(data), SPI_SPEED_HZ, 0, 8)
        self._ioctl(self._descriptor, _SPI_TRANSFER, transfer)
        return received.raw


@contextmanager
def i2c_device(root: str, bus: int, address: int, ioctl: Ioctl = fcntl.ioctl) -> Iterator[I2cDevice]:
    """Raises OSError when the bus may not be opened."""
    with _opened(f"{root}/dev/i2c-{bus}") as descriptor:
        yield I2cDevice(descriptor, address, ioctl)


@contextmanager
def spi_device(root: str, bus: int, select: int, ioctl: Ioctl = fcntl.ioctl) -> Iterator[SpiDevice]:
    """Raises OSError when the device file may not be opened."""
    with _opened(f"{root}/dev/spidev{bus}.{select}") as descriptor:
        yield SpiDevice(descriptor, ioctl)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
