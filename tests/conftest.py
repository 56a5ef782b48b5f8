"""What suites of several packages share: no deadlines for examples, the emulated node, the option for real hardware."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from adapters.firmware.build import MissingCompiler, find_compiler
from adapters.firmware.emulator import Emulator

settings.register_profile("no deadline", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--adapter-options",
        type=Path,
        metavar="FILE",
        help="run the adapter contract against the hardware of this file: `driver`, `options` and perhaps `deadline_s`, as YAML",
    )


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu-system-arm")
    try:
        find_compiler()
    except MissingCompiler as err:
        pytest.skip(str(err))
    with Emulator() as running:
        yield running


@pytest.fixture
def board(emulator: Emulator) -> Emulator:
    """The emulated node just after power on, at 21.5 degrees."""
    emulator.power_cycle()
    emulator.set_temperature(21.5)
    return emulator
