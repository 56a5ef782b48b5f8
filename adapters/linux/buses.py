"""I2C and SPI from user space through the kernel's device files (Documentation/i2c/dev-interface.rst, Documentation/spi/spidev.rst).

A controller that speaks SMBus only, as on most PCs, is asked in its transfers: registers as blocks of up to 32 bytes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.linux.gpio_uapi import Ioctl

SPI_SPEED_HZ = 1_000_000

_I2C_SLAVE = 0x0703
_I2C_RDWR = 0x0707
_I2C_SMBUS = 0x0720
_I2C_READ = 1
_SMBUS_BYTE, _SMBUS_BYTE_DATA, _SMBUS_I2C_BLOCK = 1, 2, 8
_SMBUS_LONGEST = 32
_SPI_TRANSFER = 0x40206B00


class _I2cMessage(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint16), ("flags", ctypes.c_uint16), ("length", ctypes.c_uint16), ("data", ctypes.c_void_p)]


class _I2cMessages(ctypes.Structure):
    _fields_ = [("messages", ctypes.c_void_p), ("count", ctypes.c_uint32)]


class _SmbusTransfer(ctypes.Structure):
    _fields_ = [("read", ctypes.c_uint8), ("command", ctypes.c_uint8), ("size", ctypes.c_uint32), ("data", ctypes.c_void_p)]


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
    """One chip on a bus that is open. Every call raises OSError when the chip does not answer, or the controller cannot ask like that."""

    def __init__(self, descriptor: int, address: int, ioctl: Ioctl) -> None:
        self._descriptor, self._address, self._ioctl = descriptor, address, ioctl
        self._smbus = False

    def write(self, data: bytes) -> None:
        """As they are, the register first."""
        if not self._transferred([(0, ctypes.create_string_buffer(data, len(data)))]):
            self._smbus_write(data)

    def read(self, count: int) -> bytes:
        """What the chip says without being asked for a register."""
        answer = ctypes.create_string_buffer(count)
        if self._transferred([(_I2C_READ, answer)]):
            return answer.raw
        if count != 1:
            raise OSError(errno.EOPNOTSUPP, "the bus speaks SMBus only, and this chip needs I2C")
        return self._smbus_transfer(_I2C_READ, 0, _SMBUS_BYTE, b"")[:1]

    def register(self, register: int, count: int) -> bytes:
        """`count` bytes from a register on, in one transfer with a repeated start; over SMBus in several, if they are more than 32."""
        answer = ctypes.create_string_buffer(count)
        if self._transferred([(0, ctypes.create_string_buffer(bytes([register]), 1)), (_I2C_READ, answer)]):
            return answer.raw
        parts = [self._smbus_block(register + start, min(_SMBUS_LONGEST, count - start)) for start in range(0, count, _SMBUS_LONGEST)]
        return b"".join(parts)

    def _transferred(self, parts: list[tuple[int, ctypes.Array[ctypes.c_char]]]) -> bool:
        """Whether the controller takes I2C messages; one that does not is not asked again."""
        if self._smbus:
            return False
        messages = (_I2cMessage * len(parts))(
            *(_I2cMessage(self._address, flags, ctypes.sizeof(buffer), ctypes.addressof(buffer)) for flags, buffer in parts)
        )
        try:
            self._ioctl(self._descriptor, _I2C_RDWR, _I2cMessages(ctypes.addressof(messages), len(parts)))
        except OSError as err:
            if err.errno != errno.EOPNOTSUPP:
                raise
            self._smbus = True
            self._ioctl(self._descriptor, _I2C_SLAVE, self._address)
            return False
        return True

    def _smbus_block(self, register: int, count: int) -> bytes:
        told = self._smbus_transfer(_I2C_READ, register, _SMBUS_I2C_BLOCK, bytes([count]))
        if told[0] != count:
            raise OSError(errno.EIO, f"expected {count} bytes of register {register:#x}, got {told[0]}")
        return told[1 : 1 + count]

    def _smbus_write(self, data: bytes) -> None:
        command, rest = data[0], data[1:]
        if not rest:
            self._smbus_transfer(0, command, _SMBUS_BYTE, b"")
        elif len(rest) == 1:
            self._smbus_transfer(0, command, _SMBUS_BYTE_DATA, rest)
        else:
            self._smbus_transfer(0, command, _SMBUS_I2C_BLOCK, bytes([len(rest)]) + rest)

    def _smbus_transfer(self, read: int, command: int, size: int, data: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(data, _SMBUS_LONGEST + 2)
        self._ioctl(self._descriptor, _I2C_SMBUS, _SmbusTransfer(read, command, size, ctypes.addressof(buffer)))
        return buffer.raw


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
