"""Where the guests' packages come from: what this machine's apt has of the release, and nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ONE_LINE = """\
# comment
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian trixie main
deb http://mirror.example/security bookworm-security main
"""
STANZAS = """\
Types: deb deb-src
# http://snapshot.example
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-pgdg
Components: main
Architectures: amd64
Signed-By:
 -----BEGIN-----
 .
 -----END-----

Types: deb
URIs: http://other.example
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.example
Suites: bookworm
Components: main
"""


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("build.py")))


def test_both_formats_are_read(build: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(STANZAS)
    assert build["sources"](tmp_path) == {
        "sources.list": "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n"
        "deb http://mirror.example/security bookworm-security main\n",
        "debian.sources": "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: \n -----BEGIN-----\n .\n -----END-----\n",
    }


def test_a_machine_without_the_release_is_told(build: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a source of Debian bookworm"):
        build["sources"](tmp_path)
