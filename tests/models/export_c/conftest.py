"""The firmware's interpreter on this machine, built once."""

from __future__ import annotations

import pytest

from adapters.firmware.native import Interpreter, MissingHostCompiler


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    try:
        return Interpreter(tmp_path_factory.mktemp("nn"))
    except MissingHostCompiler as err:
        pytest.skip(str(err))
