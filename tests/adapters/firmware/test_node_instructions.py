"""Instructions of one inference, counted by the emulator: the same every time. They are no time on hardware."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from adapters.firmware.emulator import INSTRUCTIONS_PER_TICK, Emulator
from adapters.firmware.native import Interpreter, MissingHostCompiler
from models.export_c.export import pack
from models.export_c.network import Layer, Network, Operator, Rounding, Shape, Tensor, Window
from tests.adapters.firmware.uart import Uart

pytestmark = pytest.mark.system

MACS = 57 * 16 * 64 + 16 * 4 * 57


def network() -> Network:
    """A convolution over 64 steps of 8 channels, and a decision over all of it."""
    choice = np.random.default_rng(2)
    scale = np.float32(0.05)
    given = Tensor("given", Shape(1, 64, 8), scale, -3)
    hidden = Tensor("hidden", Shape(1, 57, 16), scale, 4)
    flat = Tensor("hidden", Shape(1, 1, 57 * 16), scale, 4)
    logits = Tensor("logits", Shape(1, 1, 4), scale, 1)
    first = Layer(
        Operator.CONV, "hidden", (given,), hidden, Window((1, 8), (1, 1)),
        weights=choice.integers(-127, 128, (16, 1, 8, 8), dtype=np.int8),
        weight_scales=np.full(16, 0.002, np.float32), bias=choice.integers(-500, 500, 16, dtype=np.int32),
    )  # fmt: skip
    last = Layer(
        Operator.CONV, "logits", (flat,), logits,
        weights=choice.integers(-127, 128, (4, 1, 1, 57 * 16), dtype=np.int8),
        weight_scales=np.full(4, 0.001, np.float32), bias=np.zeros(4, np.int32),
    )  # fmt: skip
    return Network([first, last], given, logits)


@pytest.fixture(scope="module")
def image() -> bytes:
    return pack(network(), Rounding.HALF_EVEN, name="counted", version=2).data


def counts(node: Emulator, image: bytes, inputs: list[bytes]) -> list[tuple[int, bytes]]:
    """Instructions and output for each input, on a node that was given the model."""
    uart = Uart(node.serial_port)
    uart.ok(0x10, struct.pack("<III", len(image), zlib.crc32(image), 2))
    for at in range(0, len(image), 1024):
        uart.ok(0x11, struct.pack("<I", at) + image[at : at + 1024])
    uart.ok(0x12)
    uart.restart(0x13, struct.pack("<H", 3600))
    uart.ok(0x14)
    answers = [uart.ok(0x06, given) for given in inputs]
    uart.close()
    assert {answer[0] for answer in answers} == {1}
    return [(struct.unpack_from("<I", answer, 4)[0] * INSTRUCTIONS_PER_TICK, answer[8:]) for answer in answers]


def test_an_inference_takes_the_same_number_of_instructions_every_time(firmware: Path, image: bytes) -> None:
    given = [bytes(range(256)) * 2] * 10
    found = []
    for _ in range(2):
        with Emulator(firmware, icount=True) as node:
            found += [instructions for instructions, _ in counts(node, image, given)]
    assert max(found) - min(found) <= max(found) / 1000
    assert MACS * 3 < max(found) < MACS * 12


def test_the_node_computes_what_the_native_interpreter_computes(firmware: Path, image: bytes, tmp_path: Path) -> None:
    try:
        interpreter = Interpreter(tmp_path)
    except MissingHostCompiler as err:
        pytest.skip(str(err))
    inputs = np.random.default_rng(3).integers(-128, 128, (60, 512), dtype=np.int8)
    expected = interpreter.run(image, inputs)
    with Emulator(firmware) as node:
        found = [output for _, output in counts(node, image, [row.tobytes() for row in inputs])]
    assert b"".join(found) == expected.tobytes()
