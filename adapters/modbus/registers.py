"""What a Modbus device holds: declared registers, their bytes and values, and which requests read them. Talks to nobody."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge_runtime.errors import InputError
from edge_runtime.units import parse_unit

Table = Literal["holding", "input", "coil", "discrete"]
Kind = Literal["u16", "i16", "u32", "i32", "f32", "u64", "i64", "f64", "string"]

MAX_REGISTERS = 125
MAX_BITS = 2_000
_FORMATS = {"u16": ">H", "i16": ">h", "u32": ">I", "i32": ">i", "f32": ">f", "u64": ">Q", "i64": ">q", "f64": ">d"}
_ON_OFF = {"on": 1.0, "off": 0.0}


class RegisterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a device: value = scale * raw + offset, in `unit`. `address` counts from 0, as on the wire.

    `words` is the order of the 16-bit words of a longer value, `swap_bytes` exchanges the bytes within each; `bit` takes one bit
    of a word; `invalid` are raw values that mean "not known". `access: write` makes an actuator, whose `states` are values.
    `length` is of a `string`, in registers: it tells who the device is and becomes no channel.
    """

    address: int
    table: Table = "holding"
    type: Kind = "u16"
    words: Literal["big", "little"] = "big"
    swap_bytes: bool = False
    bit: int | None = None
    length: int = 0
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    invalid: tuple[int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    access: Literal["read", "write"] = "read"
    states: dict[str, float] = {}
    write_multiple: bool = False
    read_back: bool = True

    @property
    def is_bits(self) -> bool:
        return self.table in ("coil", "discrete")

    @property
    def size(self) -> int:
        """In registers, or in bits of a table of bits."""
        if self.is_bits:
            return 1
        return self.length if self.type == "string" else struct.calcsize(_FORMATS[self.type]) // 2

    @property
    def all_states(self) -> Mapping[str, float]:
        return self.states or (_ON_OFF if self.is_bits else {})

    def check(self, where: str) -> None:
        """Raises InputError for a register that cannot be."""
        if not 0 <= self.address <= 65_536 - max(1, self.size):
            raise InputError(f"{where}.address: expected a number in 0..65535 with room for `{self.type}`, got {self.address}")
        if (self.type == "string") != (1 <= self.length <= MAX_REGISTERS):
            raise InputError(f"{where}.length: expected 1..{MAX_REGISTERS} registers for a `string` and none for others, got {self.length}")
        if self.bit is not None and (self.is_bits or self.type != "u16" or not 0 <= self.bit <= 15 or self.access == "write"):
            raise InputError(f"{where}.bit: expected a bit 0..15 of a `u16` that is read, got {self.bit}")
        if self.access == "write" and (self.table not in ("holding", "coil") or self.type == "string"):
            raise InputError(f"{where}.access: only numbers in the tables `holding` and `coil` can be written")
        if self.states and self.access != "write":
            raise InputError(f"{where}.states: states are for `access: write`")
        if not self.scale or not math.isfinite(self.scale) or not math.isfinite(self.offset):
            raise InputError(f"{where}.scale: expected numbers, and a scale that is not 0, got {self.scale:g} and {self.offset:g}")
        if self.minimum is not None and self.maximum is not None and not self.minimum < self.maximum:
            raise InputError(f"{where}.minimum: expected less than the maximum {self.maximum:g}, got {self.minimum:g}")
        for state, value in self.all_states.items():
            self._check_value(f"{where}.states.{state}", value)
        parse_unit(self.unit)

    def _check_value(self, where: str, value: float) -> None:
        try:
            encode(self, value)
        except InputError as err:
            raise InputError(f"{where}: {err}") from err


@dataclass(frozen=True, slots=True)
class Block:
    """One request: `count` registers or bits from `address`, and whose values are in it."""

    table: Table
    address: int
    count: int
    names: tuple[str, ...]


def plan(registers: Mapping[str, RegisterSpec], names: Collection[str], gap: int, alone: Collection[str] = ()) -> list[Block]:
    """As few requests as the protocol's limits allow; up to `gap` registers that nobody wants are read to save a request.

    Those in `alone` get a request of their own.
    """
    blocks: list[Block] = []
    for name in sorted(names, key=lambda name: (registers[name].table, registers[name].address, registers[name].size)):
        spec = registers[name]
        last = blocks[-1] if blocks else None
        end = spec.address + spec.size
        limit = MAX_BITS if spec.is_bits else MAX_REGISTERS
        joins = last is not None and last.table == spec.table and name not in alone and last.names[-1] not in alone
        if last is not None and joins and spec.address - (last.address + last.count) <= gap and end - last.address <= limit:
            count = max(last.count, end - last.address)
            blocks[-1] = Block(last.table, last.address, count, (*last.names, name))
        else:
            blocks.append(Block(spec.table, spec.address, spec.size, (name,)))
    return blocks


def decode(spec: RegisterSpec, values: Sequence[int]) -> float | None:
    """The value of `size` registers (or one bit) in the unit; None where the device says that it does not know."""
    if spec.is_bits:
        return _scaled(spec, int(bool(values[0])))
    if spec.bit is not None:
        return _scaled(spec, values[0] >> spec.bit & 1)
    raw = struct.unpack(_FORMATS[spec.type], _bytes(spec, values))[0]
    if raw in spec.invalid or not math.isfinite(raw):
        return None
    return _scaled(spec, raw)


def decode_text(spec: RegisterSpec, values: Sequence[int]) -> str:
    """A string up to its first zero; what cannot be shown is left out."""
    text = _bytes(spec, values).split(b"\x00")[0].decode("ascii", "ignore")
    return "".join(character for character in text if character.isprintable()).strip()


def encode(spec: RegisterSpec, value: float) -> list[int]:
    """The registers (or the one bit) that hold `value`, given in the unit. Raises InputError for a value outside range or type."""
    low, high = spec.minimum, spec.maximum
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        raise InputError(f"expected a number in {low if low is not None else ''}..{high if high is not None else ''}, got {value:g}")
    raw = (value - spec.offset) / spec.scale
    if spec.is_bits:
        if raw not in (0, 1):
            raise InputError(f"expected 0 or 1 for a coil, got {value:g}")
        return [int(raw)]
    try:
        data = struct.pack(_FORMATS[spec.type], raw if spec.type in ("f32", "f64") else round(raw))
    except (struct.error, OverflowError) as err:
        raise InputError(f"{value:g} does not fit into a `{spec.type}` with scale {spec.scale:g}") from err
    words = [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
    return _ordered(spec, words)


def _bytes(spec: RegisterSpec, values: Iterable[int]) -> bytes:
    return b"".join((word & 0xFFFF).to_bytes(2, "big") for word in _ordered(spec, list(values)))


def _ordered(spec: RegisterSpec, words: list[int]) -> list[int]:
    """From the device's order to ours, or back."""
    if spec.words == "little" and spec.type != "string":
        words = words[::-1]
    return [(word & 0xFF) << 8 | word >> 8 for word in words] if spec.swap_bytes else words


def _scaled(spec: RegisterSpec, raw: float) -> float:
    if spec.scale == 1.0 and not spec.offset:
        return float(raw)
    inverse = 1 / spec.scale
    scaled = raw / round(inverse) if abs(inverse) > 1 and math.isclose(inverse, round(inverse), rel_tol=1e-12) else raw * spec.scale
    return scaled + spec.offset
