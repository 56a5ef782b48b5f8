"""The firmware, built once; emulated nodes; blobs of a small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.firmware.build import MissingCompiler
from adapters.firmware.emulator import Emulator, MissingEmulator, cached_firmware, find_emulator
from models.export_c import factory
from models.export_c.blob import DEVELOPMENT_KEY
from models.export_c.export import pack
from models.export_c.network import Rounding
from tests.adapters.firmware.uart import Uart

MakeBlob = Callable[..., bytes]


@pytest.fixture(scope="session")
def firmware() -> Path:
    try:
        find_emulator()
        return cached_firmware()
    except (MissingEmulator, MissingCompiler) as err:
        pytest.skip(str(err))


@pytest.fixture
def node(firmware: Path) -> Iterator[Emulator]:
    with Emulator(firmware) as emulator:
        _boot(emulator)
        yield emulator


def _boot(emulator: Emulator) -> None:
    """Waits until the node answers: before that, datagrams to it are lost."""
    client = Uart(emulator.serial_port)
    client.ok(0x01)
    client.close()


@pytest.fixture
def fast_node(firmware: Path) -> Iterator[Emulator]:
    """A node whose time is its count of instructions: minutes of sleep pass at once."""
    with Emulator(firmware, icount=True) as emulator:
        _boot(emulator)
        yield emulator


@pytest.fixture
def uart(node: Emulator) -> Iterator[Uart]:
    client = Uart(node.serial_port)
    yield client
    client.close()


@pytest.fixture
def fast_uart(fast_node: Emulator) -> Iterator[Uart]:
    client = Uart(fast_node.serial_port)
    yield client
    client.close()


@pytest.fixture(scope="session")
def blob() -> MakeBlob:
    """`blob(version, key=, name=)`: the factory's network, signed."""

    def make(version: int, *, key: bytes = DEVELOPMENT_KEY, name: str = "test") -> bytes:
        return pack(factory.network(), Rounding.HALF_EVEN, name=name, version=version, key=key).data

    return make
