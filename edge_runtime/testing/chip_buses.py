"""I2C and SPI buses as the kernel would show them, for machines without one: answers their ioctls from models of chips.

Give `ChipBuses(...).ioctl` to whoever would call `fcntl.ioctl`; the device files are made, empty. An address without a chip does not
answer, as on a wire. The models hold what the chips hold and do not convert anything by themselves.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Any, Protocol

_I2C_SLAVE, _I2C_RDWR, _I2C_SMBUS, _SPI_TRANSFER, _READ = 0x0703, 0x0707, 0x0720, 0x40206B00, 1
_SMBUS_BYTE, _SMBUS_BYTE_DATA, _SMBUS_I2C_BLOCK = 1, 2, 8
_MOST_BYTES = 8192


class I2cModel(Protocol):
    """A chip on I2C."""

    def write(self, data: bytes) -> None: ...

    def read(self, count: int) -> bytes: ...


class SpiModel(Protocol):
    """A chip on SPI."""

    def exchange(self, data: bytes) -> bytes: ...


class RegisterFile:
    """A chip of registers: the first byte written points, what follows is stored, reading goes on from there.

    With `wide`, each register is a word of its own, as in chips that do not count up.
    """

    def __init__(self, registers: dict[int, bytes], *, wide: bool = False) -> None:
        self.registers = dict(registers)
        self._wide = wide
        self._pointer = 0

    def write(self, data: bytes) -> None:
        self._pointer = data[0]
        if self._wide and len(data) > 1:
            self.registers[data[0]] = data[1:]
        else:
            self.registers |= {data[0] + at: bytes([byte]) for at, byte in enumerate(data[1:])}

    def read(self, count: int) -> bytes:
        if self._wide:
            return self.registers.get(self._pointer, b"").ljust(count, b"\0")[:count]
        return b"".join(self.registers.get(self._pointer + at, b"\0") for at in range(count))


class AdsModel(RegisterFile):
    """An ADS1115: a conversion takes no time and gives the voltage at the input that was asked for, in its range."""

    _RANGES = (6.144, 4.096, 2.048, 1.024, 0.512, 0.256, 0.256, 0.256)

    def __init__(self, volts: tuple[float, float, float, float]) -> None:
        super().__init__({0: b"\0\0", 1: b"\x85\x83"}, wide=True)
        self.volts = volts

    def write(self, data: bytes) -> None:
        super().write(data)
        if data[0] == 1 and len(data) == 3 and data[1] & 0xC0 == 0xC0:
            stored = round(self.volts[data[1] >> 4 & 3] / self._RANGES[data[1] >> 1 & 7] * 32768)
            self.registers[0] = struct.pack(">h", max(-32768, min(32767, stored)))


class McpModel:
    """An MCP3008: ten bits of the voltage at each input."""

    def __init__(self, volts: tuple[float, ...], reference_v: float = 3.3) -> None:
        self._stored = [min(1023, int(volt / reference_v * 1024)) for volt in volts]

    def exchange(self, data: bytes) -> bytes:
        value = self._stored[data[1] >> 4 & 7]
        return bytes([0, value >> 8, value & 0xFF])


class ChipBuses:
    """The chips of one machine: on I2C by bus and address, on SPI by bus and select line. `smbus_only`: controllers that take no other."""

    def __init__(
        self,
        root: Path,
        i2c: dict[tuple[int, int], I2cModel],
        spi: dict[tuple[int, int], SpiModel] | None = None,
        *,
        smbus_only: bool = False,
    ) -> None:
        self._smbus_only = smbus_only
        self._slaves: dict[int, int] = {}
        self._i2c = {(str(root / f"dev/i2c-{bus}"), address): chip for (bus, address), chip in i2c.items()}
        self._spi = {str(root / f"dev/spidev{bus}.{select}"): chip for (bus, select), chip in (spi or {}).items()}
        for path in {path for path, _ in self._i2c} | set(self._spi):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()

    def remove(self, bus_path: Path, address: int) -> I2cModel:
        """Takes a chip off its bus; gives it."""
        return self._i2c.pop((str(bus_path), address))

    def add(self, bus_path: Path, address: int, chip: I2cModel) -> None:
        """Wires a chip to a bus."""
        self._i2c[str(bus_path), address] = chip

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """As ioctl(2). Raises OSError as the kernel would."""
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as text, to be compared
        if request == _I2C_SLAVE:
            self._slaves[fd] = int(argument)
            return 0
        data = bytes(memoryview(argument).cast("B"))
        if request == _I2C_SMBUS:
            return self._smbus(self._chip(path, self._slaves[fd]), *struct.unpack_from("@BBxxIQ", data))
        if request == _I2C_RDWR and self._smbus_only:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if request == _I2C_RDWR:
            messages, count = struct.unpack_from("@QI", data)
            for at in range(count):
                self._message(path, ctypes.string_at(messages + 16 * at, 16))
            return int(count)
        if request == _SPI_TRANSFER and path in self._spi:
            sent, received, length = struct.unpack_from("@QQI", data)
            ctypes.memmove(received, self._spi[path].exchange(ctypes.string_at(sent, min(length, _MOST_BYTES))), length)
            return int(length)
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def _message(self, path: str, message: bytes) -> None:
        address, flags, length, buffer = struct.unpack("@HHHxxQ", message)
        chip = self._chip(path, address)
        if length > _MOST_BYTES:
            raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
        if flags & _READ:
            ctypes.memmove(buffer, chip.read(length), length)
        else:
            chip.write(ctypes.string_at(buffer, length))

    def _smbus(self, chip: I2cModel, read: int, command: int, size: int, data: int) -> int:
        """The transfers of include/uapi/linux/i2c.h that hosts of PCs have; `data` is the address of their 34 bytes."""
        held = ctypes.string_at(data, 34)
        if size == _SMBUS_I2C_BLOCK and not 1 <= held[0] <= 32:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if size == _SMBUS_BYTE and not read:
            chip.write(bytes([command]))
        elif size == _SMBUS_BYTE:
            ctypes.memmove(data, chip.read(1), 1)
        elif size == _SMBUS_BYTE_DATA and not read:
            chip.write(bytes([command, held[0]]))
        elif size == _SMBUS_I2C_BLOCK and not read:
            chip.write(bytes([command]) + held[1 : 1 + held[0]])
        elif size == _SMBUS_I2C_BLOCK:
            chip.write(bytes([command]))
            ctypes.memmove(data + 1, chip.read(held[0]), held[0])
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return 0

    def _chip(self, path: str, address: int) -> I2cModel:
        chip = self._i2c.get((path, address))
        if chip is None:
            raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
        return chip
