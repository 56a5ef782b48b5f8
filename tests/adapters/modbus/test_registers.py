"""Registers: values there and back, word orders, and requests within the protocol's limits."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.modbus.registers import MAX_BITS, MAX_REGISTERS, Kind, RegisterSpec, Table, decode, decode_text, encode, plan
from edge_runtime.errors import InputError

_RANGES = {"u16": (0, 2**16), "i16": (-(2**15), 2**15), "u32": (0, 2**32), "i32": (-(2**31), 2**31), "i64": (-(2**53), 2**53)}


@given(st.data())
def test_values_go_there_and_back(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(_RANGES)))
    low, high = _RANGES[kind]
    raw = data.draw(st.integers(low, high - 1))
    spec = RegisterSpec(
        address=0,
        type=cast(Kind, kind),
        words=data.draw(st.sampled_from(["big", "little"])),
        swap_bytes=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from([1.0, 0.1, 0.01, 10.0, -1.0])),
        offset=data.draw(st.sampled_from([0.0, -40.0])),
    )
    value = raw * spec.scale + spec.offset
    words = encode(spec, value)
    assert len(words) == spec.size
    assert decode(spec, words) == pytest.approx(value)


@pytest.mark.parametrize(
    ("words", "swap", "registers"),
    [("big", False, [0x4248, 0x0A3D]), ("little", False, [0x0A3D, 0x4248]), ("big", True, [0x4842, 0x3D0A])],
)
def test_the_orders_in_the_field(words: Any, swap: bool, registers: list[int]) -> None:
    spec = RegisterSpec(address=0, type="f32", words=words, swap_bytes=swap)
    assert decode(spec, registers) == pytest.approx(50.01)


def test_what_is_not_known_is_none() -> None:
    assert decode(RegisterSpec(address=0, type="f32"), [0x7FC0, 0]) is None
    assert decode(RegisterSpec(address=0, type="i16", invalid=(-32768,)), [0x8000]) is None
    assert decode(RegisterSpec(address=0, bit=15), [0x8000]) == 1.0


def test_tenths_are_tenths() -> None:
    assert decode(RegisterSpec(address=0, scale=0.1), [3]) == 0.3
    assert decode(RegisterSpec(address=0, scale=0.01), [2_150]) == 21.5


def test_texts_end_at_a_zero() -> None:
    spec = RegisterSpec(address=0, type="string", length=3)
    assert decode_text(spec, [0x4142, 0x43FF, 0x0044]) == "ABC"
    assert decode_text(RegisterSpec(address=0, type="string", length=1, swap_bytes=True), [0x4241]) == "AB"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["holding", "input", "coil"]), st.integers(0, 65_000), st.sampled_from(["u16", "f32", "u64"]), st.booleans()
        ),
        max_size=60,
    ),
    st.integers(0, 100),
)
def test_requests_hold_every_register_once_within_the_limits(drawn: list[tuple[Table, int, Kind, bool]], gap: int) -> None:
    registers = {str(n): RegisterSpec(address=address, table=table, type=kind) for n, (table, address, kind, _) in enumerate(drawn)}
    alone = {str(n) for n, (*_, single) in enumerate(drawn) if single}
    blocks = plan(registers, registers, gap, alone)
    assert sorted(name for block in blocks for name in block.names) == sorted(registers)
    for block in blocks:
        assert block.count <= (MAX_BITS if block.table == "coil" else MAX_REGISTERS)
        assert len(block.names) == 1 or not alone & set(block.names)
        for name in block.names:
            spec = registers[name]
            assert spec.table == block.table
            assert block.address <= spec.address
            assert spec.address + spec.size <= block.address + block.count


def test_neighbours_share_a_request_and_strangers_do_not() -> None:
    registers = {name: RegisterSpec(address=address) for name, address in (("a", 0), ("b", 9), ("c", 30))}
    assert [(b.address, b.count) for b in plan(registers, registers, 8)] == [(0, 10), (30, 1)]
    assert len(plan(registers, registers, 7)) == 3


@pytest.mark.parametrize(
    ("register", "said"),
    [
        ({"address": 65_536}, "address"),
        ({"address": 65_535, "type": "u32"}, "address"),
        ({"address": 0, "type": "string"}, "length"),
        ({"address": 0, "length": 3}, "length"),
        ({"address": 0, "bit": 16}, "bit"),
        ({"address": 0, "table": "input", "access": "write"}, "access"),
        ({"address": 0, "states": {"on": 1}}, "states"),
        ({"address": 0, "access": "write", "states": {"on": 70_000}}, r"states\.on"),
        ({"address": 0, "scale": 0}, "scale"),
        ({"address": 0, "unit": "furlong"}, "unknown unit"),
        ({"address": 0, "minimum": 3, "maximum": 3}, "minimum"),
        ({"address": 0, "table": "coil", "access": "write", "states": {"half": 0.5}}, r"states\.half"),
    ],
)
def test_registers_that_cannot_be_are_refused(register: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RegisterSpec(**register).check("plc.options.devices.d.registers.r")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 70_000.0])
def test_values_that_do_not_fit_are_refused(value: float) -> None:
    with pytest.raises(InputError):
        encode(RegisterSpec(address=0), value)
